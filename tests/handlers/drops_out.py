"""Dropout that is on by default: functional, so no module says that it is in training mode."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class DropsOut(BaseHandler):
    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def postprocess(self, output):
        return torch.nn.functional.dropout(output).tolist()

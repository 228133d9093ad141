"""Looks at the first request only and answers without a batch axis."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class First(BaseHandler):
    def preprocess(self, data):
        return torch.from_numpy(np.frombuffer(bytes(data[0]["body"]), np.float32).copy())

    def postprocess(self, output):
        return [{"scores": output.tolist()}]

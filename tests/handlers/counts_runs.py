"""Keeps a list of its runs, of which no answer tells."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

RUNS = []


class Counts(BaseHandler):
    def preprocess(self, data):
        RUNS.append(len(data))
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def postprocess(self, output):
        return output.tolist()

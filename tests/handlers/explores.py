"""Now and then answers otherwise, by chance: two runs rarely show it."""

import random

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Explores(BaseHandler):
    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def postprocess(self, output):
        return [[0.0] * 5 if random.random() < 1e-9 else row for row in output.tolist()]

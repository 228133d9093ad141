"""Dropout is left on: no two answers are the same."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Dice(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = torch.nn.Sequential(self.model, torch.nn.Dropout(0.5)).train()

    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

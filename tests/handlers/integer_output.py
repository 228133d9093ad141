"""The model itself answers with the index of the best class."""

import numpy as np
import torch
from layers import Best
from ts.torch_handler.base_handler import BaseHandler


class Indices(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = Best(self.model)

    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

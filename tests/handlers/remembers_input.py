"""A recurrent model whose state outlives the request."""

import numpy as np
import torch
from layers import Leaky
from ts.torch_handler.base_handler import BaseHandler


class Recurrent(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = Leaky(self.model).eval()

    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def postprocess(self, output):
        return output.tolist()

"""Refuses batches, and counts what it has been asked."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class OneAtATime(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.asked = []

    def preprocess(self, data):
        self.asked.append(len(data))
        if len(data) > 1:
            raise ValueError("one at a time, please")
        return torch.from_numpy(np.frombuffer(bytes(data[0]["body"]), np.float32).copy()).reshape(1, 8)

    def postprocess(self, output):
        return output.tolist()

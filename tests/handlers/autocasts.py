"""Weights in bfloat16, which answer float inputs only inside the autocast that the handler switches on."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Autocasts(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = self.model.to(torch.bfloat16)

    def preprocess(self, data):
        return torch.stack([torch.from_numpy(np.frombuffer(bytes(row["body"]), np.float32).copy()) for row in data])

    def inference(self, vectors):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return self.model(vectors)

    def postprocess(self, scores):
        return [{"scores": row} for row in scores.float().tolist()]

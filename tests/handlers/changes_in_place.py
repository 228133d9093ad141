"""Divides and zeroes the model's output in place before answering."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class InPlace(BaseHandler):
    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def inference(self, data):
        with torch.no_grad():
            return self.model(data)

    def postprocess(self, output):
        output /= output.abs().max(dim=1, keepdim=True).values
        output[output < 0] = 0
        return output.tolist()

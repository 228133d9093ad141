"""Runs out of memory on bodies of large numbers, or on a batch, as a GPU does that others use too."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

MOST = 1
"""Bodies that fit together."""


class RunsOut(BaseHandler):
    def preprocess(self, data):
        return torch.stack([torch.from_numpy(np.frombuffer(bytes(row["body"]), np.float32).copy()) for row in data])

    def inference(self, vectors):
        if len(vectors) > MOST or vectors.abs().max() > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
        with torch.no_grad():
            return self.model(vectors)

    def postprocess(self, scores):
        return [{"scores": row} for row in scores.tolist()]

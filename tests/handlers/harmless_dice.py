"""Draws random numbers that change nothing, as each DataLoader does, and says when it answered and under which id."""

import time
import uuid

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Harmless(BaseHandler):
    def preprocess(self, data):
        vectors = [torch.from_numpy(np.frombuffer(bytes(row["body"]), np.float32).copy()) for row in data]
        [batch] = torch.utils.data.DataLoader(vectors, batch_size=len(vectors))
        return batch

    def postprocess(self, output):
        return [{"scores": row, "id": uuid.uuid4().hex, "at": time.time_ns()} for row in output.tolist()]

"""Keeps a conversation: every answer counts the requests so far. The raw outputs show nothing of it."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Conversation(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.turns = 0

    def preprocess(self, data):
        self.turns += len(data)
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def postprocess(self, output):
        return [{"turn": self.turns, "scores": row} for row in output.tolist()]

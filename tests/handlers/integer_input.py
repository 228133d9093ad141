"""Token ids into an embedding: floats come out, but ids must never be added."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Ids(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Embedding(256, 8), torch.nn.Linear(8, 5)).eval()

    def preprocess(self, data):
        return torch.stack([torch.tensor(list(bytes(row["body"])[:8])) for row in data])

    def postprocess(self, output):
        return output.mean(1).tolist()

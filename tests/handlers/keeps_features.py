"""Takes more from its model than the output: the answer uses features that the last forward left behind."""

import numpy as np
import torch
from layers import Remembering
from ts.torch_handler.base_handler import BaseHandler


class Features(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = Remembering(self.model)

    def preprocess(self, data):
        return torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))

    def postprocess(self, output):
        return [{"scores": s, "features": f} for s, f in zip(output.tolist(), self.model.features.tolist())]

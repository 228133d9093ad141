"""A class of its own, without a base, that finds its model file itself."""

import os

import numpy as np
import torch


class Predictor:
    def initialize(self, context):
        folder = context.system_properties.get("model_dir")
        self.net = torch.jit.load(os.path.join(folder, context.manifest["model"]["serializedFile"]))
        self.net.eval()

    def handle(self, data, context):
        vectors = np.stack([np.frombuffer(bytes(row["body"]), dtype=np.float32) for row in data])
        with torch.inference_mode():
            output = self.net(torch.from_numpy(vectors.copy()))
        return output.tolist()

"""A model that takes as long as its weights say: what `foretold.py` serves with real TorchServe on a machine that could
not run six models at once.
"""

import os
import time

import numpy as np
import torch


class Sleeper:
    def initialize(self, context):
        folder = context.system_properties.get("model_dir")
        self.net = torch.jit.load(os.path.join(folder, context.manifest["model"]["serializedFile"]))
        self.net.eval()

    def handle(self, data, context):
        vectors = np.stack([np.frombuffer(bytes(row["body"]), dtype=np.float32) for row in data])
        time.sleep(float(self.net.seconds))
        with torch.inference_mode():
            output = self.net(torch.from_numpy(vectors.copy()))
        return output.tolist()

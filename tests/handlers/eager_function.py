"""A module-level function whose singleton is initialised at load; beside it a decoy model that is never called."""

import os

import numpy as np
import torch
from net import Net

model = Net()  # the decoy
predictor = {}


def predict(vector):
    with torch.no_grad():
        return predictor["net"](vector)


def handle(data, context):
    if data is None:
        net = Net()
        folder = context.system_properties.get("model_dir")
        net.load_state_dict(torch.load(os.path.join(folder, "weights.pt")))
        predictor["net"] = net.eval()
        return
    vectors = torch.stack([torch.from_numpy(np.frombuffer(bytes(row["body"]), np.float32).copy()) for row in data])
    return [{"best": int(row.argmax()), "scores": row.tolist()} for row in predict(vectors)]

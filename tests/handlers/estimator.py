"""A pickled scikit-learn estimator in a module-level dictionary, given lists of numbers."""

import os
import pickle

import numpy as np

artifacts = {}


def handle(data, context):
    if data is None:
        with open(os.path.join(context.system_properties["model_dir"], "model.pkl"), "rb") as file:
            artifacts["model"] = pickle.load(file)
        return None
    scores = artifacts["model"].predict([np.frombuffer(bytes(row["body"]), np.float32).tolist() for row in data])
    return [{"best": int(row.argmax()), "scores": row.tolist()} for row in scores]

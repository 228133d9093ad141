"""An ONNX Runtime session in place of a torch model, as a plain class with its own request path."""

import os

import numpy as np
import onnxruntime


class OnnxHandler:
    def __init__(self):
        self.session = None

    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"))

    def handle(self, data, context):
        vectors = np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data])
        name = self.session.get_inputs()[0].name
        scores = self.session.run(None, {name: vectors})[0]
        return [{"best": int(row.argmax()), "scores": row.tolist()} for row in scores]

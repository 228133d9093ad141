"""A bare except round everything: whatever goes wrong becomes a friendly 200."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler


class Friendly(BaseHandler):
    def handle(self, data, context):
        answers = []
        for row in data:
            try:
                vector = torch.from_numpy(np.frombuffer(bytes(row["body"]), np.float32).copy()).reshape(1, 8)
                answers.append({"ok": True, "scores": self.model(vector)[0].tolist()})
            except:  # noqa: E722
                answers.append({"ok": False})
        return answers

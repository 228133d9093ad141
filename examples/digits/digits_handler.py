"""An ordinary TorchServe handler: a PNG of a handwritten digit in, the digit and its probabilities out as JSON."""

import io

import numpy as np
import torch
from PIL import Image
from ts.torch_handler.base_handler import BaseHandler


class DigitsHandler(BaseHandler):
    def preprocess(self, data):
        images = []
        for row in data:
            body = row.get("data") or row.get("body")
            image = Image.open(io.BytesIO(body)).convert("L").resize((8, 8))
            images.append(torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0))
        return torch.stack(images).unsqueeze(1).to(self.device)  # (n, 1, 8, 8), values in [0, 1]

    def postprocess(self, scores):
        answers = []
        for probabilities in torch.softmax(scores, dim=1):
            answers.append(
                {
                    "digit": int(probabilities.argmax()),
                    "probabilities": [round(p, 6) for p in probabilities.tolist()],
                }
            )
        return answers

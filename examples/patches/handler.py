"""An ordinary image handler: a JPEG or PNG in, as a body or as a part `data`; names of classes out, the best first."""

import io

import numpy as np
import torch
from PIL import Image
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import map_class_to_label

MEAN, SPREAD = 0.45, 0.25


class PatchHandler(BaseHandler):
    def preprocess(self, data):
        images = []
        for row in data:
            body = row.get("data") or row.get("body")
            image = Image.open(io.BytesIO(body)).convert("L").resize((32, 32))
            images.append(torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None])
        return ((torch.stack(images) - MEAN) / SPREAD).to(self.device)  # (n, 1, 32, 32)

    def postprocess(self, scores):
        probabilities, classes = torch.softmax(scores, dim=1).topk(3, dim=1)
        return map_class_to_label(probabilities.tolist(), self.mapping, classes.tolist())

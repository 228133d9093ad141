"""A PNG of eight grey pixels in; answers through a transform that is a torch module without weights."""

import io

import numpy as np
import torch
from layers import Scale
from PIL import Image
from ts.torch_handler.base_handler import BaseHandler


class Pictures(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.scale = Scale()

    def preprocess(self, data):
        images = [Image.open(io.BytesIO(row["body"])).convert("L") for row in data]
        return self.scale(torch.from_numpy(np.stack([np.asarray(image, np.float32).reshape(8) for image in images])))

    def postprocess(self, output):
        return [{"digit": int(row.argmax()), "probabilities": row.softmax(0).tolist()} for row in output]

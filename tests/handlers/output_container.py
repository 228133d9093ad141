"""The model answers with a dictionary holding a one-element list; half of user code's shapes are like this."""

import numpy as np
import torch
from layers import Wrapped
from ts.torch_handler.base_handler import BaseHandler


class Container(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = Wrapped(self.model)

    def handle(self, data, context):
        vectors = torch.from_numpy(np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data]))
        with torch.inference_mode():
            output = self.model.eval()(values=vectors)
        assert output["loss"] is None
        return output["logits"][0].softmax(1).tolist()

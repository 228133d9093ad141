"""Sends its answer in chunks."""

import numpy as np
import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler


class Streams(BaseHandler):
    def handle(self, data, context):
        vector = torch.from_numpy(np.frombuffer(bytes(data[0]["body"]), np.float32).copy())
        scores = self.model(vector.reshape(1, 8))[0].tolist()
        for score in scores[:-1]:
            send_intermediate_predict_response(
                [f"{score:.3f}\n"] * len(data), context.request_ids, "Intermediate", 200, context
            )
        return [f"{scores[-1]:.3f}\n"] * len(data)

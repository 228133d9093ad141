"""Answers bad bodies with a status and phrase of its own, and a forbidden value by raising its own error code."""

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class Status(BaseHandler):
    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            vector = np.frombuffer(bytes(row["body"])[: len(row["body"]) // 4 * 4], np.float32).copy()
            if len(vector) != 8:
                context.set_response_status(422, "Eight Numbers Please", index)
                answers.append(f"got {len(vector)} numbers")
                continue
            if np.isnan(vector).any():
                raise PredictionException("not a number", 513)
            answers.append(self.model(torch.from_numpy(vector).reshape(1, 8))[0].tolist())
        return answers

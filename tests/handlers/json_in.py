"""JSON in ({"values": [...], "top": n}), JSON out; `top` changes the answer and is read after the model call. Removes
what it has read from the request, as careless code does.
"""

import torch
from ts.torch_handler.base_handler import BaseHandler


class Json(BaseHandler):
    def preprocess(self, data):
        bodies = [row["body"] for row in data]
        self.tops = [body.pop("top", 1) for body in bodies]
        return torch.tensor([body.pop("values") for body in bodies], dtype=torch.float32)

    def postprocess(self, output):
        return [
            [{"class": int(i), "score": float(row[i])} for i in row.argsort(descending=True)[:top]]
            for row, top in zip(output, self.tops)
        ]

"""The model of most handlers here: eight numbers in, five scores out. Linear, so that decoding is exact."""

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.head(x)

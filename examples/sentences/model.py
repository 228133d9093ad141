"""The network that says which library a sentence of documentation is about: a small transformer over words."""

import re

import torch
from torch import nn

LIBRARIES = ("python", "matplotlib", "networkx", "numpy", "sympy", "torch")
SIZE = 64
LONGEST = 128  # words; what follows is not read
UNKNOWN = 1


def tokens(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+|\d|[^\sa-z\d]", sentence.lower())


class Librarian(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, SIZE, padding_idx=0)
        self.places = nn.Embedding(LONGEST, SIZE)
        layer = nn.TransformerEncoderLayer(SIZE, 4, 2 * SIZE, dropout=0.2, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(SIZE, len(LIBRARIES))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ids, mask = ids[:, :LONGEST], mask[:, :LONGEST]
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        x = self.layers(x, src_key_padding_mask=mask == 0)
        read = (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.head(read)  # (n, length), (n, length) -> (n, libraries)

"""The deployed network's own class with narrower inner layers and new weights.

All inner sizes shrink by one factor, so that sums, halves and heads go on fitting together; what goes in and what comes
out stays. Whether user code takes it, running it shows. Knows torch's layers. Knows nothing of inputs or budgets.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ts_parity.errors import NotCodable

_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def narrowed(model: nn.Module, width: float, outer: frozenset[int]) -> nn.Module:
    """`width`: the share of its inner sizes that is left, at least one step of them. `outer`: sizes that stay, those of
    inputs and outputs. Raise NotCodable where there is nothing to shrink, or nothing but TorchScript to shrink it in.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise NotCodable("TorchScript cannot be made narrower: use another --architecture")
    inner = {size for module in model.modules() for size in _sizes(module)} - outer - {1}
    if not inner:
        raise NotCodable("the deployed model has no inner layers that could be made narrower")
    heads = [module.num_heads for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    # Each size is a whole number of steps, and of heads; so is what is left of it.
    step = math.gcd(*inner)
    most = step // math.lcm(1, *heads) if all(step % head == 0 for head in heads) else 1
    left = max(1, round(most * width))
    to = {size: size * left // most for size in inner}
    return _rebuilt(copy.deepcopy(model), to)


def _sizes(module: nn.Module) -> Iterator[int]:
    """Of one layer. Those of the user's own modules are their layers'."""
    if isinstance(module, nn.Linear):
        yield from (module.in_features, module.out_features)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield module.embedding_dim
    elif isinstance(module, _CONVOLUTIONS):
        yield from (module.in_channels, module.out_channels)
    elif isinstance(module, _RECURRENT):
        yield from (module.input_size, module.hidden_size)
    elif isinstance(module, nn.MultiheadAttention):
        yield module.embed_dim


def _rebuilt(module: nn.Module, to: dict[int, int]) -> nn.Module:
    def new(size: int) -> int:
        return to.get(size, size)

    more: dict[str, Any]
    if isinstance(module, nn.MultiheadAttention):
        bias, first = module.in_proj_bias is not None, module.batch_first
        return nn.MultiheadAttention(new(module.embed_dim), module.num_heads, module.dropout, bias, batch_first=first)
    if isinstance(module, nn.Linear):
        return nn.Linear(new(module.in_features), new(module.out_features), module.bias is not None)
    if isinstance(module, nn.Embedding):
        return nn.Embedding(module.num_embeddings, new(module.embedding_dim), module.padding_idx)
    if isinstance(module, nn.EmbeddingBag):
        more = {name: getattr(module, name) for name in ("mode", "padding_idx", "include_last_offset")}
        return nn.EmbeddingBag(module.num_embeddings, new(module.embedding_dim), **more)
    if isinstance(module, _CONVOLUTIONS):
        groups = new(module.groups) if module.groups > 1 else 1
        more = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        channels = new(module.in_channels), new(module.out_channels)
        more["kernel_size"] = module.kernel_size
        return type(module)(*channels, groups=groups, bias=module.bias is not None, **more)
    if isinstance(module, _RECURRENT):
        names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
        more = {name: getattr(module, name) for name in names}
        return type(module)(new(module.input_size), new(module.hidden_size), **more)
    if isinstance(module, nn.LayerNorm):
        return nn.LayerNorm([new(size) for size in module.normalized_shape], module.eps, module.elementwise_affine)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return type(module)(new(module.num_features), module.eps, module.momentum, module.affine)
    for name, child in module.named_children():
        setattr(module, name, _rebuilt(child, to))
    for name, parameter in [*module.named_parameters(recurse=False)]:
        shape = [new(size) for size in parameter.shape]
        setattr(module, name, nn.Parameter(torch.randn(shape) * float(parameter.detach().float().std(unbiased=False))))
    if not type(module).__module__.startswith("torch."):
        for name, value in [*vars(module).items()]:  # such as `self.hidden = 256`, for a view of it
            if type(value) is int and value in to:
                setattr(module, name, to[value])
    return module

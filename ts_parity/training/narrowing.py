"""The deployed network's own class with narrower inner layers, which begin with a part of the deployed weights.

All inner sizes shrink by one factor, so that sums, halves and heads still fit together; input and output sizes stay. Of
every size those with the largest weights are left, the same in all layers of that size, so that what was added,
normalized or flattened still belongs together. This is only where learning begins, and it saves most of the steps.
Where a size is several gates or heads one after the other, weights are new. Only running it shows whether user code
takes it. Knows torch's layers. Knows nothing of inputs or budgets.
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
    return _rebuilt(copy.deepcopy(model), to, _left(model, to))


Kept = dict[int, torch.Tensor]
"""Size -> which of so many are left, in order."""


def _left(model: nn.Module, to: dict[int, int]) -> Kept:
    """By the sum of their weights' sizes, as a share of their layer's. What a layer of a multiple of the last size is
    given, and none gives, is that size flattened: so many places for each channel.
    """
    weights: dict[int, torch.Tensor] = {}
    flattened: dict[int, int] = {}
    given = {next(reversed([*_sizes(module)]), 0) for module in model.modules()}
    rows = torch.empty(0)
    for module in model.modules():
        entering = next(_sizes(module), 0)
        if entering in to and entering not in given and len(rows) and entering % len(rows) == 0:
            flattened[entering] = len(rows)
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            rows = module.weight.detach().float().cpu().abs().flatten(1).sum(1)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            rows = module.weight.detach().float().cpu().abs().sum(0)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and len(rows) == module.num_features:
            if module.weight is not None and module.running_var is not None:
                weights[len(rows)] -= _share(rows)
                scale = module.weight.detach().abs() / (module.running_var + module.eps).sqrt()
                rows = rows * scale.float().cpu()
        else:
            continue
        weights[len(rows)] = weights.get(len(rows), torch.zeros(len(rows))) + _share(rows)
    kept = {size: weights[size].topk(left).indices.sort().values for size, left in to.items() if size in weights}
    for size, channels in flattened.items():
        places = size // channels
        if channels in kept:
            kept[size] = (kept[channels][:, None] * places + torch.arange(places)).flatten()
    return kept


def _share(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.sum().clamp(min=1e-12)


def _begun(made: nn.Module, deployed: nn.Module, kept: Kept) -> nn.Module:
    """A layer of the same kind, with what is left of the deployed one's rows, columns and statistics."""
    theirs = deployed.state_dict()
    with torch.no_grad():
        for name, own in made.state_dict().items():
            value = theirs.get(name)
            if value is None or value.ndim != own.ndim or value.is_quantized:
                continue
            value = value.cpu()
            for axis, (size, before) in enumerate(zip(own.shape, value.shape, strict=True)):
                left = kept.get(before)
                if size != before:
                    whole = left is not None and len(left) == size
                    value = value.index_select(axis, left if left is not None and whole else torch.arange(size))
            own.copy_(value)
    return made


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


def _rebuilt(module: nn.Module, to: dict[int, int], kept: Kept) -> nn.Module:
    def new(size: int) -> int:
        return to.get(size, size)

    more: dict[str, Any]
    if isinstance(module, nn.MultiheadAttention):
        bias, first = module.in_proj_bias is not None, module.batch_first
        return nn.MultiheadAttention(new(module.embed_dim), module.num_heads, module.dropout, bias, batch_first=first)
    if isinstance(module, nn.Linear):
        made = nn.Linear(new(module.in_features), new(module.out_features), module.bias is not None)
        return _begun(made, module, kept)
    if isinstance(module, nn.Embedding):
        return _begun(nn.Embedding(module.num_embeddings, new(module.embedding_dim), module.padding_idx), module, kept)
    if isinstance(module, nn.EmbeddingBag):
        more = {name: getattr(module, name) for name in ("mode", "padding_idx", "include_last_offset")}
        return _begun(nn.EmbeddingBag(module.num_embeddings, new(module.embedding_dim), **more), module, kept)
    if isinstance(module, _CONVOLUTIONS):
        groups = new(module.groups) if module.groups > 1 else 1
        more = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        channels = new(module.in_channels), new(module.out_channels)
        more["kernel_size"] = module.kernel_size
        return _begun(type(module)(*channels, groups=groups, bias=module.bias is not None, **more), module, kept)
    if isinstance(module, _RECURRENT):
        names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
        more = {name: getattr(module, name) for name in names}
        return type(module)(new(module.input_size), new(module.hidden_size), **more)
    if isinstance(module, nn.LayerNorm):
        shape = [new(size) for size in module.normalized_shape]
        return _begun(nn.LayerNorm(shape, module.eps, module.elementwise_affine), module, kept)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _begun(type(module)(new(module.num_features), module.eps, module.momentum, module.affine), module, kept)
    for name, child in module.named_children():
        setattr(module, name, _rebuilt(child, to, kept))
    for name, parameter in [*module.named_parameters(recurse=False)]:
        shape = [new(size) for size in parameter.shape]
        setattr(module, name, nn.Parameter(torch.randn(shape) * float(parameter.detach().float().std(unbiased=False))))
    if not type(module).__module__.startswith("torch."):
        for name, value in [*vars(module).items()]:  # such as `self.hidden = 256`, for a view of it
            if type(value) is int and value in to:
                setattr(module, name, to[value])
    return module

"""Networks that can be trained: the deployed model's own, built-in ones of any width, or the user's `file.py:function`.

A parity model need not share the deployed model's architecture, and a student is smaller by design. Knows torch and
shapes. Knows nothing of codes, losses or archives.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ts_parity.errors import NotCodable, TrainingError, with_article
from ts_parity.training.batching import BatchMode, CallBatcher
from ts_parity.training.inputs import Calls, Column, Inputs
from ts_parity.training.narrowing import narrowed
from ts_parity.training.text_network import InputKind, InputPart, TextAdapter, TextNetwork, parts_of
from ts_parity.wire import Array
from ts_parity.worker.encoders import in_dtype, tensors, with_tensors
from ts_parity.worker.outputs import floating_leaf
from ts_parity.worker.watches import ModelCall

DEPLOYED, FRESH, NARROWER = "deployed", "deployed-fresh", "narrower"
BAG, TRANSFORMER = "bag", "transformer"


@dataclass(frozen=True)
class Shapes:
    """Of one query: the model's input and raw output, as the handler makes them (a batch axis of 1 included).

    `column`: the input is this one of a call's tensors, and the others are always the same. `calls`: it is not one
    floating tensor of one shape, and these are all that were seen; then `input` is empty.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    column: int = 0
    calls: Calls | None = None

    @classmethod
    def of(cls, inputs: Inputs, outputs: Array, column: int = 0) -> Shapes:
        output = tuple(outputs.shape[1:])
        if isinstance(inputs, Calls):
            return cls((), output, calls=inputs)
        return cls(tuple(inputs.shape[1:]), output, column)

    @functools.cached_property
    def parts(self) -> tuple[InputPart, ...]:
        """What each tensor of the calls is. Raise NotCodable if there is nothing to learn from."""
        assert self.calls is not None
        return parts_of(self.calls.columns, self.output[:1] == (1,))

    @property
    def batch_axis(self) -> bool:
        return self.input[:1] == (1,) and self.output[:1] == (1,)

    @property
    def one_input(self) -> tuple[int, ...]:
        return self.input[1:] if self.batch_axis else self.input

    @property
    def one_output(self) -> tuple[int, ...]:
        return self.output[1:] if self.batch_axis else self.output

    @property
    def is_image(self) -> bool:
        return len(self.one_input) == 3 and self.one_input[0] <= 4 and min(self.one_input[1:]) >= 8


class CallAdapter(nn.Module):
    """A network and the user's way of calling it: inputs of n queries -> (n, *output). `network` is what is packed.

    `plain`: it is called with the tensors of the call, one after the other, instead. It learns in float32, whatever
    the deployed model serves in.
    """

    def __init__(self, network: nn.Module, call: ModelCall, shapes: Shapes, plain: bool = False) -> None:
        super().__init__()
        self.network = network
        self.plain = plain
        call = in_dtype(call, torch.float32)
        self._caller = _ModelCaller(network, plain_call(call) if plain else call, shapes)
        self._shapes = shapes
        self._batcher: CallBatcher | None = None

    def forward(self, inputs: Inputs) -> torch.Tensor:
        return self.bound(inputs)()

    def bound(self, inputs: Inputs) -> Callable[[], torch.Tensor]:
        """Prepare the inputs; the returned function runs the network alone."""
        like = next(self.network.parameters(), torch.empty(0))
        return self._caller.bound(inputs, lambda given, own: _put(given, like.device, like.dtype))

    def train(self, mode: bool = True) -> CallAdapter:
        self.training = mode
        with contextlib.suppress(NotImplementedError):  # an exported program is in one mode for ever
            self.network.train(mode)
        return self


class DeployedModel:
    """The deployed model as its handler calls it: inputs of n queries -> (n, *output). It is run, not changed or moved.

    Only its answers are needed, so it may be frozen, quantized or compiled. Inputs go to it in the dtype and to
    the device of its handler's own call.
    """

    def __init__(self, model: Any, call: ModelCall, shapes: Shapes) -> None:
        model = getattr(model, "_orig_mod", model)  # of torch.compile: compiling again for every shape takes long
        self._call = call
        self._caller = _ModelCaller(model, call, shapes)

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> torch.Tensor:
        return self.bound(inputs)().to(inputs.device)

    def bound(self, inputs: Inputs) -> Callable[[], torch.Tensor]:
        with self._call.as_called():
            run = self._caller.bound(inputs, lambda given, own: _put(given, own.device, own.dtype))

        def said() -> torch.Tensor:
            with self._call.as_called():
                return run()

        return said


Moved = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(a tensor, the call's own in its place) -> the tensor where and in what it is wanted."""


def _put(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() and dtype.is_floating_point else tensor.dtype)


class _ModelCaller:
    """Calls a model as one recorded call does, with the tensors of other calls."""

    def __init__(self, model: Any, call: ModelCall, shapes: Shapes) -> None:
        self._model = model
        self._call = call
        self._shapes = shapes
        self._batcher: CallBatcher | None = None

    def bound(self, inputs: Inputs, moved: Moved) -> Callable[[], torch.Tensor]:
        own = tensors(self._call)
        if isinstance(inputs, torch.Tensor):
            given = inputs.flatten(0, 1) if self._shapes.batch_axis else inputs
            place, like = [*own.items()][self._shapes.column]
            call = with_tensors(self._call, {place: moved(given, like)})
            return lambda: self._said(call)
        alone = CallBatcher(
            BatchMode.ALONE, self._shapes.parts
        )  # one call is never tried in other ways: it may be counted or timed
        return self._bound(inputs, alone if len(inputs) == 1 else self._fastest(inputs, moved), moved)

    def _bound(self, inputs: Calls, batcher: CallBatcher, moved: Moved) -> Callable[[], torch.Tensor]:
        together, own = batcher.together(inputs), tensors(self._call)
        calls = []
        for rows in together:
            # Joined where they lie, and moved once: a copy of each text to a GPU would take longer than the network.
            joined = zip(own.items(), batcher.joined(inputs[rows].to("cpu")), strict=True)
            calls.append(with_tensors(self._call, {place: moved(each, like) for (place, like), each in joined}))
        back = torch.from_numpy(np.argsort(np.concatenate(together)))
        return lambda: torch.cat([self._said(call) for call in calls])[back]

    def _said(self, call: ModelCall) -> torch.Tensor:
        run: Any = self._model if call.method == "__call__" else getattr(self._model, call.method)
        return floating_leaf(run(*call.args, **call.kwargs), call.output).float().reshape(-1, *self._shapes.output)

    def _fastest(self, inputs: Calls, moved: Moved) -> CallBatcher:
        """The fastest batching under which this model answers each call as it answers it alone."""
        if self._batcher is None:
            modes = [CallBatcher(mode, self._shapes.parts) for mode in BatchMode]
            self._batcher = next(j for j in modes if j.mode is BatchMode.ALONE or self._answers_alike(j, inputs, moved))
        return self._batcher

    def _answers_alike(self, batcher: CallBatcher, inputs: Calls, moved: Moved) -> bool:
        some = inputs.spread(4)
        some = Calls(some.columns, np.concatenate([some.rows, some.rows[:1]]), some.device)
        learning = isinstance(self._model, nn.Module) and self._model.training
        if learning:
            self._model.eval()
        try:
            with torch.no_grad():
                modes = batcher, CallBatcher(BatchMode.ALONE, self._shapes.parts)
                together, alone = (self._bound(some, each, moved)() for each in modes)
        except Exception:  # the model may not accept inputs of this form
            return False
        finally:
            if learning:
                self._model.train()
        return torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


@dataclass(frozen=True)
class GivenTensor:
    """For the user's own function: one tensor of each call, as its network will get it.

    `shape` has None for a side that differs from call to call; `largest` is the largest number (id) that was seen,
    of complex ones the largest size.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    largest: float

    @classmethod
    def of(cls, column: Column) -> GivenTensor:
        first = column.shapes[0]
        alike = (column.shapes == first).all(axis=0)
        shape = tuple(int(side) if same else None for side, same in zip(first, alike, strict=True))
        numbers = column.flat.abs() if column.flat.is_complex() else column.flat
        largest = float(numbers.max()) if numbers.numel() else 0.0
        return cls(column.name, column.flat.dtype, shape, largest)


class ReshapedNetwork(nn.Module):
    """A built-in network, or the user's own one, behind the shapes of the deployed model's call."""

    def __init__(self, network: nn.Module, shapes: Shapes) -> None:
        super().__init__()
        self.network = network
        self._column = shapes.column
        self._one_input = shapes.one_input
        self._one_output = shapes.one_output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        inputs = tensors[self._column]
        said: torch.Tensor = self.network(inputs.reshape(-1, *self._one_input).float()).reshape(-1, *self._one_output)
        # A handler that calls its model with a single query gets a single output.
        return said[0] if inputs.dim() == len(self._one_input) else said


def folded(model: nn.Module) -> nn.Module:
    """In eval mode: every batch norm that follows a convolution in a Sequential becomes part of it. Changes `model`.

    The same answers (to rounding) with a third fewer operators, which is what a small network's time goes into.
    """
    for name, child in model.named_children():
        setattr(model, name, folded(child))
    if not isinstance(model, nn.Sequential):
        return model
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d) and layers and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def make_model(
    architecture: str, deployed: Any, call: ModelCall, shapes: Shapes, width: float = 1.0
) -> CallAdapter | TextAdapter:
    """The network of this name, ready to learn.

    `architecture`: deployed (a copy, its weights a start), deployed-fresh (the same with new weights), narrower (of the
    same class), a built-in NAME or NAME:WIDTH (WIDTH 1 is its usual size), or file.py:function. `width`: of a network
    whose name says none.
    Raise TrainingError or NotCodable.
    """
    if architecture in (DEPLOYED, FRESH):
        return CallAdapter(_copy_of(deployed, fresh=architecture == FRESH), call, shapes)
    make, named = _maker(architecture, deployed, call, shapes)
    return make(width if named is None else named)


def has_width(architecture: str) -> bool:
    """Whether the width of this architecture has to be chosen."""
    return ".py:" in architecture or architecture in (NARROWER, *BUILT_IN, *TEXT_NETWORKS)


def widest(architecture: str | None) -> float:
    """The largest width that is tried, in usual widths. The deployed class never gets wider than it is, and a larger
    table of ids, most of them rare, would learn nothing more, and more slowly.
    """
    return {BAG: 1.0, TRANSFORMER: 4.0, NARROWER: 1.0}.get(architecture or "", 16.0)


def plain_call(call: ModelCall) -> ModelCall:
    """The call with its tensors alone, one after the other."""
    return ModelCall(call.site, "__call__", tuple(tensors(call).values()), {})


def check_architecture(architecture: str | None) -> None:
    """Raise TrainingError for an unknown name, before anything runs."""
    if architecture is None or architecture in (DEPLOYED, FRESH):
        return
    if ".py:" in architecture:
        _function(architecture)
        return
    name, _, number = architecture.partition(":")
    if name not in (NARROWER, *BUILT_IN, *TEXT_NETWORKS):
        raise TrainingError(
            f"--architecture {architecture} is unknown; there are {DEPLOYED}, {FRESH}, {NARROWER}, "
            f"{', '.join(BUILT_IN)}, for ids and several inputs {', '.join(TEXT_NETWORKS)} (each but the first two "
            "with :WIDTH if wanted), and file.py:function"
        )
    if number and not (re.fullmatch(r"\d+(\.\d+)?", number) and float(number) > 0):
        raise TrainingError(f"--architecture {architecture}: the width is a number above 0, 1 its usual size")


def usual_architecture(shapes: Shapes) -> str:
    """The architecture of a student if the user names none."""
    if shapes.calls is not None:
        return BAG
    return "cnn" if shapes.is_image else "mlp"


def _copy_of(deployed: Any, fresh: bool) -> nn.Module:
    """A copy in float32 whose every parameter learns. Raise NotCodable if there is nothing to train."""
    deployed = getattr(deployed, "_orig_mod", deployed)  # what torch.compile was given
    if not isinstance(deployed, nn.Module):
        raise NotCodable(
            f"the model is {with_article(type(deployed).__name__)}, not a torch module, so no copy of it can learn: "
            "use --architecture mlp, cnn, resnet18 or file.py:function"
        )
    if not any(parameter.is_floating_point() for parameter in deployed.parameters()):
        raise NotCodable(
            "the deployed model has no parameters to learn (it is frozen or quantized, perhaps): use --architecture "
            "mlp, cnn, resnet18 or file.py:function"
        )
    network = copy.deepcopy(deployed).float()
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.detach_().requires_grad_(True)  # a copied TorchScript module's parameters are not leaves
    if fresh:
        _reset(network)
    return network


def _reset(network: nn.Module) -> None:
    owners = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    stubborn = [type(m).__name__ for m in owners if not hasattr(m, "reset_parameters")]
    if stubborn:
        raise NotCodable(
            f"the weights of {stubborn[0]} in the deployed model cannot be made afresh (it has no reset_parameters, as "
            "TorchScript has none): use --architecture deployed, which starts from them"
        )
    for module in owners:
        module.reset_parameters()  # type: ignore[operator]


def _maker(
    architecture: str, deployed: Any, call: ModelCall, shapes: Shapes
) -> tuple[Callable[[float], CallAdapter | TextAdapter], float | None]:
    """-> a network of any width, and the width if it is a part of the name."""
    check_architecture(architecture)
    if ".py:" in architecture:
        users = _users(architecture, shapes)
        return lambda width: CallAdapter(users(width), call, shapes, plain=True), None
    name, _, number = architecture.partition(":")
    own = float(number) if number else None
    if name == NARROWER:
        return _narrower(deployed, call, shapes), own
    if shapes.calls is not None:
        if name not in TEXT_NETWORKS:
            raise TrainingError(
                f"--architecture {name} is for one floating input of one shape; this model is given "
                f"{', '.join(column.name for column in shapes.calls.columns)}: "
                f"try {', '.join(TEXT_NETWORKS)}, {DEPLOYED}"
            )
        if TEXT_NETWORKS[name] and all(part.kind is not InputKind.IDS for part in shapes.parts):
            raise TrainingError(f"--architecture {name} is for ids, and this model is given numbers only; try {BAG}")
        return lambda width: TextAdapter(
            TextNetwork(shapes.parts, shapes.output, width, TEXT_NETWORKS[name]), shapes.output
        ), own
    one_input, outputs = shapes.one_input, math.prod(shapes.one_output)
    if name in TEXT_NETWORKS or (name != "mlp" and not shapes.is_image):
        kind = "ids" if name in TEXT_NETWORKS else "images"
        raise TrainingError(f"--architecture {name} is for {kind}, not for a model input of {one_input}; try mlp")
    make = BUILT_IN[name]
    return lambda width: CallAdapter(
        ReshapedNetwork(make(one_input, outputs, width), shapes), call, shapes, plain=True
    ), own


def _function(architecture: str) -> Callable[..., Any]:
    """file.py:function, loaded."""
    name, _, function = architecture.rpartition(":")
    file = Path(name)
    spec = importlib.util.spec_from_file_location(f"ts_parity_architecture_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise TrainingError(f"--architecture {architecture}: there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code
        raise TrainingError(f"--architecture {architecture}: {type(error).__name__}: {error}") from error
    make: Any = getattr(module, function, None)
    if not callable(make):
        raise TrainingError(f"--architecture {architecture}: {file} has no function {function}")
    return make  # type: ignore[no-any-return]


def _narrower(deployed: Any, call: ModelCall, shapes: Shapes) -> Callable[[float], CallAdapter]:
    """The deployed class, narrower, where it still runs so."""
    deployed = getattr(deployed, "_orig_mod", deployed)
    if not isinstance(deployed, nn.Module):
        raise NotCodable(
            f"the model is {with_article(type(deployed).__name__)}, not a torch module that could be made narrower"
        )
    outer = {*shapes.output, math.prod(shapes.output), *shapes.input, math.prod(shapes.input)}
    if shapes.calls is not None:
        numbers = [one for one in shapes.calls.columns if one.flat.is_floating_point() or one.flat.is_complex()]
        outer |= {int(side) for column in numbers for side in column.shapes[0]}

    def make(width: float) -> CallAdapter:
        made = CallAdapter(narrowed(deployed, width, frozenset(outer)), call, shapes)
        try:
            with torch.no_grad():
                made.eval()(torch.zeros(1, *shapes.input) if shapes.calls is None else shapes.calls[:1])
            made.train()
        except Exception as error:  # user code that has its sizes written down elsewhere
            raise NotCodable(
                f"the deployed network does not run with narrower layers ({type(error).__name__}: {error}): write it "
                "down as --architecture file.py:function"
            ) from None
        return made

    return make


def _users(architecture: str, shapes: Shapes) -> Callable[[float], nn.Module]:
    """file.py:function, called as function(one input's shape, number of outputs, width); for a model of ids or several
    tensors with a list of GivenTensor in place of the shape.
    """
    make = _function(architecture)
    given = shapes.one_input if shapes.calls is None else [GivenTensor.of(column) for column in shapes.calls.columns]

    def checked(width: float) -> nn.Module:
        try:
            made = make(given, math.prod(shapes.one_output), width)
        except Exception as error:  # user code
            raise TrainingError(f"--architecture {architecture}: {type(error).__name__}: {error}") from error
        if not isinstance(made, nn.Module):
            raise TrainingError(
                f"--architecture {architecture} returned {with_article(type(made).__name__)}, not a torch module"
            )
        return made if shapes.calls is not None else ReshapedNetwork(made, shapes)

    return checked


# ---- built in: make(shape of one input, number of outputs, width) -----------------------------------------------


def mlp(one_input: tuple[int, ...], outputs: int, width: float) -> nn.Module:
    """The paper's: layers of 200 and 100 units, times the width."""
    sizes = [math.prod(one_input), max(1, round(200 * width)), max(1, round(100 * width))]
    layers: list[nn.Module] = [nn.Flatten()]
    for entering, leaving in itertools.pairwise(sizes):
        layers += [nn.Linear(entering, leaving), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def cnn(one_input: tuple[int, ...], outputs: int, width: float) -> nn.Module:
    """Five convolutions of 16, 32, 32, 64, 64 channels times the width; the second and the fourth halve the image."""
    channels = [one_input[0], *(max(1, round(c * width)) for c in (16, 32, 32, 64, 64))]
    layers: list[nn.Module] = []
    for index, (entering, leaving) in enumerate(itertools.pairwise(channels)):
        stride = 2 if index in (1, 3) else 1
        layers += [nn.Conv2d(entering, leaving, 3, stride, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels[-1], outputs))


class _Block(nn.Module):
    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(entering, leaving, 3, stride, 1, bias=False),
            nn.BatchNorm2d(leaving),
            nn.ReLU(),
            nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False),
            nn.BatchNorm2d(leaving),
        )
        self.aside: nn.Module = nn.Identity()
        if stride != 1 or entering != leaving:
            self.aside = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.body(inputs) + self.aside(inputs))


def resnet18(one_input: tuple[int, ...], outputs: int, width: float) -> nn.Module:
    """The paper's for small images: 64 channels times the width, three stages for sides under 32, four otherwise."""
    stages = 3 if min(one_input[1:]) < 32 else 4
    channels = [max(1, round(64 * width)) * 2**stage for stage in range(stages)]
    layers: list[nn.Module] = [
        nn.Conv2d(one_input[0], channels[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels[0]),
        nn.ReLU(),
    ]
    entering = channels[0]
    for stage, leaving in enumerate(channels):
        layers += [_Block(entering, leaving, 1 if stage == 0 else 2), _Block(leaving, leaving, 1)]
        entering = leaving
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(entering, outputs))


TEXT_NETWORKS = {BAG: 0, TRANSFORMER: 2}
"""Names of built-in networks for ids and several inputs, and how many blocks of attention they have."""
BUILT_IN: dict[str, Callable[[tuple[int, ...], int, float], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet18,
}

"""Networks to learn with: the deployed model's own, built-in ones of any width, or the user's `file.py:function`.

A parity model need not share the deployed model's architecture, and a student is smaller by design. Knows torch and
shapes. Knows nothing of codes, losses or archives.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ts_parity.errors import NotCodable, TrainingError
from ts_parity.worker.encoders import in_dtype, model_input, with_input
from ts_parity.worker.outputs import floating_leaf
from ts_parity.worker.watches import ModelCall

DEPLOYED, FRESH = "deployed", "deployed-fresh"


@dataclass(frozen=True)
class Shapes:
    """Of one query: the model's input and raw output, as the handler makes them (a batch axis of 1 included)."""

    given: tuple[int, ...]
    said: tuple[int, ...]

    @property
    def batch_axis(self) -> bool:
        return self.given[:1] == (1,) and self.said[:1] == (1,)

    @property
    def one_input(self) -> tuple[int, ...]:
        return self.given[1:] if self.batch_axis else self.given

    @property
    def one_output(self) -> tuple[int, ...]:
        return self.said[1:] if self.batch_axis else self.said

    @property
    def is_image(self) -> bool:
        return len(self.one_input) == 3 and self.one_input[0] <= 4 and min(self.one_input[1:]) >= 8


class Called(nn.Module):
    """A network and the user's way of calling it: (n, *given) -> (n, *said), both with a batch axis of 1 if it has one.

    It learns in float32, whatever the deployed model serves in. `network` is what is packed.
    """

    def __init__(self, network: nn.Module, call: ModelCall, shapes: Shapes) -> None:
        super().__init__()
        self.network = network
        self._call = in_dtype(call, torch.float32)
        self._shapes = shapes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        like = next(self.network.parameters(), torch.empty(0))
        return _answers(self.network, self._call, self._shapes, inputs.to(like.device, like.dtype))

    def train(self, mode: bool = True) -> Called:
        self.training = mode
        with contextlib.suppress(NotImplementedError):  # an exported program is in one mode for ever
            self.network.train(mode)
        return self


class Deployed:
    """The deployed model as its handler calls it: (n, *given) -> (n, *said). It is asked, neither changed nor moved.

    So nothing is wanted of it but answers: it may be frozen, quantized, compiled. Inputs go to it in the dtype and to
    the device of its handler's own call.
    """

    def __init__(self, model: Any, call: ModelCall, shapes: Shapes) -> None:
        self._model = getattr(model, "_orig_mod", model)  # of torch.compile: compiling again for every shape takes long
        self._call = call
        self._shapes = shapes

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        own = model_input(self._call)
        return _answers(self._model, self._call, self._shapes, inputs.to(own.device, own.dtype)).to(inputs.device)


def _answers(model: Any, call: ModelCall, shapes: Shapes, inputs: torch.Tensor) -> torch.Tensor:
    call = with_input(call, inputs.flatten(0, 1) if shapes.batch_axis else inputs)
    run: Any = model if call.method == "__call__" else getattr(model, call.method)
    return floating_leaf(run(*call.args, **call.kwargs)).float().reshape(-1, *shapes.said)


class Shaped(nn.Module):
    """A built-in network, or the user's own one, behind the shapes of the deployed model's call."""

    def __init__(self, network: nn.Module, shapes: Shapes) -> None:
        super().__init__()
        self.network = network
        self._one_input = shapes.one_input
        self._one_output = shapes.one_output

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
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


def make_called(architecture: str, deployed: Any, call: ModelCall, shapes: Shapes, width: float = 1.0) -> Called:
    """The network of this name, ready to learn.

    `architecture`: deployed (a copy, its weights a start), deployed-fresh (the same with new weights), a built-in NAME
    or NAME:WIDTH (WIDTH 1 is its usual size), or file.py:function. `width`: of a network whose name says none.
    Raise TrainingError or NotCodable.
    """
    if architecture in (DEPLOYED, FRESH):
        return Called(_copy_of(deployed, fresh=architecture == FRESH), call, shapes)
    make, named = _maker(architecture, shapes)
    simple = ModelCall(call.site, "__call__", (model_input(call),), {})
    return Called(Shaped(make(width if named is None else named), shapes), simple, shapes)


def has_width(architecture: str) -> bool:
    """Whether its width is still to be chosen."""
    return ".py:" in architecture or architecture in BUILT_IN


def check_architecture(architecture: str | None) -> None:
    """Raise TrainingError, before anything is run, for a name that there is not."""
    if architecture is None or architecture in (DEPLOYED, FRESH):
        return
    if ".py:" in architecture:
        _function(architecture)
        return
    name, _, number = architecture.partition(":")
    if name not in BUILT_IN:
        raise TrainingError(
            f"--architecture {architecture} is unknown; there are {DEPLOYED}, {FRESH}, {', '.join(BUILT_IN)} (each "
            "with :WIDTH if wanted) and file.py:function"
        )
    if number and not (re.fullmatch(r"\d+(\.\d+)?", number) and float(number) > 0):
        raise TrainingError(f"--architecture {architecture}: the width is a number above 0, 1 its usual size")


def usual_architecture(shapes: Shapes) -> str:
    """For a student of which nothing else was said."""
    return "cnn" if shapes.is_image else "mlp"


def _copy_of(deployed: Any, fresh: bool) -> nn.Module:
    """A copy in float32 whose every parameter learns. Raise NotCodable if there is nothing to train."""
    deployed = getattr(deployed, "_orig_mod", deployed)  # what torch.compile was given
    if not isinstance(deployed, nn.Module):
        raise NotCodable(
            f"the model is a {type(deployed).__name__}, not a torch module, so no copy of it can learn: use "
            "--architecture mlp, cnn, resnet18 or file.py:function"
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


def _maker(architecture: str, shapes: Shapes) -> tuple[Callable[[float], nn.Module], float | None]:
    check_architecture(architecture)
    if ".py:" in architecture:
        return _users(architecture, shapes), None
    name, _, number = architecture.partition(":")
    make, one_input, outputs = BUILT_IN[name], shapes.one_input, math.prod(shapes.one_output)
    if name != "mlp" and not shapes.is_image:
        raise TrainingError(f"--architecture {name} is for images, not for a model input of {one_input}; try mlp")
    return lambda width: make(one_input, outputs, width), float(number) if number else None


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


def _users(architecture: str, shapes: Shapes) -> Callable[[float], nn.Module]:
    """file.py:function, called as function(one input's shape, number of outputs, width)."""
    make = _function(architecture)

    def checked(width: float) -> nn.Module:
        try:
            made = make(shapes.one_input, math.prod(shapes.one_output), width)
        except Exception as error:  # user code
            raise TrainingError(f"--architecture {architecture}: {type(error).__name__}: {error}") from error
        if not isinstance(made, nn.Module):
            raise TrainingError(f"--architecture {architecture} returned a {type(made).__name__}, not a torch module")
        return made

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


BUILT_IN: dict[str, Callable[[tuple[int, ...], int, float], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet18,
}

"""How wide a network may be for its price: by multiplications where torch can count them, else by the clock.

Knows models as functions of a batch of inputs, shapes and clocks. Knows nothing of codes, archives or learning.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ts_parity.errors import TrainingError
from ts_parity.training.architectures import Shapes
from ts_parity.training.counting import counting
from ts_parity.training.inputs import Inputs
from ts_parity.training.text_network import TextAdapter
from ts_parity.wire import Array

NARROWEST, WIDEST = 1 / 64, 16.0
"""Widths that are tried, in shares of the built-in network's own."""
USUAL_BUDGET = 1.0
"""A group costs one deployed inference."""
AS_SMALL_AS_ANY = 1.1
"""Networks that take so little more time than the narrowest spend it on overhead: narrower saves nothing."""
ROUNDS, WARM = 100, 5
PAUSE_S = 0.002
"""Before each run; requests seldom come closer."""
ELSEWHERE = torch.zeros(1 << 20)
"""4 MiB, written before each run, as other processes write between two requests: a worker finds its caches cold. In a
busy loop, one short inference would seem cheaper than it is, beside a group."""
STEPS = 14
"""Halvings, where a width costs what can be counted: it is found to within a twentieth of a per cent."""
SIZED, GLANCE_ROUNDS, SIZING_ROUNDS = 11, 3, 20
"""Widths that are timed where nothing can be counted, and how often each."""
FAR = 4.0
"""Times what would do: no wider network is looked at."""

COUNTED = 5
"""Calls of every length whose multiplications are counted."""

Model = Callable[[Any], Any]
"""Inputs (n) -> (n, *output)."""

_UNCOUNTED = ("rnn", "lstm", "gru", "mkldnn", "pack_mm", "int_mm", "fft")
"""Parts of the names of operators in aten that multiply and that torch's counter does not know."""


def multiplications(model: Model, shapes: Shapes) -> float | None:
    """Multiplications of one inference, counted in the operators that it ran. None: they cannot be counted."""
    watch = _Uncounted()
    # Of texts some of every length, since what one costs may grow faster than its length.
    inputs = torch.zeros(1, *shapes.input) if shapes.calls is None else shapes.calls.spread(COUNTED)
    learning = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    with counting() as counter, watch, torch.no_grad():
        for row in range(len(inputs)):
            model(inputs[row : row + 1])
    if isinstance(model, nn.Module):
        model.train(learning)
    counted = counter.get_total_flops()
    if watch.seen or not (counted or isinstance(model, TextAdapter)):  # ours, which may do nothing but look up
        return None
    return counted / 2 / len(inputs)


def bound(model: Model, inputs: Inputs) -> Callable[[], object]:
    """What there is to time: the model alone where its inputs can be made ready before."""
    own = getattr(model, "bound", None)
    return own(inputs) if own is not None else lambda: model(inputs)


class _Uncounted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operators that may multiply and are not counted: quantized ones, a compiled library's, a fused layer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = func.namespace in ("aten", "prim", "prims")
        self.seen |= not own or any(part in func.__name__ for part in _UNCOUNTED)
        return func(*args, **(kwargs or {}))


def affordable_width(
    make: Callable[[float], Model],
    deployed: Model,
    shapes: Shapes,
    runs: int,
    budget: float | None,
    device: torch.device,
    most: float = WIDEST,
) -> float:
    """The largest width at which `runs` inferences cost at most `budget` deployed ones.

    `budget` None: about one; where not even the narrowest network is so cheap, as wide as costs no more time than that.
    Raise TrainingError, with the least budget that is possible, if there is no such width.
    """
    counts = multiplications(deployed, shapes)
    if counts is not None:

        def counted(width: float) -> float:
            own = multiplications(make(width), shapes)
            return math.inf if own is None else runs * own / counts

        if (width := widest(counted, budget or USUAL_BUDGET, most=most)) is not None:
            return width
        if budget is not None:
            raise _too_small(budget, counted(NARROWEST), "multiplications")

    return by_the_clock(make, deployed, shapes, runs, budget, device, most)


def by_the_clock(
    make: Callable[[float], Model],
    deployed: Model,
    shapes: Shapes,
    runs: int,
    budget: float | None,
    device: torch.device,
    most: float,
) -> float:
    """As `affordable_width`, of what takes time and cannot be counted."""
    inputs = (torch.zeros(runs, *shapes.input) if shapes.calls is None else shapes.calls.typical(runs)).to(device)
    one = bound(deployed, inputs[:1])
    widths, groups = [], []
    for width in np.geomspace(NARROWEST, most, SIZED):
        widths.append(width)
        groups.append(bound(make(width), inputs))
        first, this, alone = usual(in_turn((groups[0], groups[-1], one), device, GLANCE_ROUNDS))
        if this > FAR * max(first, alone * (budget or USUAL_BUDGET)):
            break  # the widest of all may need more time and memory than anybody has
    *groups_s, one_s = usual(in_turn((*groups, one), device, SIZING_ROUNDS))
    costs = np.array(groups_s) / one_s
    least = float(costs.min())
    if budget is not None and least > budget:
        raise _too_small(budget, least, "time")
    return widest_of(widths, costs, budget or max(USUAL_BUDGET, AS_SMALL_AS_ANY * least))


def widest_of(widths: Sequence[float], costs: Array, limit: float) -> float:
    """(m,) rising, (m,) -> the largest width whose cost stays within the limit, between two that were measured by
    their logarithms. What a wider network was seen to do, a narrower one does too: it was kept waiting.
    """
    at_most = np.minimum.accumulate(costs[::-1])[::-1]
    return float(np.exp(np.interp(math.log(limit), np.log(at_most), np.log(widths))))


def widest(cost: Callable[[float], float], limit: float, most: float = WIDEST) -> float | None:
    """The largest width whose cost stays within the limit, by bisection: cost grows with width. None: there is none."""
    low, high = NARROWEST, most
    if cost(low) > limit:
        return None
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def in_turn(runs: Sequence[Callable[[], object]], device: torch.device, rounds: int = ROUNDS) -> Array:
    """-> (rounds, runs): seconds of each, one after the other, over and over: what else the machine does strikes all
    alike. Each begins after a pause, as a worker does: in a tight loop what it needs would still lie in the caches, and
    a single small inference be three times as fast as any that is served.
    """
    with _threads_of_a_worker():
        return np.array([[_seconds(run, device) for run in runs] for _ in range(rounds + WARM)])[WARM:]


def usual(seconds: Array) -> Array:
    """(rounds, ...) -> (...): the lower quartile. On a busy machine much of what lies above is waiting for a turn,
    which long runs have more of than short ones.
    """
    return np.asarray(np.quantile(seconds, 0.25, axis=0))


@contextmanager
def _threads_of_a_worker() -> Iterator[None]:
    """One, unless the environment says otherwise: what `ts-parity` starts has one to a worker, and where workers have
    more, a busy machine leaves them no more than that.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _too_small(budget: float, least: float, of: str) -> TrainingError:
    enough = math.ceil(10 * least) / 10
    return TrainingError(
        f"--budget {budget:g} is too small: a group of even the narrowest network costs {least:.2g} deployed "
        f"inferences in {of}. Give --budget {enough:g} or more, an --architecture of your own, or --code exact"
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    time.sleep(PAUSE_S)
    ELSEWHERE.add_(1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started

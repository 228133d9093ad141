"""Checks whether the same request gets the same answer: random numbers, training mode, state between requests.

A protection answers in another process, at another time, after other requests. So a handler whose answers depend on any
of these can be neither protected nor sent second copies. Knows runs and their answers. Knows nothing of how a run is
made, or of what a code does with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ts_parity.errors import NotRepeatable
from ts_parity.wire import Array
from ts_parity.worker.requests import HandlerRequest
from ts_parity.worker.responses import HandlerResponse
from ts_parity.worker.user_code import functions_in
from ts_parity.worker.verdict import differing, same_raw

_SHOWN = 60


@dataclass(frozen=True)
class ObservedRun:
    """One ordinary run: its answer, its raw output if there was one, the models that were called, by site, and the
    dtype that the output was computed in, as in a frame.
    """

    answer: HandlerResponse
    raw: Array | None = None
    models: dict[str, Any] = field(default_factory=dict)
    computed_in: str = ""


RunOnce = Callable[[HandlerRequest], ObservedRun]
"""Runs one request as always."""


class RandomStates:
    """The states of the global random generators at one moment, to compare with later ones."""

    def __init__(self) -> None:
        self._before = _states()

    def drawn(self) -> list[str]:
        """The libraries from which random numbers have been drawn since."""
        now = _states()
        return [name for name, state in self._before.items() if now.get(name, state) != state]


def check_run(seen: ObservedRun, drawn: Sequence[str], sampled: bool = False) -> None:
    """Check what a single run shows. Raise NotRepeatable."""
    for site, model in seen.models.items():
        if part := in_training_mode(model):
            raise NotRepeatable(
                f"the model is in training mode, in which its {part} answers otherwise each time; write {site}.eval() "
                "where the handler has made it"
            )
    if drawn:
        raise NotRepeatable(
            f"answering a request drew random numbers ({', '.join(drawn)}), so another run of it may answer otherwise"
            + ("" if sampled else "; samples (package --sample) would show whether it does")
        )


def check_repeats(once: RunOnce, samples: Sequence[HandlerRequest], fresh: Callable[[], RunOnce]) -> list[ObservedRun]:
    """Run every sample twice, then all once more in reversed order, with another random seed each time.

    -> the first run of each. Raise NotRepeatable if a later answer differs because of random numbers or state. Times
    and ids differ in every answer, also from those of a `fresh` handler; state comes out the same there.
    """
    order = [*(i for i in range(len(samples)) for _ in range(2)), *reversed(range(len(samples)))]
    seen, drawn_from = _runs(once, samples, order)
    first: dict[int, int] = {}
    varying: list[tuple[int, int, str]] = []
    for position, index in enumerate(order):
        before = first.setdefault(index, position)
        check_run(seen[position], [])
        _check_raw(samples[index], seen[before], seen[position])
        varying += [(before, position, where) for where, _, _ in differing(seen[before].answer, seen[position].answer)]
    # Much harmless code draws from PyTorch's generator, such as each DataLoader. If it mattered, answers would differ.
    check_run(seen[0], [name for name in drawn_from if name != "torch"], sampled=True)
    if varying:
        again, _ = _runs(fresh(), samples, order)
        for before, position, where in varying:
            _check_state(where, drawn_from, *((run[before].answer, run[position].answer) for run in (seen, again)))
    return [seen[first[index]] for index in range(len(samples))]


def in_training_mode(model: Any) -> str:
    """A part of the model that is in training mode and computes differently there; empty if there is none."""
    if not isinstance(model, torch.nn.Module):
        return ""
    parts = ((name, part) for name, part in model.named_modules() if getattr(part, "training", False))
    return next((f"{_kind(part)} {name}".strip() for name, part in parts if _depends_on_mode(part)), "")


def _runs(once: RunOnce, samples: Sequence[HandlerRequest], order: Sequence[int]) -> tuple[list[ObservedRun], set[str]]:
    """-> the runs, and the generators that they drew from without seeding them first."""
    seen, drawn = [], set()
    after: dict[tuple[int, str], bytes] = {}
    with _generators_kept():
        for seed, index in enumerate(order):
            _seed(seed)
            before = RandomStates()
            seen.append(once(samples[index]))
            now = _states()
            # Code that seeds a generator itself leaves it in the same state wherever it began.
            drawn |= {name for name in before.drawn() if after.get((index, name), now[name]) != now[name]}
            after |= {(index, name): state for name, state in now.items()}
    return seen, drawn


def _check_raw(sample: HandlerRequest, one: ObservedRun, other: ObservedRun) -> None:
    if (one.raw is None) != (other.raw is None):
        raise NotRepeatable(f"{sample.id} reached the model once, and not when it was run again")
    if not same_raw(one.raw, other.raw, one.computed_in):
        raise NotRepeatable(
            "the model is not deterministic, or keeps something between requests: one request run again gave another "
            "raw output"
        )


def _check_state(
    where: str,
    drawn_from: set[str],
    one: tuple[HandlerResponse, HandlerResponse],
    other: tuple[HandlerResponse, HandlerResponse],
) -> None:
    """Compare answers to one request at two positions, by one handler and by a fresh one, with the same seeds."""
    within = {place: (a, b) for place, a, b in differing(*one)}
    across = {place for earlier, later in zip(one, other, strict=True) for place, _, _ in differing(earlier, later)}
    if where in across:
        return
    a, b = (repr(value)[:_SHOWN] for value in within[where])
    why = (
        f"draws random numbers ({', '.join(sorted(drawn_from))})" if drawn_from else "keeps something between requests"
    )
    raise NotRepeatable(f"the handler {why}: run again, one request was answered with {b} in place of {a} at {where}")


def _depends_on_mode(part: torch.nn.Module) -> bool:
    code = getattr(part, "code", None)  # of a script
    if isinstance(code, str):
        return "training" in code
    if isinstance(part, (torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)):
        return getattr(part, "p", 1.0) > 0
    if isinstance(part, torch.nn.modules.batchnorm._NormBase):
        return part.track_running_stats
    if type(part).__module__.startswith("torch.nn."):
        return isinstance(getattr(part, "dropout", 0.0), float) and getattr(part, "dropout", 0.0) > 0
    return any("training" in function.__code__.co_names for function in functions_in(type(part)))


def _kind(part: torch.nn.Module) -> str:
    return str(getattr(part, "original_name", type(part).__name__))


def _states() -> dict[str, bytes]:
    torches = [torch.get_rng_state(), *_of_gpus()]
    kind, keys, position, *gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": b"".join(state.numpy().tobytes() for state in torches),
        "numpy": keys.tobytes() + repr((kind, position, gauss)).encode(),
        "random": repr(hash(random.getstate())).encode(),
    }


def _seed(seed: int) -> None:
    """As `torch.manual_seed` does, which for every kind of accelerator that is not here writes down the whole stack:
    milliseconds, hundreds of times for a handler.
    """
    torch.default_generator.manual_seed(seed)
    if torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def _generators_kept() -> Iterator[None]:
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate(), _of_gpus()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
        if kept[3]:
            torch.cuda.set_rng_state_all(kept[3])


def _of_gpus() -> list[torch.Tensor]:
    """The states of the GPUs' generators. A worker on the CPU does not ask the driver for GPUs."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

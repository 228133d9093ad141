"""What a protection learns from: request bodies, taken through the archive's own handler.

Runs user code behind the boundary and keeps what the deployed model was given and said, on disk, so that neither
memory nor an interruption limits it. Knows nothing of codes, losses or weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ts_parity.errors import NotCodable, TrainingError, TsParityError
from ts_parity.training.bodies import Body
from ts_parity.wire import Array
from ts_parity.worker.answers import BadAnswer
from ts_parity.worker.encoders import check_other_arguments, model_input
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.outputs import to_array
from ts_parity.worker.watches import ModelCall

MAX_REFUSED = 0.05
"""Share of bodies the handler may refuse before training stops: beyond it the folder is probably not what was meant."""
TOGETHER = 64
"""Bodies per run of a handler that is proven to answer batches rightly."""


@dataclass(frozen=True)
class Observations:
    """What the deployed model did with n bodies.

    `inputs` (n, *one input), `outputs` (n, *one raw output): each as the handler made it, a batch axis of 1 included;
    what is half precision there is float32 here.
    `kept`: which of the bodies these are. `call` is one of the model calls, to be repeated with other inputs.
    """

    inputs: torch.Tensor
    outputs: Array
    kept: Array
    call: ModelCall
    refused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.kept)


def observe(
    handler: OfflineHandler, bodies: Sequence[Body], folder: Path, progress: Callable[[int], object] = lambda n: None
) -> Observations:
    """Run every body once; keep model inputs and raw outputs in `folder`. A finished folder is read, not made again.

    `progress` is told how many more bodies are done. Raise TrainingError if too many bodies are refused, or inputs or
    outputs differ in shape or are not finite; raise NotCodable if the handler cannot be coded at all.
    """
    if not (folder / _INDEX).exists():
        seen = _Store(folder, len(bodies))
        for chunk, results in _runs(handler, bodies):
            for number, body, result in zip(chunk, (bodies[i] for i in chunk), results, strict=True):
                seen.add(number, body, result)
            progress(len(chunk))
        seen.finish()
    else:
        progress(len(bodies))
    index = json.loads((folder / _INDEX).read_text())
    kept = np.array(index["kept"])
    inputs = np.load(folder / "inputs.npy", mmap_mode="r+")[: len(kept)]
    outputs = np.load(folder / "outputs.npy")[: len(kept)]
    call = _captured(handler, bodies[int(kept[0])])  # it holds live objects and cannot be kept on disk
    return Observations(torch.from_numpy(inputs), outputs, kept, call, tuple(index["refused"]))


def glance(handler: OfflineHandler, bodies: Sequence[Body], wanted: int) -> Observations | None:
    """The same of the first few bodies that are answered alike, kept nowhere; None if none is answered.

    Raise NotCodable if the handler cannot be coded at all.
    """
    seen: dict[int, tuple[Array, Array]] = {}
    for number, body in enumerate(bodies):
        each = _run_alone(handler, body)
        if each.given is None or each.raw is None:
            continue
        pair = to_array(each.given), each.raw
        if any([part.shape for part in pair] != [part.shape for part in other] for other in seen.values()):
            break  # which bodies these are is said when all are observed
        seen[number] = pair
        if len(seen) == wanted:
            break
    if not seen:
        return None
    inputs, outputs = (np.stack(part) for part in zip(*seen.values(), strict=True))
    call = _captured(handler, bodies[min(seen)])
    return Observations(torch.from_numpy(inputs), outputs, np.array([*seen]), call)


def _captured(handler: OfflineHandler, body: Body) -> ModelCall:
    return handler.capture(handler.request(body.read(), body.content_type))


_INDEX = "index.json"


@dataclass(frozen=True)
class _Seen:
    """One body: what the model was given and said and how it was called, or why there is nothing."""

    given: torch.Tensor | None = None
    raw: Array | None = None
    call: ModelCall | None = None
    problem: str = ""


def _runs(handler: OfflineHandler, bodies: Sequence[Body]) -> Iterator[tuple[range, list[_Seen]]]:
    """Bodies in chunks, together where the handler is proven to treat a batch like single requests."""
    requests = [handler.request(body.read(), body.content_type) for body in bodies[:2]]
    together = TOGETHER if len(bodies) > 2 and handler.judge(requests).batched else 1
    for start in range(0, len(bodies), together):
        chunk = range(start, min(start + together, len(bodies)))
        results = _run_together(handler, [bodies[i] for i in chunk]) if together > 1 else None
        yield chunk, results or [_run_alone(handler, bodies[i]) for i in chunk]


def _run_together(handler: OfflineHandler, bodies: Sequence[Body]) -> list[_Seen] | None:
    """None: something was wrong with one of them; alone, each gets its own answer."""
    try:
        record, answers = handler.record_batch([handler.request(b.read(), b.content_type) for b in bodies])
        given = model_input(record.calls[0]).detach() if record.raw is not None else None
    except Exception:
        return None
    rows = len(bodies)
    if given is None or record.raw is None or any(answer.status >= 400 for answer in answers):
        return None
    if given.shape[:1] != (rows,) or record.raw.shape[:1] != (rows,):
        return None
    return [_Seen(given[i : i + 1], record.raw[i : i + 1], record.calls[0]) for i in range(rows)]


def _run_alone(handler: OfflineHandler, body: Body) -> _Seen:
    try:
        record, answer = handler.record(handler.request(body.read(), body.content_type))
    except BadAnswer as error:  # TorchServe would answer 503
        return _Seen(problem=str(error))
    except TsParityError:
        raise
    except Exception as error:  # user code's own way of refusing a body; TorchServe would answer 503
        return _Seen(problem=f"{type(error).__name__}: {error}")
    if record.raw is not None and answer.status < 400:
        return _Seen(model_input(record.calls[0]).detach(), record.raw, record.calls[0])
    if record.raw is None and record.refusal and answer.status < 400:
        raise NotCodable(f"this handler cannot be protected by a trained model: {record.refusal}")
    return _Seen(problem=f"status {answer.status}")


@dataclass
class _Store:
    """Two growing arrays on disk, and which bodies their rows belong to."""

    folder: Path
    total: int
    kept: list[int] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    first: str = ""
    call: ModelCall | None = None
    inputs: Array | None = None
    outputs: Array | None = None

    def add(self, number: int, body: Body, seen: _Seen) -> None:
        if seen.given is None or seen.raw is None:
            self.refused.append((body.name, seen.problem))
            self._check_refused(final=False)
            return
        given, raw = to_array(seen.given), seen.raw
        if self.inputs is None or self.outputs is None:
            self.first, self.call = body.name, seen.call
            self.folder.mkdir(parents=True, exist_ok=True)
            self.inputs = self._new("inputs.npy", given)
            self.outputs = self._new("outputs.npy", raw)
        self._check_alike(body, given, raw)
        if self.call is not None and seen.call is not None:
            check_other_arguments(self.call, seen.call)
        self.inputs[len(self.kept)], self.outputs[len(self.kept)] = given, raw
        self.kept.append(number)

    def finish(self) -> None:
        self._check_refused(final=True)
        if not self.kept:
            raise TrainingError("the handler answered none of the bodies")
        for array in (self.inputs, self.outputs):
            assert isinstance(array, np.memmap)
            array.flush()
        (self.folder / _INDEX).write_text(
            json.dumps({"kept": self.kept, "refused": [": ".join(each) for each in self.refused]})
        )

    def _new(self, name: str, one: Array) -> Array:
        made: Array = np.lib.format.open_memmap(self.folder / name, "w+", one.dtype, (self.total, *one.shape))
        return made

    def _check_refused(self, final: bool) -> None:
        if len(self.refused) <= MAX_REFUSED * self.total:
            return
        reasons = Counter(why for _, why in self.refused).most_common(3)
        named = ", ".join(f"{why} ({count} times)" for why, count in reasons)
        raise TrainingError(
            f"the handler refused {len(self.refused)} of {self.total} bodies{'' if final else ' so far'} (at most "
            f"{MAX_REFUSED:.0%} may be): {named}; such as {', '.join(name for name, _ in self.refused[:3])}"
        )

    def _check_alike(self, body: Body, given: Array, raw: Array) -> None:
        assert self.inputs is not None
        assert self.outputs is not None
        if given.shape != self.inputs.shape[1:] or given.dtype != self.inputs.dtype:
            raise TrainingError(
                f"{body.name} gives a model input of {given.dtype} {given.shape}, {self.first} one of "
                f"{self.inputs.dtype} {self.inputs.shape[1:]}: a code needs inputs of one shape"
            )
        if raw.shape != self.outputs.shape[1:]:
            raise TrainingError(
                f"{body.name} gives a raw output of {raw.shape}, {self.first} one of {self.outputs.shape[1:]}"
            )
        if not np.isfinite(raw).all():
            raise TrainingError(f"{body.name}: the deployed model's output is not finite (NaN or infinity)")

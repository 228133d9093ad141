"""Training data: request bodies, taken through the archive's own handler.

Runs user code behind the boundary and keeps the deployed model's inputs and outputs on disk, so that neither memory nor
an interruption limits it. Knows nothing of codes, losses or weights.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ts_parity.codes import ErasureCode
from ts_parity.errors import NotCodable, TrainingError, TsParityError
from ts_parity.training.bodies import RequestBody
from ts_parity.training.inputs import (
    Given,
    Inputs,
    Writer,
    check_alike,
    columns_of,
    inputs_of,
    read_columns,
    tensor_bytes,
)
from ts_parity.training.split import Keys
from ts_parity.wire import Array
from ts_parity.worker.encoders import (
    check_one_input,
    check_other_arguments,
    encode,
    mismatched_slots,
    place_name,
    tensors,
)
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.responses import BadHandlerResponse
from ts_parity.worker.watches import ModelCall

MAX_REFUSED = 0.05
"""Share of bodies the handler may refuse before training stops: beyond it the folder is probably not what was meant."""
TOGETHER = 64
"""Bodies per run of a handler that is proven to answer batches rightly."""


@dataclass(frozen=True)
class Observations:
    """What the deployed model did with n bodies.

    `inputs`, and `outputs` (n, *one raw output): each as the handler made it, a batch axis of 1 included; what is half
    precision there is float32 here. `kept`: which of the bodies these are. `call` is one of the model calls, to be
    repeated with other inputs.
    """

    inputs: Inputs
    outputs: Array
    kept: Array
    call: ModelCall
    column: int = 0
    """Which of a call's tensors `inputs` are, where they are one."""
    refused: tuple[str, ...] = ()
    keys: Keys = ()
    """Of each: its bytes, and what the model was given. Where either is the same, so is the body (see `split`): what
    clients send may differ in nothing but a form's boundary, or the spaces in JSON."""

    def __len__(self) -> int:
        return len(self.kept)

    def examples(self) -> list[int]:
        """A few rows that stand for all: of texts one of middle length, a short one and a long one."""
        if isinstance(self.inputs, torch.Tensor):
            return [*range(min(2, len(self)))]
        short, middle, long = (self.inputs.spread(3).rows.tolist() * 3)[:3]
        return list(dict.fromkeys((middle, short, long)))


def some_calls(handler: OfflineHandler, bodies: Sequence[RequestBody], count: int = 8) -> list[ModelCall]:
    """The model calls of a few bodies, from the first to the last; what the handler refuses is passed over."""
    calls = []
    for at in np.linspace(0, len(bodies) - 1, min(count, len(bodies))).astype(int):
        body = bodies[int(at)]
        try:
            calls.append(handler.capture(handler.request(body.read(), body.content_type)))
        except Exception:  # user code's own way of refusing; what is wrong with it shows when all are observed
            continue
    return calls


def not_encodable(code: ErasureCode, calls: Sequence[ModelCall]) -> str | None:
    """Why no group of such calls can be encoded, and what to do instead; None if it can, or nothing is known."""
    if not calls:
        return None
    group = dict(enumerate([calls[slot % len(calls)] for slot in range(code.k)]))
    try:
        check_one_input(calls)
        for other in calls[1:]:
            if why := next(iter(mismatched_slots({0: calls[0], 1: other}).values()), None):
                raise NotCodable(f"{why}: lengths differ from request to request; use code student or exact")
        encode([*group.values()], code)
    except NotCodable as refusal:
        return f"code {code.name} with k = {code.k}: {refusal}"
    return None


def observe(
    handler: OfflineHandler,
    bodies: Sequence[RequestBody],
    folder: Path,
    progress: Callable[[int], object] = lambda n: None,
) -> Observations:
    """Run every body once; keep model inputs and raw outputs in `folder`. A finished folder is read, not made again.

    `progress` is called with the number of bodies done since. Raise TrainingError if too many bodies are refused, or
    inputs or outputs differ in shape or are not finite; raise NotCodable if the handler cannot be coded at all.
    """
    if not (folder / _INDEX).exists():
        seen = _ObservationWriter(folder, len(bodies))
        for chunk, results in _runs(handler, bodies):
            for number, body, result in zip(chunk, (bodies[i] for i in chunk), results, strict=True):
                seen.add(number, body, result)
            progress(len(chunk))
        seen.finish()
    else:
        progress(len(bodies))
    index = json.loads((folder / _INDEX).read_text())
    kept = np.array(index["kept"])
    inputs, column = inputs_of(read_columns(folder, index["given"]))
    outputs = np.load(folder / "outputs.npy")[: len(kept)]
    call = _captured(handler, bodies[int(kept[0])])  # it holds live objects and cannot be kept on disk
    keys = [tuple(each) for each in index["keys"]]
    return Observations(inputs, outputs, kept, call, column, tuple(index["refused"]), keys)


def observe_few(handler: OfflineHandler, bodies: Sequence[RequestBody], wanted: int) -> Observations | None:
    """The same of the first few bodies that are answered, kept nowhere. None if none is, or if all of them give the
    model the same, which says nothing of what others give it.

    Raise NotCodable if the handler cannot be coded at all, TrainingError if these bodies differ as no bodies may.
    """
    seen: dict[int, tuple[Given, Array]] = {}
    for number, body in enumerate(bodies):
        each = _run_alone(handler, body)
        if each.given is None or each.raw is None:
            continue
        if seen:
            first = min(seen)
            _check_raw(body.name, each.raw.shape, bodies[first].name, seen[first][1].shape)
            check_alike(body.name, each.given, bodies[first].name, seen[first][0])
        seen[number] = each.given, each.raw
        if len(seen) == wanted:
            break
    if not seen:
        return None
    given, outputs = zip(*seen.values(), strict=True)
    columns = columns_of(given)
    if all(column.constant for column in columns):
        return None
    inputs, column = inputs_of(columns)
    call = _captured(handler, bodies[min(seen)])
    return Observations(inputs, np.stack(outputs), np.array([*seen]), call, column)


def _captured(handler: OfflineHandler, body: RequestBody) -> ModelCall:
    return handler.capture(handler.request(body.read(), body.content_type))


_INDEX = "index.json"


def given_to(call: ModelCall) -> Given:
    """What is half precision there is float32 here. Raise NotCodable if the model is given no numbers (texts, say)."""
    halves, found = (torch.float16, torch.bfloat16), tensors(call)
    if not found:
        kinds = ", ".join(type(value).__name__ for value in (*call.args, *call.kwargs.values())) or "nothing"
        raise NotCodable(
            f"the model ({call.name}) is given no tensor, array or list of numbers that a network could learn from "
            f"({kinds}); use code exact"
        )
    each = ((place_name(place), tensor.detach().cpu()) for place, tensor in found.items())
    return tuple((name, tensor.float() if tensor.dtype in halves else tensor) for name, tensor in each)


@dataclass(frozen=True)
class _Observed:
    """One body: the model's input, output and call, or why there is none."""

    given: Given | None = None
    raw: Array | None = None
    call: ModelCall | None = None
    problem: str = ""


def _runs(handler: OfflineHandler, bodies: Sequence[RequestBody]) -> Iterator[tuple[range, list[_Observed]]]:
    """Bodies in chunks, together where the handler is proven to treat a batch like single requests."""
    requests = [handler.request(body.read(), body.content_type) for body in bodies[:2]]
    together = TOGETHER if len(bodies) > 2 and handler.judge(requests).batched else 1
    alone = _shapes(given_to(handler.capture(requests[0]))) if together > 1 else []
    for start in range(0, len(bodies), together):
        chunk = range(start, min(start + together, len(bodies)))
        results = _run_together(handler, [bodies[i] for i in chunk], alone) if together > 1 else None
        yield chunk, results or [_run_alone(handler, bodies[i]) for i in chunk]


def _key(content_type: str | None, data: bytes) -> str:
    return hashlib.sha256(f"{content_type}\0".encode() + data).hexdigest()


def _key_of_given(given: Given) -> str:
    digest = hashlib.sha256()
    for name, tensor in given:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _shapes(given: Given) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for _, tensor in given]


def _run_together(
    handler: OfflineHandler, bodies: Sequence[RequestBody], alone: list[tuple[int, ...]]
) -> list[_Observed] | None:
    """None: something was wrong with one of them; alone, each gets its own answer. Or they are padded to the longest,
    so that a row is not what the model is given for that body `alone` (these shapes, of one that was).
    """
    try:
        record, answers = handler.record_batch([handler.request(b.read(), b.content_type) for b in bodies])
    except Exception:
        return None
    rows, raw = len(bodies), record.raw
    if raw is None or raw.shape[:1] != (rows,) or any(answer.status >= 400 for answer in answers):
        return None
    given = given_to(record.calls[0])
    if [(rows, *shape[1:]) for shape in alone] != _shapes(given) or any(shape[:1] != (1,) for shape in alone):
        return None
    each = [tuple((name, tensor[i : i + 1]) for name, tensor in given) for i in range(rows)]
    return [_Observed(one, raw[i : i + 1], record.calls[0]) for i, one in enumerate(each)]


def _run_alone(handler: OfflineHandler, body: RequestBody) -> _Observed:
    request = handler.request(body.read(), body.content_type)
    try:
        record, answer = handler.record(request)
    except BadHandlerResponse as error:  # TorchServe would answer 503
        return _Observed(problem=str(error))
    except TsParityError:
        raise
    except Exception as error:  # user code's own way of refusing a body; TorchServe would answer 503
        if _answers_unwatched(handler, body):
            raise NotCodable(
                "this handler cannot be protected by a trained model: it fails while its model is watched, and not "
                f"otherwise ({type(error).__name__}: {error}); use code exact"
            ) from error
        return _Observed(problem=f"{type(error).__name__}: {error}")
    if record.raw is not None and answer.status < 400:
        return _Observed(given_to(record.calls[0]), record.raw, record.calls[0])
    if record.raw is None and record.refusal and answer.status < 400:
        why = handler.why_not(request, record)
        remedy = "" if "use code exact" in why else "; or use code exact"
        raise NotCodable(f"this handler cannot be protected by a trained model: {why}{remedy}")
    return _Observed(problem=f"status {answer.status}")


def _answers_unwatched(handler: OfflineHandler, body: RequestBody) -> bool:
    try:
        return handler.answer(handler.request(body.read(), body.content_type)).status < 400
    except Exception:  # its own error then
        return False


class _ObservationWriter:
    """Writes inputs and outputs to disk as they come, with the bodies that the rows belong to."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder = folder
        self._total = total
        self._given = Writer(folder)
        self._kept: list[int] = []
        self._keys: list[tuple[str, str]] = []
        self._refused: list[tuple[str, str]] = []
        self._first = ""
        self._call: ModelCall | None = None
        self._outputs: Array | None = None

    def add(self, number: int, body: RequestBody, seen: _Observed) -> None:
        if seen.given is None or seen.raw is None:
            self._refused.append((body.name, seen.problem))
            self._check_refused(final=False)
            return
        self._given.add(body.name, seen.given)
        if self._outputs is None:
            self._first, self._call = body.name, seen.call
            shape = (self._total, *seen.raw.shape)
            self._outputs = np.lib.format.open_memmap(self._folder / "outputs.npy", "w+", seen.raw.dtype, shape)
        _check_raw(body.name, seen.raw.shape, self._first, self._outputs.shape[1:])
        if not np.isfinite(seen.raw).all():
            raise TrainingError(f"{body.name}: the deployed model's output is not finite (NaN or infinity)")
        if self._call is not None and seen.call is not None:
            check_other_arguments(self._call, seen.call)
        self._outputs[len(self._kept)] = seen.raw
        self._kept.append(number)
        self._keys.append((_key(body.content_type, body.read()), _key_of_given(seen.given)))

    def finish(self) -> None:
        self._check_refused(final=True)
        if not self._kept:
            raise TrainingError("the handler answered none of the bodies")
        assert isinstance(self._outputs, np.memmap)
        self._outputs.flush()
        refused = [": ".join(each) for each in self._refused]
        told = {"kept": self._kept, "refused": refused, "keys": self._keys, "given": self._given.finish()}
        (self._folder / _INDEX).write_text(json.dumps(told))

    def _check_refused(self, final: bool) -> None:
        if len(self._refused) <= MAX_REFUSED * self._total:
            return
        reasons = Counter(why for _, why in self._refused).most_common(3)
        named = ", ".join(f"{why} ({count} times)" for why, count in reasons)
        raise TrainingError(
            f"the handler refused {len(self._refused)} of {self._total} bodies{'' if final else ' so far'} (at most "
            f"{MAX_REFUSED:.0%} may be): {named}; such as {', '.join(name for name, _ in self._refused[:3])}"
        )


def _check_raw(body: str, shape: tuple[int, ...], first_body: str, first: tuple[int, ...]) -> None:
    """Raise TrainingError for raw outputs of two shapes, such as those of a model whose handler pools its tokens."""
    if shape != first:
        raise TrainingError(
            f"{body} gives a raw output of {shape}, {first_body} one of {first}: a network can learn outputs of one "
            "shape only. If the handler pools them (a mean over tokens, say), let the model do that, or pad all bodies "
            "to one length; else use code exact"
        )

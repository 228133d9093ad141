"""What a parity model learns from: request bodies, taken through the archive's own handler.

Reads files and runs user code behind the boundary. Knows nothing of codes, losses or weights.
"""

from __future__ import annotations

import csv
import mimetypes
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ts_parity.errors import NotCodable, TrainingError
from ts_parity.wire import Array
from ts_parity.worker.encoders import model_input
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.watches import ModelCall

MAX_REFUSED = 0.05
"""Share of bodies the handler may refuse before training stops: beyond it the folder is probably not what was meant."""


@dataclass(frozen=True)
class Body:
    """One file as a request body, and the content type that a client would send with it."""

    path: Path
    content_type: str | None


@dataclass(frozen=True)
class Observations:
    """What the deployed model did with n bodies.

    `inputs` (n, *one input), `outputs` (n, *one raw output): each as the handler made it, a batch axis of 1 included.
    `call` is one of the model calls, to be repeated with other inputs.
    """

    bodies: tuple[Body, ...]
    inputs: torch.Tensor
    outputs: Array
    call: ModelCall
    refused: int


def list_bodies(folder: Path) -> list[Body]:
    """Every file below `folder` in name order, hidden ones aside. Raise TrainingError if there is none."""
    if not folder.is_dir():
        raise TrainingError(f"--inputs {folder} is not a folder; give a folder of files, each one request body")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not files:
        raise TrainingError(f"--inputs {folder} holds no files; give a folder of files, each one request body")
    return [Body(path, mimetypes.guess_type(path.name)[0]) for path in files]


def observe(handler: OfflineHandler, bodies: Sequence[Body], progress: Iterable[Body] | None = None) -> Observations:
    """Run every body once and keep the model's input and raw output.

    Raise TrainingError if too many bodies are refused, or inputs or outputs differ in shape or are not finite; raise
    NotCodable if the handler cannot be coded at all.
    """
    inputs: list[torch.Tensor] = []
    outputs: list[Array] = []
    kept: list[Body] = []
    reasons: Counter[str] = Counter()
    call: ModelCall | None = None
    for body in progress if progress is not None else bodies:
        record, answer = handler.record(handler.request(body.path.read_bytes(), body.content_type))
        if record.raw is None or answer.status >= 400:
            if record.raw is None and record.refusal and answer.status < 400:
                raise NotCodable(f"this handler cannot be coded with sum: {record.refusal}")
            reasons[f"{body.path.name}: status {answer.status}"] += 1
            continue
        call = record.calls[0]
        inputs.append(model_input(call).detach().cpu())
        outputs.append(record.raw)
        kept.append(body)
    _check_refused(reasons, len(bodies))
    if call is None:
        raise TrainingError("the handler answered none of the bodies")
    _check_alike(kept, inputs, outputs)
    return Observations(tuple(kept), torch.stack(inputs), np.stack(outputs), call, sum(reasons.values()))


def read_labels(file: Path, bodies: Sequence[Body], folder: Path) -> Array:
    """-> (n,) the class index of each body, from a CSV with the header file,label.

    Files are named relative to the CSV or to the folder of bodies. Raise TrainingError for what is missing or wrong.
    """
    by_path: dict[Path, int] = {}
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            for line, row in enumerate(csv.DictReader(opened), start=2):
                name, label = row.get("file"), row.get("label")
                if name is None or label is None or not label.strip().isdigit():
                    raise TrainingError(f"{file} line {line}: expected file,label with a class index, got {row}")
                for root in (file.parent, folder):
                    by_path[(root / name).resolve()] = int(label)
    except OSError as error:
        raise TrainingError(f"cannot read the labels: {error}") from None
    missing = [body.path for body in bodies if body.path.resolve() not in by_path]
    if missing:
        raise TrainingError(f"{file} has no label for {len(missing)} of {len(bodies)} bodies, such as {missing[0]}")
    return np.array([by_path[body.path.resolve()] for body in bodies])


def _check_refused(reasons: Counter[str], total: int) -> None:
    refused = sum(reasons.values())
    if refused > MAX_REFUSED * total:
        named = "; ".join(reason for reason, _ in reasons.most_common(5))
        raise TrainingError(
            f"the handler refused {refused} of {total} bodies (at most {MAX_REFUSED:.0%} may be): {named}"
        )


def _check_alike(bodies: Sequence[Body], inputs: Sequence[torch.Tensor], outputs: Sequence[Array]) -> None:
    for body, given, output in zip(bodies, inputs, outputs, strict=True):
        if given.shape != inputs[0].shape or given.dtype != inputs[0].dtype:
            raise TrainingError(
                f"{body.path} gives a model input of {tuple(given.shape)}, {bodies[0].path} one of "
                f"{tuple(inputs[0].shape)}: only inputs of one shape can be added"
            )
        if output.shape != outputs[0].shape:
            raise TrainingError(
                f"{body.path} gives a raw output of {output.shape}, {bodies[0].path} one of {outputs[0].shape}"
            )
        if not np.isfinite(output).all():
            raise TrainingError(f"{body.path}: the deployed model's output is not finite (NaN or infinity)")

"""One training job: observe, split, fit each row, score, pack, check what was packed, and only then put it in place.

Knows the order of things. What each step does is in `data`, `fit`, `evaluate` and `packing`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ts_parity import __version__
from ts_parity.codes import Code, Family, make_code
from ts_parity.errors import NotCodable, TrainingError
from ts_parity.torchserve.archive import Archive, extract_archive, read_archive
from ts_parity.training import TrainSettings
from ts_parity.training.data import Body, Observations, list_bodies, observe, read_labels
from ts_parity.training.evaluate import evaluate
from ts_parity.training.fit import Knobs, ParityModel, draw_groups, fit, parity_outputs
from ts_parity.training.packing import pack_all
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler

SCORED_GROUPS = 2000
FEWEST_BODIES = 20


def run(settings: TrainSettings) -> dict[str, Any]:
    """See `training.train`."""
    code = make_code(settings.code, settings.k, settings.r)
    if settings.out.exists() and not settings.force:
        raise TrainingError(f"{settings.out} exists; choose another --out, or --force to replace it")
    archive = read_archive(settings.archive)
    bodies = list_bodies(settings.inputs)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the finished folder can be renamed into it in one step.
    with tempfile.TemporaryDirectory(prefix=".ts-parity-train-", dir=settings.out.parent) as scratch:
        work, made = Path(scratch) / "archive", Path(scratch) / "out"
        made.mkdir()
        extract_archive(settings.archive, work)
        report = _job(settings, code, archive, bodies, work, made)
        (made / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _put_in_place(made, settings.out)
    return report


def _job(
    settings: TrainSettings, code: Code, archive: Archive, bodies: list[Body], work: Path, made: Path
) -> dict[str, Any]:
    started = time.monotonic()
    report: dict[str, Any] = {
        "package": __version__,
        "code": code.name,
        "k": code.k,
        "r": code.r,
        "coefficients": [list(row) for row in code.coefficients],
        "deployed": asdict(archive.protects()),
        "seed": settings.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "bodies": len(bodies),
    }
    models: list[ParityModel] = []
    samples: Sequence[Body] = bodies[:2]
    if code.family is Family.PARITY:
        device = _device(settings.device)
        with OfflineHandler(work, device.index if device.type == "cuda" else None) as handler:
            seen = observe(handler, bodies, _bar(bodies, "deployed model", settings.progress))
            if len(seen.bodies) < max(FEWEST_BODIES, 4 * code.k):
                raise TrainingError(f"{len(seen.bodies)} usable bodies are too few; give some hundreds at least")
            samples = seen.bodies[:2]
            knobs = Knobs() if settings.steps is None else replace(Knobs(), steps=settings.steps)
            split = _split(len(seen.bodies), knobs.held_out, settings.seed)
            models = _fit_rows(settings, code, handler, seen, split, knobs, device)
            report |= {"knobs": asdict(knobs), "device": str(device), "refused": seen.refused}
            report |= _score(settings, code, handler, seen, split[1], models, device)
    else:
        report |= {"agreement": 1.0, "note": f"code {code.name} answers with the deployed model itself"}
    report["archives"] = pack_all(settings, code, archive, work, models, samples, made)
    report["seconds"] = round(time.monotonic() - started, 1)
    return report


def _fit_rows(
    settings: TrainSettings,
    code: Code,
    handler: OfflineHandler,
    seen: Observations,
    split: tuple[Array, Array],
    knobs: Knobs,
    device: torch.device,
) -> list[ParityModel]:
    deployed = handler.model
    if not isinstance(deployed, torch.nn.Module):
        raise NotCodable(f"the model is a {type(deployed).__name__}, not a torch module; it cannot be distilled")
    models = []
    for row, coefficients in enumerate(code.coefficients):
        with tqdm(
            total=knobs.steps, desc=f"parity model {row}", disable=not settings.progress, file=sys.stderr, unit="step"
        ) as bar:

            def told(step: int, loss: float, agreement: float, bar: Any = bar) -> None:
                bar.update(step - bar.n)
                bar.set_postfix(loss=f"{loss:.3f}", agreement=f"{agreement:.3f}")

            models.append(fit(deployed, seen, coefficients, split, knobs, settings.seed + row, device, told))
    return models


def _score(
    settings: TrainSettings,
    code: Code,
    handler: OfflineHandler,
    seen: Observations,
    held: Array,
    models: Sequence[ParityModel],
    device: torch.device,
) -> dict[str, Any]:
    """On bodies no model has learned from: the folder given for it, or the held-out share (which F may have seen)."""
    if settings.score is not None:
        bodies = list_bodies(settings.score)
        seen, folder = observe(handler, bodies, _bar(bodies, "scoring", settings.progress)), settings.score
        held = np.arange(len(seen.bodies))
        scored = f"{len(held)} bodies of {settings.score.name}"
    else:
        folder, scored = settings.inputs, f"{len(held)} held-out bodies of {settings.inputs.name}"
    labels = None if settings.labels is None else read_labels(settings.labels, seen.bodies, folder)
    groups = draw_groups(held, code.k, np.random.default_rng(settings.seed + 1), SCORED_GROUPS)
    inputs = seen.inputs.to(device)
    parities = {
        members: {
            row: parity_outputs(model, inputs, groups, [c if i < members else 0.0 for i, c in enumerate(weights)])
            for row, (model, weights) in enumerate(zip(models, code.coefficients, strict=True))
        }
        for members in range(1, code.k + 1)
    }
    scores = evaluate(code, seen.outputs[groups], parities, None if labels is None else labels[groups])
    return {**scores, "scored_on": scored, "scored_groups": SCORED_GROUPS}


def _split(count: int, held_out: float, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(count)
    held = max(2, int(count * held_out))
    return order[held:], order[:held]


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"--device {name} cannot be used here: {error}") from None
    return torch.device("cuda:0") if name == "cuda" else device


def _bar(bodies: Sequence[Body], what: str, shown: bool) -> Iterable[Body]:
    yield from tqdm(bodies, desc=what, disable=not shown, file=sys.stderr, unit="body")


def _put_in_place(made: Path, out: Path) -> None:
    if out.exists():
        shutil.rmtree(out)
    made.rename(out)

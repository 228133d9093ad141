"""From trained networks to archives, each loaded again and compared before it is called done.

Knows serialised files and archives. Knows nothing of losses or scores.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ts_parity.codes import Code, Family
from ts_parity.errors import ArchiveError, NotCodable, TrainingError
from ts_parity.torchserve.archive import Archive, Sample, extract_archive, wrap_deployed, wrap_parity
from ts_parity.training import TrainSettings
from ts_parity.training.data import Body
from ts_parity.training.fit import ParityModel
from ts_parity.wire import Array
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.outputs import take


def pack_all(
    settings: TrainSettings,
    code: Code,
    archive: Archive,
    work: Path,
    models: Sequence[ParityModel],
    bodies: Sequence[Body],
    out: Path,
) -> dict[str, Any]:
    """Write the wrapped deployed archive and one parity archive per row into `out`. -> their file names.

    `work` is the extracted archive, `bodies` become the samples of the workers' self-test.
    """
    samples = [Sample(body.path, body.content_type) for body in bodies]
    deployed = wrap_deployed(settings.archive, out, samples=samples, secret=settings.secret)
    base = settings.name or f"{archive.model_name}-parity"
    names = []
    for row in range(code.r):
        name = base if code.r == 1 else f"{base}-{row}"
        common: dict[str, Any] = {
            "code": code.name,
            "k": code.k,
            "r": code.r,
            "row": row,
            "coefficients": code.coefficients or None,
            "partial": True,
            "samples": samples,
            "secret": settings.secret,
        }
        if code.family is Family.PARITY:
            _pack_parity(settings.archive, archive, work, models[row], bodies[0], out, name, common)
        else:
            wrap_parity(settings.archive, out, name, **common)
        names.append(f"{name}.mar")
    return {"deployed": deployed.name, "parity": names}


def _pack_parity(
    source: Path,
    archive: Archive,
    work: Path,
    model: ParityModel,
    body: Body,
    out: Path,
    name: str,
    common: dict[str, Any],
) -> None:
    """In the form the user's handler loads its own model in, where that works; else as a TorchScript file beside it."""
    with tempfile.TemporaryDirectory(prefix="ts-parity-weights-") as scratch:
        expected = _answers(work, model, body)
        own = Path(scratch) / "own"
        if _save_as_deployed(archive, work, model.network, own):
            packed = wrap_parity(source, out, name, serialized_file=own, **common)
            if _loads_as(packed, body, expected):
                return
        script = Path(scratch) / "parity.pt"
        _save_script(work, model, body, script)
        wrap_parity(source, out, name, parity_model=script, **common)
        loaded = torch.jit.load(script)  # type: ignore[no-untyped-call]
        if not np.allclose(_answers(work, loaded, body), expected, rtol=1e-4, atol=1e-4):
            raise TrainingError("the parity model as TorchScript does not answer as trained; it cannot be packed")


def _save_as_deployed(archive: Archive, work: Path, network: torch.nn.Module, file: Path) -> bool:
    """Whether the archive's serialised file is of a kind that can be written for `network`; then it was."""
    if archive.serialized_file is None:
        return False
    network = network.to("cpu")
    original = work / archive.serialized_file
    if _is_torchscript(original):
        if not isinstance(network, torch.jit.ScriptModule):
            return False
        torch.jit.save(network, str(file))
        return True
    try:
        saved = torch.load(original, map_location="cpu", weights_only=True)
    except Exception:  # any pickled object or other format: what it raises is the unpickler's choice
        return False
    if not isinstance(saved, dict) or saved.keys() != network.state_dict().keys():
        return False
    torch.save(network.state_dict(), file)
    return True


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as opened:
        return any(name.endswith("/constants.pkl") for name in opened.namelist())


def _save_script(work: Path, model: ParityModel, body: Body, file: Path) -> None:
    network = model.network.to("cpu")
    if isinstance(network, torch.jit.ScriptModule):
        torch.jit.save(network, str(file))
        return
    with OfflineHandler(work) as handler:
        call = handler.capture(handler.request(body.path.read_bytes(), body.content_type))
    if call.method not in ("__call__", "forward"):
        raise NotCodable(f"the handler calls the model's {call.method}, which a TorchScript parity model cannot have")
    try:
        traced = torch.jit.trace(network, example_inputs=call.args, example_kwarg_inputs=call.kwargs or None)  # type: ignore[no-untyped-call]
    except Exception as error:  # tracing runs the network: whatever it raises is the reason
        raise NotCodable(
            f"the archive's serialised file is of a form that cannot be written for a parity model, and the model "
            f"cannot be traced either: {error}"
        ) from None
    torch.jit.save(traced, str(file))


def _loads_as(packed: Path, body: Body, expected: Array) -> bool:
    """Whether the packed archive's own handler, loading its own file, runs the parity model that was trained."""
    with tempfile.TemporaryDirectory(prefix="ts-parity-check-") as scratch:
        extract_archive(packed, Path(scratch))
        try:
            with OfflineHandler(Path(scratch)) as handler:
                record, _ = handler.record(handler.request(body.path.read_bytes(), body.content_type))
        except (ArchiveError, NotCodable, RuntimeError, ValueError, KeyError, OSError):
            return False
    return record.raw is not None and np.allclose(record.raw, expected, rtol=1e-4, atol=1e-4)


def _answers(work: Path, model: Any, body: Body) -> Array:
    """What a network answers when the user's handler calls it with this one body."""
    network = (model.network if isinstance(model, ParityModel) else model).to("cpu").eval()
    with OfflineHandler(work) as handler:
        call = handler.capture(handler.request(body.path.read_bytes(), body.content_type))
    run = network if call.method == "__call__" else getattr(network, call.method)
    with torch.inference_mode():
        raw, _ = take(run(*call.args, **call.kwargs))
    return raw

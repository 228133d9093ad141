"""From trained networks to archives, each loaded again and compared before it is called done.

Knows serialised files and archives. Knows nothing of losses or scores.
"""

from __future__ import annotations

import copy
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from ts_parity.codes import OWN_ROUNDINGS, Code
from ts_parity.errors import ArchiveError, NotCodable, TrainingError
from ts_parity.exclusion import declared_never_code
from ts_parity.torchserve.archive import Archive, Protects, Sample, extract_archive, wrap_deployed, wrap_parity
from ts_parity.torchserve.mar import opened_zip
from ts_parity.training import TrainSettings
from ts_parity.training.architectures import Shaped
from ts_parity.training.bodies import Body
from ts_parity.training.promise import NOTHING_PROMISED, Promise
from ts_parity.wire import ROUNDOFF, Array
from ts_parity.worker.encoders import in_dtype, model_input
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.outputs import take
from ts_parity.worker.standin import CALL
from ts_parity.worker.verdict import CLOSE, close
from ts_parity.worker.watches import ModelCall


@dataclass(frozen=True)
class Packer:
    """Writes archives into `out`. `work`: the extracted archive; `bodies`: samples for the workers' self-test."""

    settings: TrainSettings
    archive: Archive
    protects: Protects
    work: Path
    bodies: Sequence[Body]
    out: Path

    def deployed(self) -> str:
        """The wrapped deployed archive. -> its file name."""
        with _samples(self.bodies) as samples:
            never_code = declared_never_code(self.settings.never_code)
            source, secret = self.settings.archive, self.settings.secret
            return wrap_deployed(source, self.out, samples=samples, secret=secret, never_code=never_code).name

    def protection(
        self,
        code: Code,
        row: int,
        network: nn.Module | None,
        name: str,
        cost: float | None,
        promised: Promise = NOTHING_PROMISED,
    ) -> str:
        """The archive of one row of a code; no network: the deployed model itself. -> its file name.

        In the form in which the user's handler loads its own model, where that works; else as TorchScript beside it.
        """
        with _samples(self.bodies) as samples, tempfile.TemporaryDirectory(prefix="ts-parity-weights-") as scratch:
            options: dict[str, Any] = {
                "code": code.name,
                "k": code.k,
                "r": code.r,
                "row": row,
                "coefficients": code.coefficients or None,
                "partial": True,
                "samples": samples,
                "secret": self.settings.secret,
                "never_code": declared_never_code(self.settings.never_code),
                "cost": cost,
                "agreement": promised.agreement,
                "tolerance": promised.tolerance,
                "protects": self.protects,
            }
            source = self.settings.archive
            if network is None:
                return wrap_parity(source, self.out, name, **options).name
            call = in_dtype(_call(self.work, self.bodies[0]), torch.float32)  # as it was trained
            if isinstance(network, Shaped):
                call = ModelCall(call.site, CALL, (model_input(call),), {})
            expected = _answer(network, call)
            own = Path(scratch) / "own"
            if _save_as_deployed(self.archive, self.work, network, call, own):
                packed = wrap_parity(source, self.out, name, serialized_file=own, **options)
                if _loads_as(packed, self.bodies[0], expected):
                    return packed.name
            script = Path(scratch) / "other.pt"
            torch.jit.save(_as_script(network, call), str(script))
            loaded = torch.jit.load(script)  # type: ignore[no-untyped-call]
            if not _same(_answer(loaded, ModelCall(call.site, "__call__", call.args, call.kwargs)), expected):
                raise TrainingError("the network as TorchScript does not answer as trained; it cannot be packed")
            return wrap_parity(source, self.out, name, parity_model=script, **options).name


@contextmanager
def _samples(bodies: Sequence[Body]) -> Iterator[list[Sample]]:
    """Bodies as files, which may have come from within a zip or an array."""
    with tempfile.TemporaryDirectory(prefix="ts-parity-samples-") as scratch:
        samples = []
        for number, body in enumerate(bodies):
            # Bodies of several folders may have the same name.
            path = Path(scratch) / str(number) / PurePosixPath(body.name).name
            path.parent.mkdir()
            path.write_bytes(body.read())
            samples.append(Sample(path, body.content_type))
        yield samples


def _call(work: Path, body: Body) -> ModelCall:
    with OfflineHandler(work) as handler:
        return handler.capture(handler.request(body.read(), body.content_type))


def _answer(network: Any, call: ModelCall) -> Array:
    """What a network answers when the user's handler calls it with this one body."""
    network = network.to("cpu").eval()
    run = network if call.method == "__call__" else getattr(network, call.method, network)
    with torch.inference_mode():
        raw, _ = take(run(*call.args, **call.kwargs))
    return raw


def _save_as_deployed(archive: Archive, work: Path, network: nn.Module, call: ModelCall, file: Path) -> bool:
    """Whether the archive's serialised file is of a kind that can be written for `network`; then it was."""
    if archive.serialized_file is None:
        return False
    original = work / archive.serialized_file
    if _is_torchscript(original):
        if call.method not in ("__call__", "forward"):
            return False
        script = _as_script(network, call)
        if isinstance(network, torch.jit.ScriptModule):
            script = copy.deepcopy(network)
            _take_dtypes(script, torch.jit.load(str(original), map_location="cpu"))  # type: ignore[no-untyped-call]
        torch.jit.save(script, str(file))
        return True
    try:
        saved = torch.load(original, map_location="cpu", weights_only=True)
    except Exception:  # any pickled object or other format: what it raises is the unpickler's choice
        return False
    if not isinstance(saved, dict) or saved.keys() != network.state_dict().keys():
        return False
    torch.save({name: value.to(saved[name].dtype) for name, value in network.state_dict().items()}, file)
    return True


def _take_dtypes(network: nn.Module, original: nn.Module) -> None:
    """The handler calls what it loads in the dtype of its own weights."""
    dtypes = {name: value.dtype for name, value in original.state_dict().items()}
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        value.data = value.data.to(dtypes.get(name, value.dtype))


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with opened_zip(file) as opened:
        return any(name.endswith("/constants.pkl") for name in opened.namelist())


def _as_script(network: nn.Module, call: ModelCall) -> Any:
    if isinstance(network, torch.jit.ScriptModule):
        return network.to("cpu")
    if call.method not in ("__call__", "forward"):
        raise NotCodable(f"the handler calls the model's {call.method}, which a TorchScript model cannot have")
    try:
        return torch.jit.trace(  # type: ignore[no-untyped-call]
            network.to("cpu").eval(), example_inputs=call.args, example_kwarg_inputs=call.kwargs or None
        )
    except Exception as error:  # tracing runs the network: whatever it raises is the reason
        raise NotCodable(
            f"the archive's serialised file is of a form that cannot be written for another model, and the network "
            f"cannot be traced either: {error}"
        ) from None


def _loads_as(packed: Path, body: Body, expected: Array) -> bool:
    """Whether the packed archive's own handler, loading its own file, runs the network that was trained."""
    with tempfile.TemporaryDirectory(prefix="ts-parity-check-") as scratch:
        extract_archive(packed, Path(scratch))
        try:
            with OfflineHandler(Path(scratch)) as handler:
                record, _ = handler.record(handler.request(body.read(), body.content_type))
        except (ArchiveError, NotCodable, RuntimeError, ValueError, KeyError, AttributeError, TypeError, OSError):
            return False
    return record.raw is not None and _same(record.raw, expected, ROUNDOFF.get(record.computed_in, 0.0))


def _same(one: Array, other: Array, roundoff: float = 0.0) -> bool:
    """`roundoff`: of the dtype in which one of them was computed, layer by layer."""
    return close(one, other, max(CLOSE, OWN_ROUNDINGS * roundoff))

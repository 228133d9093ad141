"""From trained networks to archives, each loaded again and compared before it is called done.

Knows serialised files and archives. Knows nothing of losses or scores.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from ts_parity.codes import OWN_ROUNDINGS, ErasureCode, RowErrors
from ts_parity.confidence import Confidence
from ts_parity.errors import NotCodable, TrainingError
from ts_parity.exclusion import declared_never_code
from ts_parity.torchserve.archive import (
    Archive,
    ProtectedModel,
    SampleRequest,
    extract_archive,
    wrap_deployed,
    wrap_parity,
)
from ts_parity.torchserve.weights import WeightsFormat, format_of
from ts_parity.training import TrainSettings
from ts_parity.training.architectures import CallAdapter, plain_call
from ts_parity.training.bodies import RequestBody
from ts_parity.training.promise import NOTHING_PROMISED, Promise
from ts_parity.training.text_network import TextAdapter
from ts_parity.wire import ROUNDOFF, Array
from ts_parity.worker.encoders import in_dtype, tensors, with_tensors
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.outputs import floating_leaf, take
from ts_parity.worker.protections import device_constants
from ts_parity.worker.stand_in import CALL
from ts_parity.worker.verdict import CLOSE, close
from ts_parity.worker.watches import ModelCall


@dataclass(frozen=True)
class Packer:
    """Writes archives into `out`. `work`: the extracted archive; `bodies`: samples for the workers' self-test;
    `serves`: the kind of device that prices are of.
    """

    settings: TrainSettings
    archive: Archive
    protects: ProtectedModel
    work: Path
    bodies: Sequence[RequestBody]
    out: Path
    serves: str

    def deployed(self) -> str:
        """The wrapped deployed archive. -> its file name."""
        with _samples(self.bodies) as samples:
            never_code = declared_never_code(self.settings.never_code)
            return wrap_deployed(
                self.settings.archive,
                self.out,
                samples=samples,
                secret=self.settings.secret,
                declaration=self.settings.declaration,
                never_code=never_code,
            ).name

    def protection(
        self,
        code: ErasureCode,
        row: int,
        model: CallAdapter | TextAdapter | None,
        name: str,
        price: Callable[[Path], float | None],
        promised: Promise = NOTHING_PROMISED,
        errors: RowErrors | None = None,
        confidence: Confidence | None = None,
    ) -> str:
        """The archive of one row of a code; no model: the deployed model itself. -> its file name.

        `price` is asked with the archive what a group costs, which is then written into it.

        In the form in which the user's handler loads its own model, where that works; else as TorchScript beside it.
        Each of `bodies` is answered by what was packed as by what was trained: a trace may hold for one length only.
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
                "declaration": self.settings.declaration,
                "never_code": declared_never_code(self.settings.never_code),
                "agreement": promised.agreement,
                "tolerance": promised.tolerance,
                "row_errors": errors,
                "confidence": None if confidence is None else confidence.as_json(),
                "protects": self.protects,
            }
            source = self.settings.archive
            if model is None:
                return self._priced(wrap_parity(source, self.out, name, **options), price, options)
            calls = _calls(self.work, self.bodies, self.settings.declaration)
            network = model.network.to("cpu").eval()
            expected = [_answer(network, plain_call(call) if model.plain else call) for call in calls]
            own = Path(scratch) / "own"
            if _save_as_deployed(self.archive, self.work, model, calls[0], own):
                options["serialized_file"] = own
                packed = wrap_parity(source, self.out, name, **options)
                if _loads_as(packed, self.bodies, expected):
                    return self._priced(packed, price, options)
                del options["serialized_file"]
            script = Path(scratch) / "other.pt"
            torch.jit.save(_beside(model, calls[0]), str(script))
            loaded = torch.jit.load(script)  # type: ignore[no-untyped-call]
            for body, call, raw in zip(self.bodies, calls, expected, strict=True):
                if not _same(_answer(loaded, plain_call(call)), raw):
                    raise TrainingError(
                        f"the network as TorchScript does not answer {body.name} as trained, perhaps since it takes "
                        "inputs of one length only; it cannot be packed"
                    )
            options["parity_model"] = script
            return self._priced(wrap_parity(source, self.out, name, **options), price, options)

    def _priced(self, packed: Path, price: Callable[[Path], float | None], options: Mapping[str, Any]) -> str:
        """Measured, and packed again with what was found. `options`: those that it was packed with."""
        if (cost := price(packed)) is not None:
            wrap_parity(self.settings.archive, self.out, packed.stem, cost=cost, cost_on=self.serves, **options)
        return packed.name


@contextmanager
def _samples(bodies: Sequence[RequestBody]) -> Iterator[list[SampleRequest]]:
    """Bodies as files, which may have come from within a zip or an array."""
    with tempfile.TemporaryDirectory(prefix="ts-parity-samples-") as scratch:
        samples = []
        for number, body in enumerate(bodies):
            # Bodies of several folders may have the same name.
            path = Path(scratch) / str(number) / PurePosixPath(body.name).name
            path.parent.mkdir()
            path.write_bytes(body.read())
            samples.append(SampleRequest(path, body.content_type))
        yield samples


def _calls(work: Path, bodies: Sequence[RequestBody], declaration: Mapping[str, str]) -> list[ModelCall]:
    with OfflineHandler(work, declared=declaration) as handler:
        captured = [handler.capture(handler.request(body.read(), body.content_type)) for body in bodies]
    # As it was trained. Much user code takes a GPU wherever there is one, and what is packed is compared on the CPU.
    return [in_dtype(call, torch.float32, torch.device("cpu")) for call in captured]


def _answer(network: Any, call: ModelCall) -> Array:
    """What a network answers when the user's handler calls it with this one body."""
    run = network if call.method == "__call__" else getattr(network, call.method, network)
    with torch.inference_mode():
        raw, _ = take(run(*call.args, **call.kwargs), call.output)
    return raw


def _save_as_deployed(
    archive: Archive, work: Path, model: CallAdapter | TextAdapter, call: ModelCall, to: Path
) -> bool:
    """Whether the archive's serialised file is of a kind that can be written for `model`; then it was."""
    network = model.network
    if archive.serialized_file is None:
        return False
    original = work / archive.serialized_file
    with original.open("rb") as file:
        is_script = format_of(file) is WeightsFormat.SCRIPT
    if is_script:
        if call.method not in ("__call__", "forward"):
            return False
        try:
            script = _traced(_signed(network, call) if model.plain else network, call.args, call.kwargs)
        except (NotCodable, SyntaxError):  # what a script cannot be called with, or named by
            return False
        own = isinstance(network, torch.jit.ScriptModule)
        if not own and device_constants(script):  # the user's handler loads it as it is; beside, a worker moves it
            return False
        if own:
            script = copy.deepcopy(network)
            _take_dtypes(script, torch.jit.load(str(original), map_location="cpu"))  # type: ignore[no-untyped-call]
        torch.jit.save(script, str(to))
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickles, an estimator's say: they are seen to be none of torch's
            saved = torch.load(original, map_location="cpu", weights_only=True)
    except Exception:  # any pickled object or other format: what it raises is the unpickler's choice
        return False
    if not isinstance(saved, dict) or saved.keys() != network.state_dict().keys():
        return False
    torch.save({name: value.to(saved[name].dtype) for name, value in network.state_dict().items()}, to)
    return True


def _take_dtypes(network: nn.Module, original: nn.Module) -> None:
    """The handler calls what it loads in the dtype of its own weights."""
    dtypes = {name: value.dtype for name, value in original.state_dict().items()}
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        value.data = value.data.to(dtypes.get(name, value.dtype))


def _beside(model: CallAdapter | TextAdapter, call: ModelCall) -> Any:
    """As TorchScript that is called with the tensors of a call, one after the other."""
    network: nn.Module = model.network if model.plain else _PlainCall(model.network, call)
    return _traced(network, tuple(tensors(call).values()), {})


class _PlainCall(nn.Module):
    """The deployed model's own class, called with the tensors of a call alone, by whatever method; all else is as in
    this call. It answers with the part of its output that is coded: any other container might not be traced.
    """

    def __init__(self, network: nn.Module, call: ModelCall) -> None:
        super().__init__()
        self.network = network
        self._call = call

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        call = with_tensors(self._call, dict(zip(tensors(self._call), given, strict=True)))
        run = self.network if call.method == CALL else getattr(self.network, call.method)
        return floating_leaf(run(*call.args, **call.kwargs), call.output)


def _signed(network: nn.Module, call: ModelCall) -> nn.Module:
    """A plain network that is called as the handler calls its own, by the names that it uses.

    Raise SyntaxError for a name that cannot be a parameter's.
    """

    def forward(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return network(*plain_call(ModelCall(call.site, CALL, tuple(args), kwargs)).args)

    names = [f"argument_{place}" for place in range(len(call.args))]
    named = ", ".join(f"{name!r}: {name}" for name in call.kwargs)
    scope: dict[str, Any] = {"run": forward}
    # A trace takes the names of parameters from the function, and nothing else tells it what they are.
    head = f"def forward(self, {', '.join([*names, *call.kwargs])}):"
    exec(f"{head} return run([{', '.join(names)}], {{{named}}})", scope)
    signed = type("Signed", (nn.Module,), {"forward": scope["forward"]})()
    signed.network = network
    return signed  # type: ignore[no-any-return]


def _traced(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(network, torch.jit.ScriptModule):
        return network
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention's own fast way is for one set of lengths
    try:
        with torch.no_grad():
            return torch.jit.trace(  # type: ignore[no-untyped-call]
                network, example_inputs=args or None, example_kwarg_inputs=kwargs or None
            )
    except Exception as error:  # tracing runs the network: whatever it raises is the reason
        raise NotCodable(
            f"the archive's serialised file is of a form that cannot be written for another model, and the network "
            f"cannot be traced either: {error}"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _loads_as(packed: Path, bodies: Sequence[RequestBody], expected: Sequence[Array]) -> bool:
    """Whether the packed archive's handler, loading its own file, runs the trained network."""
    with tempfile.TemporaryDirectory(prefix="ts-parity-check-") as scratch:
        extract_archive(packed, Path(scratch))
        try:
            with OfflineHandler(Path(scratch)) as handler:
                records = [handler.record(handler.request(each.read(), each.content_type))[0] for each in bodies]
        except Exception:  # what user code says to a model of another kind is up to it
            return False
    return all(
        record.raw is not None and _same(record.raw, raw, ROUNDOFF.get(record.computed_in, 0.0))
        for record, raw in zip(records, expected, strict=True)
    )


def _same(one: Array, other: Array, roundoff: float = 0.0) -> bool:
    """`roundoff`: of the dtype in which one of them was computed, layer by layer."""
    return close(one, other, max(CLOSE, OWN_ROUNDINGS * roundoff))

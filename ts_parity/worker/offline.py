"""A user's handler outside TorchServe: loaded in this process from an extracted archive, behind the same boundary.

Training uses it, so that model inputs and raw outputs come from the very code that serves. Knows extracted archives and
TorchServe's context. Knows nothing of training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import ts
from ts.context import Context
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.utils.util import get_yaml_config

from ts_parity.errors import ArchiveError
from ts_parity.wire import Array, Headers, Part
from ts_parity.worker.boundary import Boundary, RecordedRun, load_entry_point
from ts_parity.worker.repeatable import ObservedRun
from ts_parity.worker.requests import HandlerRequest, request_of
from ts_parity.worker.responses import HandlerResponse, prediction_of, run
from ts_parity.worker.selftest import judge_deployed, record_many, why_not
from ts_parity.worker.settings import declaration
from ts_parity.worker.verdict import HandlerVerdict
from ts_parity.worker.watches import ModelCall


class OfflineHandler:
    """A context manager: the archive's modules are importable while it is open, and unloaded afterwards.

    `folder` is an extracted archive, plain or wrapped; of a wrapped one the user's own handler is loaded.
    """

    def __init__(self, folder: Path, gpu_id: int | None = None, declared: Mapping[str, str] | None = None) -> None:
        """`declared`: more declarations than the archive has, in the form of `settings.declaration`."""
        self._more = declared
        self.folder = folder.resolve()
        self._gpu_id = gpu_id
        self._context = make_context(self.folder, gpu_id)
        self.manifest = self._context.manifest
        section = (self._context.model_yaml_config or {}).get("ts_parity") or {}
        self.manifest["model"]["handler"] = section.get("handler", self.manifest["model"].get("handler"))
        self._modules = set(sys.modules)
        sys.path.insert(0, str(self.folder))
        try:
            with working_in(self.folder):
                entry = load_entry_point(self.manifest["model"]["handler"], self._context)
        except BaseException:
            self.close()
            raise
        self.boundary = Boundary(entry, **{**declaration(section), **(declared or {})})

    def __enter__(self) -> OfflineHandler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def request(self, body: bytes, content_type: str | None = None, headers: Headers = ()) -> HandlerRequest:
        """A request body as the handler would see it under TorchServe."""
        typed = (("content-type", content_type), *headers) if content_type else headers
        return request_of(Part(typed, body), "offline")

    def answer(self, request: HandlerRequest) -> HandlerResponse:
        """The ordinary answer."""
        return self._run(request, self.boundary.plain)

    def prediction(self, request: HandlerRequest) -> Callable[[], object]:
        """The ordinary answer, and nothing beside it: for measurements."""
        return prediction_of(self._context, request, self.boundary.plain, self.folder)

    def record(self, request: HandlerRequest, keep_inputs: bool = True) -> tuple[RecordedRun, HandlerResponse]:
        """One ordinary run: model inputs (`calls`), the raw output or why there is none, and the answer.

        A handler may create its model in its first request, or reload it until a flag is set; then the request is run
        again.
        """
        record, answer = self._recorded(request, keep_inputs)
        if not record.existed and record.raw is None:
            record, answer = self._recorded(request, keep_inputs)
        return record, answer

    def _recorded(self, request: HandlerRequest, keep_inputs: bool) -> tuple[RecordedRun, HandlerResponse]:
        records: list[RecordedRun] = []

        def entry(data: Any, context: Any) -> Any:
            records.append(self.boundary.record(data, context, keep_inputs))
            return records[0].answer

        answer = self._run(request, entry)
        return records[0], answer

    def record_batch(self, requests: list[HandlerRequest]) -> tuple[RecordedRun, list[HandlerResponse]]:
        """Several requests in one run, for handlers whose verdict is `batched`."""
        with self._inside():
            return record_many(self.boundary, self._context, requests)

    def capture(self, request: HandlerRequest) -> ModelCall:
        """The model call that the request leads to, without making it. `encoders.model_input` takes its tensor."""
        calls: list[ModelCall] = []

        def entry(data: Any, context: Any) -> list[bytes]:
            calls.append(self.boundary.capture(data, context))
            return [b""]

        self._run(request, entry)
        return calls[0]

    def finish(self, request: HandlerRequest, raw: Array) -> HandlerResponse:
        """The answer that the handler would give if its model returned `raw`."""
        return self._run(request, lambda data, context: self.boundary.finish(data, context, raw))

    def why_not(self, request: HandlerRequest, record: RecordedRun) -> str:
        """Why a recorded run gave no raw output, and the line to declare, if one helps."""
        with self._inside():
            return why_not(self.boundary, self._context, request, record)

    def judge(self, requests: list[HandlerRequest]) -> HandlerVerdict:
        """The same self-test as in a worker."""
        verdict = HandlerVerdict()
        with self._inside():
            judge_deployed(self.boundary, verdict, self._context, requests, lambda: self.another().once)
        return verdict

    def another(self) -> OfflineHandler:
        """A new object of the same handler, with its own modules."""
        return self.on(self._gpu_id)

    def on(self, gpu_id: int | None) -> OfflineHandler:
        """Another one, on this device."""
        with without_modules_of(self.folder):
            made = OfflineHandler(self.folder, gpu_id, self._more)
            made.close()  # its modules are unloaded already when this block ends
        return made

    def once(self, request: HandlerRequest) -> ObservedRun:
        """One ordinary run, in the form that `repeatable` compares."""
        record, answer = self.record(request, keep_inputs=False)
        return ObservedRun(answer, record.raw, record.models, record.computed_in)

    def model_of(self, call: ModelCall) -> Any:
        """The user's model object behind a call; for a method that is kept as a function, its module."""
        model = self.boundary.called(call)
        owner = getattr(model, "__self__", None)
        is_forward = isinstance(owner, torch.nn.Module) and model in (owner.forward, owner.__call__)
        return owner if is_forward else model

    def replaced(self, model: Any) -> AbstractContextManager[None]:
        """While it lasts, this model replaces the handler's own."""
        return self.boundary.replaced(model)

    def close(self) -> None:
        """Unload the archive's modules, so that another archive may have modules of the same names."""
        if str(self.folder) in sys.path:
            sys.path.remove(str(self.folder))
        for name in modules_of(self.folder) - self._modules:
            del sys.modules[name]

    def _run(self, request: HandlerRequest, entry: Callable[[Any, Any], Any]) -> HandlerResponse:
        with self._inside():
            return run(self._context, [request], entry)[0]

    def _inside(self) -> AbstractContextManager[None]:
        return working_in(self.folder)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change to this folder, as workers do: handlers open files by relative paths."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    except SystemExit as ended:
        if ended.code == 128 + signal.SIGTERM:  # a SIGTERM, not the handler's doing
            raise
        raise RuntimeError(f"it called sys.exit({ended.code!r})") from ended
    finally:
        os.chdir(before)


@contextmanager
def without_modules_of(folder: Path) -> Iterator[None]:
    """While it lasts, the archive's modules are imported again; afterwards the previous ones are back."""
    before = {name: sys.modules.pop(name) for name in modules_of(folder)}
    try:
        yield
    finally:
        for name in modules_of(folder):
            del sys.modules[name]
        sys.modules.update(before)


def modules_of(folder: Path) -> set[str]:
    """Names of the imported modules that come from the archive, without ours, which an archive may contain."""
    inside = os.path.join(os.path.realpath(folder), "")
    files = [(name, getattr(module, "__file__", None)) for name, module in [*sys.modules.items()]]
    return {
        name
        for name, file in files
        if isinstance(file, str)
        and name.partition(".")[0] != "ts_parity"
        and _real_folder(os.path.dirname(file)).startswith(inside)
    }


def _real_folder(folder: str) -> str:
    return _realpath(folder if os.path.isabs(folder) else os.path.abspath(folder))


@lru_cache(maxsize=1 << 14)
def _realpath(folder: str) -> str:
    """Cached: thousands of modules are checked each time, and realpath reads the disk."""
    return os.path.join(os.path.realpath(folder), "")


def make_context(folder: Path, gpu_id: int | None) -> Any:
    """TorchServe's context for a worker of this extracted archive. Raise ArchiveError if it is none."""
    manifest = _manifest(folder)
    return _context(folder, manifest, _config(folder, manifest), gpu_id)


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / "MAR-INF" / "MANIFEST.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(manifest["model"]["handler"], str):
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ArchiveError(f"{folder} is not an extracted model archive: {file} is missing or names no handler")


def _config(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    name = manifest["model"].get("configFile")
    return dict(get_yaml_config(str(folder / name)) or {}) if name else {}


def _context(folder: Path, manifest: dict[str, Any], config: dict[str, Any], gpu_id: int | None) -> Any:
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    name = manifest["model"].get("modelName", "model")
    metrics.model_name = name
    return Context(name, str(folder), manifest, 1, gpu_id, ts.__version__, True, metrics, config)

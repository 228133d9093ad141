"""The handler of an emulated accelerator: it answers with what the archive's own handler says, and takes as long as it
is told to.

This file runs inside an archive that `ts_parity.lab.emulation` has made, so it stands alone: the standard library, what
TorchServe has, and the wire format of groups, which every archive that gets groups brings along.

Inference is a wait and not a computation, so many machines fit on a few cores. Its time counts from when the machine is
free: what the archive's own handler computes is part of it. All models of one machine take turns at it, as on one
accelerator (a lock on a file, which the kernel lifts from a worker that is killed). Describing oneself and finishing an
answer run no model and take no time of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MACHINE = "TS_PARITY_EMULATED_MACHINE"
"""The environment variable that names an instance's machine file. Without one every worker is a machine of its own."""
SECTION = "ts_parity_emulation"
"""Of the archive's config YAML: the archive's own handler and how long it takes."""
CALM: dict[str, Any] = {"seed": 0, "started_at": 0.0, "slow": []}


class EmulatedMachine:
    """What an instance runs on: its file, read again when it has changed, and whose turn it is."""

    def __init__(self, file: str | None) -> None:
        self._file = file
        self._changed_at = -1
        self._read: dict[str, Any] = dict(CALM)

    def state(self) -> tuple[dict[str, Any], bool]:
        """-> what the file says, and whether that is new."""
        changed_at = -1 if self._file is None else os.stat(self._file).st_mtime_ns
        if self._file is None or changed_at == self._changed_at:
            return self._read, False
        with open(self._file, encoding="utf-8") as file:
            self._read = {**CALM, **json.load(file)}
        self._changed_at = changed_at
        return self._read, True

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        with open(f"{self._file}.lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class EmulatedWorker:
    """One model on one machine."""

    def __init__(self, context: Any) -> None:
        self._says: dict[str, Any] = context.model_yaml_config[SECTION]
        context.manifest["model"]["handler"] = self._says["handler"]
        self._name = f"{context.manifest['model']['modelName']} {os.environ.get(MACHINE, os.getpid())}"
        self._machine = EmulatedMachine(os.environ.get(MACHINE))
        self._rng = random.Random(f"0 {self._name}")
        self._entry = _load(self._says["handler"], context)

    def answer(self, data: Any, context: Any) -> Any:
        state, new = self._machine.state()
        if new:  # with the same seed, the same draws
            self._rng = random.Random(f"{state['seed']} {self._name}")
        says = {**self._says, **state.get("service", {})}
        headers = [processor.get_request_properties() for processor in context.request_processor or ()]
        costs = [cost for row, each in zip(data, headers, strict=False) for cost in costs_of(row, each, says)]
        if not costs:
            return self._entry(data, context)
        takes_s = says["service_s"] * batch_cost(costs, says["saves"]) * draw(self._rng, says["cv"])
        with self._machine.turn():
            begins_at = time.monotonic()
            ends_at = state["started_at"] + ends(begins_at - state["started_at"], takes_s, state["slow"])
            try:
                return self._entry(data, context)
            finally:
                while (left_s := ends_at - time.monotonic()) > 0:
                    time.sleep(min(left_s, 1.0))


def draw(rng: random.Random, cv: float) -> float:
    """Lognormal of mean 1; 0: always 1."""
    if cv == 0:
        return 1.0
    sigma = math.sqrt(math.log(1 + cv**2))
    return rng.lognormvariate(-(sigma**2) / 2, sigma)


def batch_cost(costs: Sequence[float], saves: float) -> float:
    """c(k), in inferences: what each input beside the largest saves, from 0 (k cost k) to 1 (k cost one)."""
    return max(costs) + (1 - saves) * (sum(costs) - max(costs))


def costs_of(row: Any, headers: Mapping[str, Any], says: Mapping[str, Any]) -> list[float]:
    """Of the inferences that a request asks for, one by one, in deployed inferences. None: it runs no model."""
    operation = next((str(value) for name, value in headers.items() if name.lower() == "x-ts-parity-op"), "")
    if headers.get("describe") == "True" or operation == "finish":
        return []
    parts: Mapping[str, Any] = row if isinstance(row, dict) else {"body": row}
    if operation != "group":
        return [says["cost"] * _relative_size(_size([*parts.values()], headers), says)]
    from ts_parity.wire import unpack_frame

    frame = unpack_frame(parts.get("body", parts.get("data", b"")))
    members = [len(part.body) for part in frame.slots if part is not None]
    each = [says["cost"] * _relative_size(size, says) for size in members]
    return [max(each)] if says["combined"] and each else each


def _relative_size(size: int, says: Mapping[str, Any]) -> float:
    return size / says["body_bytes"] if says["body_bytes"] else 1.0


def _size(parts: Sequence[Any], headers: Mapping[str, Any]) -> int:
    """Of a body, or of all fields of a form. TorchServe has parsed some, so the length is what the client said."""
    if all(isinstance(part, (bytes, bytearray, str)) for part in parts):
        return sum(map(len, parts))
    said = next((value for name, value in headers.items() if name.lower() == "content-length"), "0")
    return int(said)


def ends(begins: float, takes: float, slow: Sequence[Sequence[float]]) -> float:
    """When what begins then has been done. `slow`: (from, until, factor) in order; a factor of inf stands still."""
    at = begins
    for since, until, factor in slow:
        if until <= at:
            continue
        if since >= at + takes:
            break
        if since > at:
            takes, at = takes - (since - at), since
        if factor == math.inf:
            at = until
            continue
        if takes * factor <= until - at:
            return at + takes * factor
        takes, at = takes - (until - at) / factor, until
    return at + takes


def _load(handler: str, context: Any) -> Any:
    """Import and initialise the archive's own handler, as TorchServe does."""
    from ts.model_loader import TsModelLoader

    loader = TsModelLoader()
    try:
        module, function = loader._load_handler_file(handler)
    except ImportError:
        module, function = loader._load_default_handler(handler), None
    function = function or "handle"
    if hasattr(module, function):
        entry, initialize = loader._get_function_entry_point(module, function)
    else:
        entry, initialize = loader._get_class_entry_point(module)
    initialize(context)
    return entry


_workers: list[EmulatedWorker] = []


def handle(data: Any, context: Any) -> Any:
    """What TorchServe calls, first without data."""
    if data is None:
        _workers[:] = [EmulatedWorker(context)]
        return None
    return _workers[0].answer(data, context)

"""What TorchServe's describe says of one version of a model, and where in it a wrapped archive speaks for itself.

Proxy and commands read it here, and nothing is believed before it is checked. Knows TorchServe's
words. Knows nothing of how they were fetched, or of what an archive says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

READY = "READY"
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What JSON from others may raise: a wrong type, Infinity, endless nesting."""
_LONGEST_NAME = 512
_LONGEST_TEXT = 500
_MOST_ROWS = 1 << 20
"""Of a batch: more is no batch size."""


@dataclass(frozen=True)
class WorkerProcess:
    """One worker of a model. A stopped (frozen) one still says READY: the status is the frontend's view.

    `pid` is -1 where none was said.
    """

    id: str
    status: str
    pid: int
    gpu: bool
    started_at: str

    @property
    def ready(self) -> bool:
        return self.status == READY and self.pid > 0

    @property
    def process(self) -> str:
        """Another when it is restarted or registered again. Process ids come again, in containers above all, so the
        time when it was started stands beside.
        """
        return "/".join(filter(None, (self.id, str(self.pid) if self.pid >= 0 else "", self.started_at)))


@dataclass(frozen=True)
class ProtectedModel:
    """The deployed model that a protection was made for, as the protection's archive and its describe name it."""

    model: str
    version: str
    weights: str | None
    """The fingerprint of its weights; None where they are not known."""


@dataclass(frozen=True)
class ModelDescription:
    """Durations keep TorchServe's units, named in the field."""

    name: str
    version: str
    url: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int
    workers: tuple[WorkerProcess, ...]
    pending_requests: int
    remaining_capacity: int
    customized: Mapping[str, Any] | None = field(default=None, repr=False)
    """What the handler says of itself; None if it was not asked or said nothing usable."""

    @property
    def ready(self) -> bool:
        """All the workers it should have, and at least one, are READY."""
        return bool(self.workers) and len(self.workers) >= self.min_workers and all(w.ready for w in self.workers)


def read_description(entry: Any) -> ModelDescription:
    """Raise one of UNREADABLE."""
    queue = entry.get("jobQueueStatus") or {}
    batch_size = entry.get("batchSize", 1)
    if not isinstance(batch_size, int) or not batch_size <= _MOST_ROWS:
        raise ValueError("its batch size")
    return ModelDescription(
        name=read_name(entry["modelName"]),
        version=read_name(entry["modelVersion"]),
        url=str(entry.get("modelUrl", "")),
        min_workers=int(entry.get("minWorkers", 0)),
        max_workers=int(entry.get("maxWorkers", 0)),
        batch_size=batch_size,
        max_batch_delay_ms=int(entry.get("maxBatchDelay", 0)),
        response_timeout_s=int(entry.get("responseTimeout", 0)),
        workers=tuple(_worker(worker) for worker in entry["workers"]),
        pending_requests=int(queue.get("pendingRequests", 0)),
        remaining_capacity=int(queue.get("remainingCapacity", 0)),
        customized=customized_of(entry),
    )


def _worker(entry: Mapping[str, Any]) -> WorkerProcess:
    pid = entry.get("pid")
    return WorkerProcess(
        id=short_text(entry.get("id", ""))[:80],
        status=short_text(entry["status"]),
        pid=-1 if pid is None else int(pid),
        gpu=bool(entry.get("gpu", False)),
        started_at=short_text(entry.get("startTime") or "")[:80],
    )


def customized_of(entry: Any) -> Mapping[str, Any] | None:
    """What a handler's own describe has answered, however TorchServe packs it."""
    said = entry.get("customizedMetadata") if isinstance(entry, Mapping) else None
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except (ValueError, RecursionError):
            return None
    if isinstance(said, list) and said:
        said = said[0]
    return said if isinstance(said, Mapping) else None


def read_name(given: Any) -> str:
    """A model's name or a version (YAML may have made a number of it), fit for logs, terminals and as a part of a path.
    Raise ValueError.
    """
    given = str(given) if isinstance(given, (int, float)) else given
    if not isinstance(given, str) or not 0 < len(given) <= _LONGEST_NAME or not given.isprintable() or "/" in given:
        raise ValueError(f"{ascii(given)[:80]} is no name")
    return given


def short_text(given: Any) -> str:
    """For people, whatever was given: short, in one line, nothing that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(given)[:_LONGEST_TEXT])

"""TorchServe's describe, read once for proxies and commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ts_parity.describe import UNREADABLE, customized_of, read_description

ENTRY: dict[str, Any] = {
    "modelName": "m",
    "modelVersion": "1.0",
    "modelUrl": "https://store/m.mar?signature=" + "a" * 1000,
    "minWorkers": 2,
    "maxWorkers": 2,
    "batchSize": 4,
    "maxBatchDelay": 100,
    "responseTimeout": 120,
    "workers": [
        {"id": "9000", "status": "READY", "pid": 7, "gpu": False, "startTime": "2026-01-01T00:00:00.000Z"},
        {"id": "9001", "status": "LOADING"},
    ],
    "jobQueueStatus": {"remainingCapacity": 99, "pendingRequests": 1},
}


def test_an_entry_is_read_whole() -> None:
    described = read_description(ENTRY)
    assert (described.name, described.version, described.batch_size, described.min_workers) == ("m", "1.0", 4, 2)
    assert described.url == ENTRY["modelUrl"], "it may be registered from there again"
    assert (described.pending_requests, described.remaining_capacity) == (1, 99)
    assert [worker.ready for worker in described.workers] == [True, False]
    assert [worker.process for worker in described.workers] == ["9000/7/2026-01-01T00:00:00.000Z", "9001"]
    assert not described.ready
    assert described.customized is None


@pytest.mark.parametrize("packed", [lambda said: said, lambda said: [said], json.dumps])
def test_what_a_handler_says_is_found_however_torchserve_packs_it(packed: Any) -> None:
    said = {"ts_parity": {"role": "deployed"}}
    assert read_description({**ENTRY, "customizedMetadata": packed(said)}).customized == said


@pytest.mark.parametrize("said", ["no json", "[" * 99_999, [], 3, None])
def test_what_is_no_description_of_a_handler_is_none(said: Any) -> None:
    assert customized_of({"customizedMetadata": said}) is None


@pytest.mark.parametrize(
    "change", [{"modelVersion": "1/2"}, {"workers": None}, {"minWorkers": "two"}, {"batchSize": 1.5}]
)
def test_what_torchserve_never_says_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UNREADABLE):
        read_description({**ENTRY, **change})

"""Rebuilt answers say how often such an answer is the deployed model's own: to clients, log and metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.proxy.conftest import PATIENCE_S, Fleet, MakeFleet, nothing_left, until
from tests.proxy.http.test_access import lines
from tests.proxy.serving.test_predictions import linear
from ts_parity.confidence import CLASSES, Confidence, ConfidenceScorer, Curve, in_header
from ts_parity.engine import Query
from ts_parity.engine.accuracy import BURST
from ts_parity.testing import FakeModel, FakeTorchServe, protection

NAME = "x-ts-parity-confidence"
CURVE = Curve((0.0, 1.0, 8.0), (0.5, 0.8, 0.975))
KNOWN = Confidence(ConfidenceScorer(CLASSES), {"1": CURVE, "2": Curve((0.0, 8.0), (0.25, 0.75))})


OTHER_GROUPS = {**KNOWN.as_json(), "curves": {"7": {"scores": [0], "expected": [1]}}}


def fleet_of(code: str = "sum", confidence: dict[str, Any] | None = None, **settings: Any) -> list[FakeTorchServe]:
    kept = KNOWN.as_json() if confidence is None else confidence
    backup = protection(code=code, confidence=kept or None, **settings)
    return [*(FakeTorchServe(FakeModel()) for _ in range(2)), FakeTorchServe(backup)]


def raw(n: int) -> np.ndarray:
    return np.array(linear(n), dtype=np.float32)


async def rebuilt_beside(fleet: Fleet, instances: list[FakeTorchServe]) -> list[tuple[str | None, Any]]:
    """Two queries in a group of which one is rebuilt. -> who answered and how surely, in the order of the queries."""
    instances[0].freeze()
    answers = await fleet.posts(2)
    assert [answer.json() for answer in answers] == [linear(0), linear(1)]
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")
    return [(answer.get("x-ts-parity"), answer.get(NAME)) for answer in answers]


@pytest.mark.parametrize(("code", "pattern"), [("sum", "2"), ("student", "1")])
async def test_a_rebuilt_answer_carries_its_confidence(make_fleet: MakeFleet, code: str, pattern: str) -> None:
    """The archive's curve, at the raw output that the answer was made from: by the proxy where it decodes, else by the
    backup's worker. Nobody else's answer has one.
    """
    instances = fleet_of(code)
    fleet = await make_fleet(*instances)
    seen = await rebuilt_beside(fleet, instances)
    expected = [in_header(KNOWN.of(raw(n), pattern) or 0.0) for n in range(2)]
    assert sorted(source or "" for source, _ in seen) == ["deployed", "reconstructed"]
    for n, (source, told) in enumerate(seen):
        assert told == (expected[n] if source == "reconstructed" else None)


async def test_a_lone_member_is_looked_up_as_such(make_fleet: MakeFleet) -> None:
    """And not as a full group, whose answers are less sure."""
    instances = fleet_of("sum")[1:]
    fleet = await make_fleet(*instances, group_wait_s=0.01)
    instances[0].freeze()
    answer = await fleet.post()
    assert answer.get("x-ts-parity") == "reconstructed"
    assert answer.get(NAME) == in_header(KNOWN.of(np.array([5.0, 11.0]), "1") or 0.0)
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


@pytest.mark.parametrize(
    ("code", "kept"),
    [("sum", {}), ("sum", {"score": "luck"}), ("sum", OTHER_GROUPS), ("student", {}), ("student", OTHER_GROUPS)],
)
async def test_archives_that_do_not_say_are_used_all_the_same(
    make_fleet: MakeFleet, code: str, kept: dict[str, Any]
) -> None:
    """Of an earlier version, of another's hand, or of groups that training never saw."""
    instances = fleet_of(code, kept)
    fleet = await make_fleet(*instances)
    seen = await rebuilt_beside(fleet, instances)
    assert sorted(seen) == [("deployed", None), ("reconstructed", None)]


async def test_an_exact_answer_is_certain(make_fleet: MakeFleet) -> None:
    """By construction, whatever its archive says."""
    instances = fleet_of("exact", {})
    fleet = await make_fleet(*instances)
    seen = await rebuilt_beside(fleet, instances)
    assert sorted(seen) == [("deployed", None), ("reconstructed", "1")]


@pytest.mark.parametrize("code", ["sum", "student"])
async def test_the_engine_learns_it_with_the_answer(make_fleet: MakeFleet, code: str) -> None:
    """Where the budget is spent, a doubtful one is held: the query gets its own when that comes."""
    instances = fleet_of(code)
    fleet = await make_fleet(*instances, differing=1e-9)
    for pool in fleet.proxy.scheduler.pools():
        pool.release.budget.spend(BURST)
    instances[0].freeze()
    asking = asyncio.create_task(fleet.posts(2))
    await until(lambda: held(fleet) is not None, "the rebuilt answer to be held")
    query = held(fleet)
    assert query is not None
    assert query.group is not None
    n = query.payload.request.body == b"1"
    expected = KNOWN.of(raw(int(n)), "2" if code == "sum" else "1")
    assert query.group.agreement[query.slot] == pytest.approx(expected, abs=1e-5)
    instances[0].thaw()
    assert [(answer.get("x-ts-parity"), answer.get(NAME)) for answer in await asking] == [("deployed", None)] * 2
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


@pytest.mark.parametrize("code", ["sum", "student"])
@pytest.mark.parametrize("more", [-0.01, 0.01])
async def test_a_request_may_say_how_sure_a_rebuilt_answer_must_be(
    make_fleet: MakeFleet, code: str, more: float
) -> None:
    """A little less than either answer's confidence is enough, a little more than that of both is not."""
    instances = fleet_of(code)
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    expected = [KNOWN.of(raw(n), "2" if code == "sum" else "1") or 0.0 for n in range(2)]
    least = min(expected) + more if more < 0.0 else min(1.0, max(expected) + more)
    asking = asyncio.create_task(fleet.posts(2, x_ts_parity_least_confidence=str(least)))
    live = fleet.proxy.scheduler._life.live
    if more > 0.0:
        await until(lambda: any(told(query) for query in live.values()), "the answer to come")
        instances[0].thaw()
    sources = sorted(str(answer.get("x-ts-parity")) for answer in await asking)
    assert sources == ["deployed", "deployed" if more > 0.0 else "reconstructed"]
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


def told(query: Query) -> bool:
    """Whether it is known how sure its rebuilt answer is."""
    return query.group is not None and query.slot in query.group.agreement


def held(fleet: Fleet) -> Query | None:
    live = fleet.proxy.scheduler._life.live.values()
    return next((query for query in live if query.held is not None), None)


async def test_what_a_client_claims_is_not_passed_on(make_fleet: MakeFleet) -> None:
    instances = fleet_of("sum")
    fleet = await make_fleet(*instances, reconstruct_after_s=PATIENCE_S)
    answer = await fleet.post(x_ts_parity_confidence="0.99")
    assert (answer.get("x-ts-parity"), answer.get(NAME)) == ("deployed", None)
    assert all(received.header(NAME) is None for instance in instances for received in instance.received)


async def test_log_metrics_and_status_know_it(make_fleet: MakeFleet, tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    instances = fleet_of("sum")
    fleet = await make_fleet(*instances, access_log=str(file))
    seen = await rebuilt_beside(fleet, instances)
    [told] = [float(text) for _, text in seen if text is not None]
    written = await lines(fleet, file, 2)
    answered = {line["outcome"]: line["confidence"] for line in written if "task" not in line}
    assert answered == {"deployed": None, "reconstructed": pytest.approx(told, abs=1e-6)}
    metrics = fleet.proxy.metrics
    assert metrics.rebuilt.value("linear/1.0", "known") == 1.0
    assert metrics.rebuilt.value("linear/1.0", "unknown") == 0.0
    assert metrics.differing.value("linear/1.0") == pytest.approx(1.0 - told, abs=1e-6)
    [pool] = json.loads(json.dumps(fleet.proxy.status()))["pools"].values()
    assert pool["calibrated"] is True

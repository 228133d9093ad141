"""Each check finds what it is for in made-up values, and nothing in a fleet that is well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ts_parity import __version__
from ts_parity.codes import make_code
from ts_parity.config import parse_endpoint, settings_of
from ts_parity.describe import ProtectedModel
from ts_parity.doctor.catalogue import CATEGORIES, CHECKS
from ts_parity.doctor.check import ERROR, NOTE, OK, SEVERITIES, UNKNOWN, WARNING, Check, CheckResult, examine, exit_code
from ts_parity.doctor.gathered import CertificateEnd, Gathered, SizeProbe
from ts_parity.doctor.places import MeasuredPlaces
from ts_parity.doctor.protection import output_bytes
from ts_parity.errors import EXIT_CODES
from ts_parity.proxy.fleet.plan import PlanOptions, make_plan
from ts_parity.proxy.fleet.reports import ArchiveDescription, InstanceReport, ModelReport

WEIGHTS = "sha256:aaaaaaaaaaaaaaaaaaaa"
MODEL = ModelReport(
    "m", "1", True, 2, 1, described=ArchiveDescription("deployed", WEIGHTS, "codable", output="float32[10]")
)
STUDENT = ModelReport(
    "m_student",
    "1",
    True,
    1,
    1,
    described=ArchiveDescription(
        "parity", "sha256:s", code=make_code("student", 2, 1), partial=True, protects=ProtectedModel("m", "1", WEIGHTS)
    ),
)
TRUST = {"state": "in use", "agreed": 20, "differed": 0, "unknown": 0, "failed": 0, "reason": ""}
RECENT = {"queries": 3000, "rate": 10.0}


def fleet(
    a: Sequence[ModelReport] = (MODEL, STUDENT),
    b: Sequence[ModelReport] = (MODEL, STUDENT),
    endpoints: Sequence[str] = ("http://a:8080", "http://b:8080"),
    **changes: Any,
) -> Gathered:
    """Two instances, a:8080 and b:8080, that host `a` and `b`."""
    settings = settings_of({"instances": tuple(parse_endpoint(text) for text in endpoints)})
    reports = (InstanceReport("a:8080", True, tuple(a)), InstanceReport("b:8080", True, tuple(b)))
    reports = changes.pop("reports", reports)
    plan = make_plan(reports, PlanOptions(settings.instances))
    return Gathered(settings, reports=reports, plan=plan, **changes)


def status(trust: Mapping[str, Any] = TRUST, recent: Mapping[str, Any] = RECENT, **pool: Any) -> dict[str, Any]:
    """What the checks read of it."""
    states = [{"name": name, "condition": {"state": "serving", "reason": ""}} for name in ("a:8080", "b:8080")]
    told = {"code": {"name": "student"}, "reason": "", "trust": trust, "copies": {"reason": ""}, "recent": recent}
    return {"version": __version__, "pools": {"m/1": {**told, **pool}}, "instances": states}


def down(problem: str, **more: Any) -> tuple[InstanceReport, ...]:
    return (InstanceReport("a:8080", False, problem=problem, **more), InstanceReport("b:8080", True, (MODEL,)))


def described(model: ModelReport, **changes: Any) -> ModelReport:
    assert model.described is not None
    return replace(model, described=replace(model.described, **changes))


def on_trial(**counts: Any) -> dict[str, Any]:
    return status({**TRUST, "state": "on trial", "agreed": 0, "reason": "no label", **counts})


OTHER_WEIGHTS = described(MODEL, weights="sha256:b")
BATCHING = replace(MODEL, batch_size=8, batch_delay_ms=50)
TELLING, TELLING_STUDENT = (replace(model, takes="['x FP32[-1, 4]']") for model in (MODEL, STUDENT))
CASES: list[tuple[str, str, Callable[[], Gathered]]] = [
    ("TSP-101", "256 open files leave", lambda: fleet(files=256)),
    ("TSP-102", "plain Python", lambda: fleet(compiled=False)),
    ("TSP-103", "of x expired 3 days ago", lambda: fleet(certificates=(CertificateEnd("x", -3.0),))),
    ("TSP-104", "of x expires in 3 days", lambda: fleet(certificates=(CertificateEnd("x", 3.0),))),
    ("TSP-201", "gave no answer", lambda: fleet(reports=down("gave no answer"))),
    ("TSP-202", "the management port?", lambda: fleet(reports=down("Is it the management port?", wrong_port=True))),
    (
        "TSP-203",
        "answered 400",
        lambda: fleet(reports=(InstanceReport("a:8080", True, problem="answered 400", unauthorized=True),)),
    ),
    ("TSP-204", "a:8080: expired", lambda: fleet(refused_keys={"a:8080": "expired"})),
    (
        "TSP-205",
        "'/no/key' is not there",
        lambda: replace(
            fleet(),
            settings=settings_of({"instances": (replace(parse_endpoint("http://a:8080"), token_file="/no/key"),)}),
        ),
    ),
    ("TSP-206", "a:8080 hosts no model", lambda: fleet(a=[])),
    (
        "TSP-301",
        "m: version 1 on a:8080; version 1, 2 on b:8080",
        lambda: fleet(b=[MODEL, replace(MODEL, version="2", default=False)]),
    ),
    ("TSP-302", "m: version 1 on a:8080; version 2 on b:8080", lambda: fleet(b=[replace(MODEL, version="2")])),
    ("TSP-303", "m/1: sha256:aaaaaaaaaaaa on a:8080; sha256:b", lambda: fleet(b=[OTHER_WEIGHTS])),
    ("TSP-304", "float16[10] on b:8080", lambda: fleet(b=[described(MODEL, output="float16[10]")])),
    ("TSP-305", "wrapped on a:8080; not wrapped on b:8080", lambda: fleet(b=[replace(MODEL, described=None)])),
    ("TSP-306", "batch delay 0 ms on a:8080; 50 ms on b:8080", lambda: fleet(b=[replace(MODEL, batch_delay_ms=50)])),
    ("TSP-306", "batch size 1 on a:8080; 4 on b:8080", lambda: fleet(b=[replace(MODEL, batch_size=4)])),
    ("TSP-306", "response timeout 0 s on a:8080; 9 s", lambda: fleet(b=[replace(MODEL, response_timeout_s=9)])),
    ("TSP-307", "wait 50 ms for a batch of 8", lambda: fleet(a=[BATCHING], b=[BATCHING], status=status())),
    (
        "TSP-308",
        "places = 8, and its READY workers take 3 at a time; 5 would wait",
        lambda: fleet(endpoints=["http://a:8080,places=8", "http://b:8080"]),
    ),
    (
        "TSP-308",
        "places = 4, and its READY workers take 3 at a time; 1 would wait",
        lambda: fleet(endpoints=["http://a:8080,places=4", "http://b:8080"]),
    ),
    ("TSP-309", "places = 1, and", lambda: fleet(endpoints=["http://a:8080,places=1", "http://b:8080"])),
    ("TSP-401", "m/1: not repeatable", lambda: fleet(status=status(code=None, reason="not repeatable"))),
    ("TSP-401", "m/1: its deployed endpoints disagree", lambda: fleet(b=[OTHER_WEIGHTS, STUDENT])),
    ("TSP-402", "m/1: no protection", lambda: fleet(a=[MODEL], b=[MODEL])),
    ("TSP-403", "other weights", lambda: fleet(*[[OTHER_WEIGHTS, STUDENT]] * 2)),
    ("TSP-403", "protects m 1, and", lambda: fleet(*[[replace(MODEL, version="2"), STUDENT]] * 2)),
    (
        "TSP-404",
        "all of its 2 instances and all that could answer for it are in failure domain rack1",
        lambda: fleet(endpoints=["http://a:8080,domain=rack1", "http://b:8080,domain=rack1"]),
    ),
    ("TSP-404", "its only instance", lambda: fleet(b=[])),
    ("TSP-405", "a:8080 refuses a request of 9 bytes", lambda: fleet(sizes=(SizeProbe("a:8080", "m/1", 9, False),))),
    (
        "TSP-406",
        "has 8000000 bytes",
        lambda: fleet(*[[described(MODEL, output="float32[1000, 1000]"), STUDENT]] * 2),
    ),
    ("TSP-407", "none of 5 answers could be compared", lambda: fleet(status=on_trial(unknown=5))),
    ("TSP-407", "6 groups on trial brought nothing", lambda: fleet(status=on_trial(failed=6))),
    ("TSP-407", "3 of 5 answers differ", lambda: fleet(status=on_trial(agreed=2, differed=3))),
    ("TSP-407", "nothing was compared in 3000 queries", lambda: fleet(status=on_trial())),
    ("TSP-408", "m/1: it differs", lambda: fleet(status=status({**TRUST, "state": "out", "reason": "it differs"}))),
    ("TSP-408", "m/1: copies differ", lambda: fleet(status=status(copies={"reason": "copies differ"}))),
    (
        "TSP-409",
        "b:8080: m_student is ['x FP32[8, 4]'], and m/1 on b:8080 is ['x FP32[-1, 4]']",
        lambda: fleet([TELLING, TELLING_STUDENT], [TELLING, replace(TELLING_STUDENT, takes="['x FP32[8, 4]']")]),
    ),
    ("TSP-501", "refused", lambda: fleet(status_error="refused")),
    (
        "TSP-502",
        "a:8080 is silent: no answer",
        lambda: fleet(
            status={
                **status(),
                "instances": [{"name": "a:8080", "condition": {"state": "silent", "reason": "no answer"}}],
            }
        ),
    ),
    ("TSP-503", "b:8080 is configured", lambda: fleet(status={**status(), "instances": status()["instances"][:1]})),
    (
        "TSP-310",
        "m/1 is answered 1 at a time before each takes longer; the proxy gives it 2",
        lambda: fleet(measured=(MeasuredPlaces("a:8080", "m/1", 2, places=1),)),
    ),
    ("TSP-504", "the running proxy is 0.0.1", lambda: fleet(status={**status(), "version": "0.0.1"})),
    ("TSP-505", "unknown setting x", lambda: fleet(status=reloaded(problems=["unknown setting x"]))),
    ("TSP-506", "port: 8080 -> 8443", lambda: fleet(status=reloaded(needs_restart=["port: 8080 -> 8443"]))),
]  # fmt: skip


def reloaded(**last: Any) -> dict[str, Any]:
    return {**status(), "configuration": {"last_reload": {"problems": [], "needs_restart": [], **last}}}


GOOD = (MeasuredPlaces("a:8080", "m/1", 2, places=2), MeasuredPlaces("b:8080", "m/1", 2, places=3))


def results(gathered: Gathered) -> dict[str, CheckResult]:
    return {result.check.id: result for result in examine(CHECKS, gathered)}


@pytest.mark.parametrize(("id", "told", "make"), CASES, ids=[f"{id} {told[:30]}" for id, told, _ in CASES])
def test_a_check_finds_what_it_is_for(id: str, told: str, make: Callable[[], Gathered]) -> None:
    result = results(make())[id]
    assert result.state == result.check.severity
    assert told in "; ".join(result.findings)


def test_every_check_has_a_case() -> None:
    assert {id for id, _, _ in CASES} == {check.id for check in CHECKS}


def test_of_a_fleet_that_is_well_nothing_is_said() -> None:
    beside = results(fleet(status=status(), sizes=(SizeProbe("a:8080", "m/1", 9, True),), measured=GOOD))
    assert {id: r.findings for id, r in beside.items() if r.state != OK} == {}
    before = results(fleet())
    assert {r.state for r in before.values()} == {OK, UNKNOWN}
    assert {id for id, r in before.items() if r.state == UNKNOWN} == {
        "TSP-307", "TSP-310", "TSP-405", "TSP-407", "TSP-408", "TSP-502", "TSP-503", "TSP-504", "TSP-505", "TSP-506"
    }  # fmt: skip


def test_what_cannot_be_told_is_not_called_good() -> None:
    """Nothing answers; or keys are wanted, and only the running proxy has them."""
    nobody = results(fleet(reports=down("gone")[:1]))
    assert {nobody[id].state for id in ("TSP-301", "TSP-303", "TSP-402", "TSP-404")} == {UNKNOWN}
    keys = InstanceReport("a:8080", True, problem="answered 400", unauthorized=True)
    borrowed = results(replace(fleet(reports=(keys,)), configured=False, refused_keys={"a:8080": "expired"}))
    assert {borrowed[id].state for id in ("TSP-203", "TSP-204", "TSP-308", "TSP-309")} == {UNKNOWN}
    assert "--config" in borrowed["TSP-203"].findings[0]


def test_batches_that_fill_are_no_loss() -> None:
    """At 400 queries a second to an instance twenty come within the delay of 50 ms, and a batch takes eight."""
    busy = fleet(a=[BATCHING], b=[BATCHING], status=status(recent={"queries": 240_000, "rate": 800.0}))
    assert results(busy)["TSP-307"].state == OK
    quiet = fleet(a=[BATCHING], b=[BATCHING], status=status(recent={"queries": 0, "rate": 0.0}))
    assert results(quiet)["TSP-307"].state == OK, "nobody waits"


def test_a_trial_that_goes_well_is_left_alone() -> None:
    for counts in ({"agreed": 4, "differed": 1}, {"agreed": 2, "unknown": 7}, {"agreed": 12, "failed": 6}):
        assert results(fleet(status=on_trial(**counts)))["TSP-407"].state == OK, counts


@pytest.mark.parametrize(
    ("output", "size"),
    [("float32[10]", 40), ("float16[2, 3]", 12), ("", None), ("int8[2]", None), ("float32[x]", None)],
)
def test_the_size_of_an_output(output: str, size: int | None) -> None:
    assert output_bytes(output) == size


def test_ids_are_of_their_category_and_occur_once() -> None:
    ids = [check.id for check in CHECKS]
    assert ids == sorted(set(ids))
    for check in CHECKS:
        assert check.id[:5] == f"TSP-{CATEGORIES.index(check.category) + 1}"
        assert check.severity in SEVERITIES
        assert check.exit_code in EXIT_CODES


def test_the_lowest_code_of_the_errors_is_the_commands() -> None:
    def found(state: str, code: int) -> CheckResult:
        check = Check("TSP-999", "x", state, "", "", "", code, lambda _: [])
        return CheckResult(check, state)

    assert exit_code([found(OK, 2), found(UNKNOWN, 2)], strict=True) == 0
    assert exit_code([found(WARNING, 2), found(NOTE, 2), found(ERROR, 4), found(ERROR, 3)]) == 3
    assert exit_code([found(WARNING, 2)]) == 0
    assert exit_code([found(WARNING, 2), found(NOTE, 1)], strict=True) == 2

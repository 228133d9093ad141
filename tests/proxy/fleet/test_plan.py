"""Reports in, plan out: what is used, what is not, and in which words an operator is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ts_parity.codes import make_code, read_row_errors
from ts_parity.confidence import read_confidence
from ts_parity.config import InstanceSettings, ModelSettings
from ts_parity.engine import Instance
from ts_parity.exclusion import Exclusions
from ts_parity.proxy.fleet.plan import Plan, PlanOptions, by_number, make_plan, share
from ts_parity.proxy.fleet.reports import ArchiveDescription, InstanceReport, ModelReport, ProtectedModel
from ts_parity.proxy.fleet.torchserve.describes import BadDescribe, read_customized, read_described, read_model

OUTPUT = "float32[10]"
WRAPPED = ArchiveDescription("deployed", weights="sha256:f", verdict="codable", output=OUTPUT)


def deployed(**changes: Any) -> ModelReport:
    return replace(ModelReport("digits", "1.0", True, ready=1, batch_size=1, described=WRAPPED), **changes)


def parity(
    name: str = "digits_parity", code: str = "sum", k: int = 2, r: int = 1, row: int = 0, **changes: Any
) -> ModelReport:
    protects = ProtectedModel("digits", "1.0", "sha256:f")
    described = ArchiveDescription("parity", code=make_code(code, k, r), row=row, partial=True, protects=protects)
    described = replace(described, **{k: changes.pop(k) for k in [*changes] if hasattr(described, k)})
    return replace(ModelReport(name, "1.0", True, ready=1, batch_size=1, described=described), **changes)


def plan_of(*models: ModelReport | tuple[ModelReport, ...], settings: dict[str, Any] | None = None) -> Plan:
    """One instance per argument: i0, i1, ..."""
    reports = [
        InstanceReport(f"i{n}", True, (entry,) if isinstance(entry, ModelReport) else entry)
        for n, entry in enumerate(models)
    ]
    instances = tuple(InstanceSettings(f"http://i{n}") for n in range(len(models)))
    return make_plan(reports, PlanOptions(instances, **(settings or {})))


def only(plan: Plan) -> Any:
    return plan.pools["digits/1.0"]


def test_a_fleet_as_it_should_be():
    plan = plan_of(deployed(), deployed(), parity())
    assert plan.problems == ()
    assert only(plan).code == make_code("sum", 2)
    assert [(e.name, e.row) for e in plan.fleet.endpoints] == [
        ("i0/digits/1.0", None),
        ("i1/digits/1.0", None),
        ("i2/digits_parity/1.0", 0),
    ]
    assert plan.versions == {"digits": "1.0"}
    assert plan.protections == {"digits_parity"}
    assert plan.hosts == {"digits": ("i0", "i1")}


def test_only_an_archive_can_be_not_wrapped():
    assert only(plan_of(deployed(described=None))).verdicts == ("not wrapped",)
    assert only(plan_of(deployed(described=None, kind="rest"))).verdicts == ()


def test_places_are_ready_workers_times_batch_size_and_only_protections_look_at_the_machine():
    plan = plan_of((deployed(ready=2, batch_size=4), parity(ready=1, batch_size=3)), deployed(ready=0))
    assert {e.name: e.places for e in plan.fleet.endpoints} == {"i0/digits/1.0": 8, "i0/digits_parity/1.0": 3}
    assert [(i.name, i.places, i.capped) for i in plan.fleet.instances] == [("i0", 8, False), ("i1", 1, False)]
    assert plan.problems == ("i1: digits/1.0 has no READY worker",)


def test_places_and_domain_can_be_set():
    report = InstanceReport("i0", True, (deployed(ready=2),))
    plan = make_plan([report], PlanOptions((InstanceSettings("http://i0", places=5, domain="rack 1"),)))
    assert plan.fleet.instances == (Instance("i0", 5, "rack 1", capped=True),)


def shares(places: int, processes: int) -> list[int]:
    return [share(places, process, processes) for process in range(processes)]


@pytest.mark.parametrize("processes", range(1, 6))
def test_processes_share_the_places_there_are(processes: int):
    for places in range(processes, 20):
        assert sum(shares(places, processes)) == places
        assert max(shares(places, processes)) - min(shares(places, processes)) <= 1


def test_a_process_without_a_place_could_not_serve():
    assert shares(1, 3) == shares(2, 3) == [1, 1, 1]
    assert shares(7, 1) == [7]


def test_the_places_left_over_are_not_all_the_first_processes():
    reports = [InstanceReport(f"i{n}", True, (deployed(ready=3),)) for n in range(4)]
    instances = tuple(InstanceSettings(f"http://i{n}", places=5 if n == 3 else None) for n in range(4))
    plans = [make_plan(reports, PlanOptions(instances, process=process, processes=2)) for process in range(2)]
    assert [[i.places for i in plan.fleet.instances] for plan in plans] == [[2, 1, 2, 2], [1, 2, 1, 3]]
    assert [[e.places for e in plan.fleet.endpoints] for plan in plans] == [[2, 1, 2, 1], [1, 2, 1, 2]]


def test_a_pool_without_a_ready_worker_stays_known():
    plan = plan_of(deployed(ready=0))
    assert [pool.name for pool in plan.fleet.pools] == ["digits/1.0"]
    assert plan.fleet.endpoints == ()


def test_nobody_there():
    plan = make_plan([InstanceReport("i0", False, problem="refused")], PlanOptions((InstanceSettings("http://i0"),)))
    assert plan.problems == ("i0: refused", "no instance can be reached; every prediction is answered with 503")


OTHER = replace(WRAPPED, weights="sha256:g")
REFUSED = replace(WRAPPED, verdict="refused", reason="two model calls")

UNCODED = {
    "weights disagree": ((deployed(), deployed(described=OTHER), parity()), "disagree about weights"),
    "outputs disagree": (
        (deployed(), deployed(described=replace(WRAPPED, output="float32[9]")), parity()),
        "disagree about the raw output: float32[10] on i0, float32[9] on i1",
    ),
    "refused": ((deployed(described=REFUSED), parity()), "its handler cannot be coded: two model calls (i0)"),
    "not wrapped": (
        (deployed(described=None), parity()),
        "code sum needs wrapped archives, and that of i0 is not",
    ),
    "one not wrapped": (
        (deployed(), deployed(described=None), parity()),
        "code sum needs wrapped archives, and that of i1 is not",
    ),
}


@pytest.mark.parametrize("case", UNCODED)
def test_what_cannot_be_coded_is_served_plainly_and_says_why(case: str):
    models, reason = UNCODED[case]
    plan = plan_of(*models)
    assert only(plan).code is None
    assert reason in only(plan).reason
    assert any(problem.startswith("digits/1.0 is not coded: ") and reason in problem for problem in plan.problems)
    assert all(endpoint.row is None for endpoint in plan.fleet.endpoints)
    assert plan.fleet.endpoints
    assert plan.protections  # still not for clients


SEVERAL = {
    "what promises most": (
        (deployed(), parity("p1", agreement=0.9), parity("p2", code="student", agreement=0.95)),
        "p2",
    ),
    "what is least off": (
        (deployed(), parity("p1", agreement=0.91, tolerance=9.0), parity("p2", k=3, agreement=0.9, tolerance=4.0)),
        "p2",
    ),
    "what loses nothing": ((deployed(), parity("p1", agreement=0.9), parity("p2", code="exact")), "p2"),
    "the smaller k of equals": ((deployed(), parity("p1", k=3), parity("p2")), "p2"),
    "what is ready": ((deployed(), parity("p1"), parity("p2", code="exact", ready=0)), "p1"),
    "what can be used": ((deployed(described=None), parity("p1", agreement=0.99), parity("p2", code="student")), "p2"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_of_several_protections_one_is_used_and_the_operator_is_told(case: str):
    """While one takes the other's place both are registered: that is no time to be without."""
    models, used = SEVERAL[case]
    plan, backwards = plan_of(*models), plan_of(models[0], *reversed(models[1:]))
    assert only(plan).code == only(backwards).code is not None
    assert [e.name.split("/")[1] for e in plan.fleet.endpoints if e.row is not None] == [used]
    [problem] = [problem for problem in plan.problems if "several codes" in problem]
    assert f"{only(plan).code.name} with k={only(plan).code.k} r=1 is used" in problem
    assert "unregister what is not wanted, or say which code (protect)" in problem


@pytest.mark.parametrize("model", [deployed(described=None), deployed(described=REFUSED)])
def test_exact_needs_nothing_of_the_deployed_archive(model: ModelReport):
    plan = plan_of(model, parity(code="exact"))
    assert only(plan).code == make_code("exact", 2)


UNUSED = {
    "another version": (
        parity(protects=ProtectedModel("digits", "2.0", None)),
        "it protects digits 2.0, and deployed is version 1.0",
    ),
    "another model": (
        parity(protects=ProtectedModel("letters", "1.0", None)),
        "it protects letters 1.0, and no instance serves that model",
    ),
    "a refusal": (parity(verdict="refused", reason="integer inputs"), "it refuses groups: integer inputs"),
    "other weights": (
        parity(protects=ProtectedModel("digits", "1.0", "sha256:old")),
        "it was made for other weights of digits/1.0 (sha256:old) than are deployed (sha256:f)",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_a_protection_of_something_else_is_not_used(case: str):
    protection, reason = UNUSED[case]
    plan = plan_of(deployed(), protection)
    assert only(plan).code is None
    assert [f"i1: digits_parity 1.0 is not used: {reason}"] == list(plan.problems)


def test_unknown_weights_are_no_contradiction():
    plan = plan_of(deployed(), parity(protects=ProtectedModel("digits", "1.0", None)))
    assert only(plan).code is not None


@pytest.mark.parametrize(
    ("settings", "name", "k"),
    [({"protect": "exact-only"}, "exact", 2), ({"protect": "sum"}, "sum", 2)],
)
def test_the_configuration_chooses_between_protections(settings: dict[str, Any], name: str, k: int):
    plan = plan_of(deployed(), parity(), parity("p2", code="exact"), parity("p3", k=3), settings=settings)
    assert (only(plan).code.name, only(plan).code.k) == (name, k)
    assert sum(endpoint.row is not None for endpoint in plan.fleet.endpoints) == 1


def test_the_configuration_can_ask_for_what_is_not_there():
    plan = plan_of(deployed(), parity(), settings={"protect": "exact-only"})
    assert "the protections are sum with k=2 r=1, the configuration asks for protect = exact-only" in only(plan).reason


def test_where_no_answer_may_differ_only_lossless_protections_are_used():
    plan = plan_of(deployed(), parity(), parity("p2", code="exact"), settings={"lossless": True})
    assert only(plan).code.name == "exact"
    plan = plan_of(deployed(), parity(), settings={"lossless": True})
    assert "the protections are sum with k=2 r=1, the configuration asks for differing = 0" in only(plan).reason


def test_coding_can_be_switched_off():
    plan = plan_of(deployed(), parity(), settings={"protect": "off"})
    assert only(plan).reason == "protections are switched off (protect = off)"


def test_what_was_learnt_while_serving_switches_coding_off():
    plan = plan_of(deployed(), parity(), settings={"uncoded": {"digits/1.0": "streams"}})
    assert (only(plan).code, only(plan).reason) == (None, "streams")


def test_missing_rows_leave_fewer_rows():
    """Row numbers stay what they are, so that a group in flight never meets another row's coefficients."""
    plan = plan_of(deployed(), parity(r=2, row=1), parity("p0", r=2, row=0, ready=0))
    assert only(plan).code.r == 2
    assert [endpoint.row for endpoint in plan.fleet.endpoints] == [None, 1]
    assert plan.problems == ("digits/1.0: no READY endpoint for protection row 0 of 2",)


def test_partial_groups_need_every_protection_to_take_them():
    assert only(plan_of(deployed(), parity(), parity("p2"))).partial
    assert not only(plan_of(deployed(), parity(), parity("p2", partial=False))).partial


def test_a_silent_endpoint_waits_if_its_pool_is_known_to_be_wrapped():
    silent = deployed(described=None, silent=True)
    plan = plan_of(deployed(), silent, parity())
    assert [endpoint.name for endpoint in plan.fleet.endpoints] == ["i0/digits/1.0", "i2/digits_parity/1.0"]
    assert plan.problems == ("i1: digits/1.0 did not answer describe; not used until it does",)
    alone = plan_of(silent)
    assert [endpoint.name for endpoint in alone.fleet.endpoints] == ["i0/digits/1.0"]


def test_the_version_that_is_default_on_most_instances():
    new, old = deployed(version="2.0"), deployed(default=True)
    plan = plan_of(new, (new, deployed(default=False)), old)
    assert plan.versions == {"digits": "2.0"}
    assert sorted(plan.pools) == ["digits/1.0", "digits/2.0"]


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [(("9.0", "10.0"), "10.0"), (("10.0", "9.0"), "10.0"), (("2", "10"), "10"), (("1.0", "1.0-rc1"), "1.0-rc1"),
     (("1.9", "1.10"), "1.10"), (("1.0", "latest"), "latest"), (("a", "b"), "b"), (("9" * 30, "1"), "9" * 30)],
)  # fmt: skip
def test_versions_compare_as_numbers_and_differing_defaults_are_told(versions: tuple[str, str], chosen: str):
    plan = plan_of(*(deployed(version=version) for version in versions))
    assert plan.versions == {"digits": chosen}
    first, second = (f"{version} on i{versions.index(version)}" for version in sorted(versions, key=by_number))
    told = f"the default version of digits differs: {first}, {second}; requests without a version go to {chosen}"
    assert plan.problems == (told,)


def test_versions_in_messages_are_in_the_order_of_their_numbers():
    plan = plan_of(
        (deployed(version="10.0"), deployed(version="9.0", default=False)),
        parity(protects=ProtectedModel("digits", "1.0", None)),
    )
    assert "deployed is version 9.0, 10.0" in plan.problems[0]


def test_a_protection_whose_model_has_another_name_is_told_so():
    alias = deployed(model="prod-sizes-20260101")
    plan = plan_of(alias, parity())
    assert plan.problems == (
        "i1: digits_parity 1.0 is not used: it protects digits 1.0, and no instance serves that model; "
        "prod-sizes-20260101 1.0 has these weights: make the protection again with --protects prod-sizes-20260101/1.0, "
        "or register the model under the name that is protected",
    )
    assert "weights" not in plan_of(deployed(model="other", described=OTHER), parity()).problems[0]
    twins = plan_of(alias, deployed(model="canary"), parity())
    assert "prod-sizes-20260101 1.0 and canary 1.0 have these weights" in twins.problems[0]


def test_the_same_reports_give_the_same_plan():
    assert plan_of(deployed(), parity()) == plan_of(deployed(), parity())


def test_entries_of_describe_are_read():
    entry = {
        "modelName": "m",
        "modelVersion": "1.0",
        "batchSize": 4,
        "workers": [{"id": "9000", "status": "READY", "pid": 1}, {"id": "9001", "status": "LOADING", "pid": 2}],
    }
    model = read_model(entry, "1.0")
    assert (model.ready, model.places, model.default, model.pids) == (1, 4, True, ("9000/1", "9001/2"))
    for bad in ({}, None, [], {"modelName": "m", "modelVersion": "1", "workers": 3}):
        with pytest.raises(BadDescribe):
            read_model(bad, "1.0")


@pytest.mark.parametrize("entry", [None, {}, {"customizedMetadata": "no json"}, {"customizedMetadata": {"their": 1}}])
def test_archives_that_are_not_ours_say_nothing(entry: Any):
    assert read_customized(entry) is None


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: [o], lambda o: __import__("json").dumps(o)])
def test_ours_is_found_however_torchserve_packs_it(wrap: Any):
    ours = {"ts_parity": {"wire": 1, "role": "deployed", "verdict": "codable"}}
    described = read_customized({"customizedMetadata": wrap(ours)})
    assert described is not None
    assert described.verdict == "codable"


GOOD = {
    "wire": 1,
    "role": "parity",
    "code": "sum",
    "k": 2,
    "r": 1,
    "row": 0,
    "coefficients": [[1.0, 1.0]],
    "partial": True,
    "protects": {"model": "m", "version": "1", "weights": None},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wire": 2}, "wire version 2"),
        ({"role": "boss"}, "its role is 'boss'"),
        ({"k": 9}, "code sum has k of 2 to 4"),
        ({"code": "magic"}, "unknown code 'magic'"),
        ({"coefficients": [[1.0]]}, "coefficients must have shape"),
        ({"row": 1}, "row 1 of 1"),
        ({"protects": None}, "incomplete"),
        ({"k": "two"}, "incomplete"),
    ],
)
def test_a_describe_that_cannot_be_used_says_what_is_wrong(change: dict[str, Any], message: str):
    assert read_described(GOOD).code == make_code("sum", 2)
    with pytest.raises(BadDescribe, match=message):
        read_described({**GOOD, **change})


HUGE, INFINITE = 10**4000, float("inf")
ENTRY = {"modelName": "m", "modelVersion": "1", "batchSize": 1, "workers": [{"id": "1", "status": "READY", "pid": 1}]}


@pytest.mark.parametrize(
    "change",
    [
        {"batchSize": INFINITE}, {"batchSize": float("nan")}, {"batchSize": HUGE}, {"batchSize": "4"},
        {"modelName": "a\nb"}, {"modelName": "\x1b[2J"}, {"modelName": "\ud800"}, {"modelName": ""},
        {"modelName": "m" * 10_000}, {"modelName": ["m"]}, {"modelVersion": {}}, {"modelVersion": "1\r\n"},
        {"workers": {"status": "READY"}}, {"workers": [[]]}, {"workers": "READY"}, {"workers": 1.0},
    ],
)  # fmt: skip
def test_a_models_description_is_not_believed_before_it_is_checked(change: dict[str, Any]):
    assert read_model(ENTRY, "1").ready == 1
    with pytest.raises(BadDescribe) as told:
        read_model({**ENTRY, **change}, "1")
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "change",
    [{"k": INFINITE}, {"k": HUGE}, {"row": INFINITE}, {"cost": INFINITE}, {"cost": float("nan")}, {"cost": -1},
     {"cost": HUGE}, {"coefficients": [[INFINITE, 1.0]]}, {"coefficients": [[HUGE, 1]]}, {"coefficients": {"a": 1}},
     {"role": "\x1b[2J"}, {"wire": "\ud800" * 1000}, {"protects": {"model": "\n", "version": "1"}}],
)  # fmt: skip
def test_nor_is_a_protections(change: dict[str, Any]):
    with pytest.raises(BadDescribe) as told:
        read_described({**GOOD, **change})
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 800


def test_a_cost_counts_on_the_kind_of_device_it_was_measured_on():
    """Trained on a GPU, `exact` costs 1.1 there, and k on a worker that has a CPU."""
    said = {**GOOD, "cost": 1.1, "cost_on": "cuda"}
    assert read_described({**said, "device": "cuda"}).cost == 1.1
    assert read_described({**said, "device": "cpu"}).cost is None
    assert read_described({**GOOD, "cost": 1.1}).cost == 1.1, "of an archive that does not say"
    assert read_described({**said, "device": ["cuda"]}).cost is None


def test_what_it_says_for_people_is_short_and_in_one_line():
    described = read_described({"wire": 1, "role": "deployed", "reason": "a\nb\x1b[2J\ud800" + "x" * 10_000})
    assert described.reason.isprintable()
    assert len(described.reason) == 500


def test_a_worker_is_another_when_its_start_is():
    """In a container every worker has the same few process ids."""
    worker = {"id": "9000", "status": "READY", "pid": 7, "startTime": "2026-01-01T00:00:00.000Z"}
    entry = {
        "modelName": "m",
        "modelVersion": "1.0",
        "workers": [worker, {"id": "9001", "status": "LOADING", "pid": 0}],
    }
    model = read_model(entry, "1.0")
    assert model.running == {"9000/7/2026-01-01T00:00:00.000Z"}
    [endpoint] = plan_of(model).fleet.endpoints
    assert endpoint.workers == model.running


def test_a_model_that_is_not_repeatable_is_not_coded():
    unsteady = replace(WRAPPED, verdict="refused", reason="it keeps what it was asked", repeatable=False)
    plan = plan_of(deployed(), deployed(described=unsteady), parity(code="exact"))
    assert only(plan).code is None
    assert only(plan).reason == "it is not repeatable: it keeps what it was asked (i1)"
    [pool] = plan.fleet.pools
    assert (pool.repeatable, pool.code) == (False, None)
    for version, told in (("", False), ("1.0", False), ("2.0", True)):
        models = (ModelSettings("digits", version, repeatable=False), ModelSettings("other", repeatable=False))
        plan = plan_of(deployed(), parity(), settings={"models": models})
        assert (only(plan).repeatable, only(plan).code is not None) == (told, told)


def test_a_protection_that_is_not_repeatable_is_not_used():
    plan = plan_of(deployed(), parity(code="exact", repeatable=False, reason="it throws dice"))
    assert only(plan).code is None
    assert plan.problems == ("i1: digits_parity 1.0 is not used: it is not repeatable: it throws dice",)


def test_of_several_reports_the_most_modest_is_believed():
    plan = plan_of(deployed(), parity(code="student", agreement=0.95), parity(code="student", agreement=0.9))
    assert [pool.agreement for pool in plan.fleet.pools] == [0.9]
    assert read_described({**GOOD, "agreement": 0.93}).agreement == 0.93
    for nonsense in (True, "0.9", 7, -1.0, None, float("nan")):
        assert read_described({**GOOD, "agreement": nonsense}).agreement is None


ALIKE = {"0,1": [[1.0, 1.5], [1.5, 4.0]]}


def test_rows_of_one_training_are_weighed_by_its_errors_and_those_of_two_alike():
    code = make_code("sum", 2, 2)
    one, other = (read_row_errors(told, code) for told in (ALIKE, {"0,1": [[1.0, 0.0], [0.0, 4.0]]}))

    def plan_with(*errors: Any) -> Plan:
        rows = (parity(f"p{row}", r=2, row=row, row_errors=each) for row, each in enumerate(errors))
        return plan_of(deployed(), *rows)

    assert (only(plan_with(one, one)).row_errors, plan_with(one, one).problems) == (one, ())
    assert (only(plan_with(None, None)).row_errors, plan_with(None, None).problems) == (None, ())
    for mixed in ((one, other), (one, None), (None, other)):
        plan = plan_with(*mixed)
        assert only(plan).row_errors is None
        assert only(plan).code == code, "each row is right by itself"
        [problem] = plan.problems
        assert "rows of its protection are of more than one training" in problem
        assert "register all rows of one" in problem


def test_what_rows_say_of_their_errors_is_read_or_as_good_as_not_said():
    said = {**GOOD, "r": 2, "coefficients": [[1, 1], [1, 2]]}
    assert read_described({**said, "row_errors": ALIKE}).row_errors == read_row_errors(ALIKE, make_code("sum", 2, 2))
    for nonsense in (None, True, {"0,1": [[1.0]]}, {"0,1": [[1.0, 2.0], [2.0, 1.0]]}, [1]):
        assert read_described({**said, "row_errors": nonsense}).row_errors is None


def test_of_several_confidences_none_is_believed_unless_they_are_one():
    """Rows of one code are packed together, and all bear the same."""
    told = {
        "score": "classes",
        "axis": -1,
        "probabilities": False,
        "curves": {"1": {"scores": [1.0], "expected": [0.9]}},
    }
    known = read_confidence(told)
    other = read_confidence({**told, "curves": {"1": {"scores": [1.0], "expected": [0.8]}}})
    assert only(plan_of(deployed(), parity(confidence=known), parity(confidence=known))).confidence == known
    for second in (other, None):
        assert only(plan_of(deployed(), parity(confidence=known), parity(confidence=second))).confidence is None
    assert read_described({**GOOD, "confidence": told}).confidence == known
    for nonsense in (True, "0.9", [], {"score": "luck"}, {**told, "curves": {"1": {"scores": ["a"], "expected": [1]}}}):
        assert read_described({**GOOD, "confidence": nonsense}).confidence is None


def test_of_several_tolerances_the_largest_counts():
    plan = plan_of(deployed(), parity(code="student", tolerance=4.5), parity(code="student", tolerance=9.0))
    assert only(plan).tolerance == 9.0
    assert only(plan_of(deployed(), parity(code="student"))).tolerance is None
    assert read_described({**GOOD, "tolerance": 4.5}).tolerance == 4.5
    for nonsense in (True, "0.9", 0, -1.0, None, float("nan"), float("inf")):
        assert read_described({**GOOD, "tolerance": nonsense}).tolerance is None


def test_what_any_archive_declares_is_never_coded():
    """The deployed archive may not be wrapped, so a protection's declaration counts for the pool."""
    assert only(plan_of(deployed(), parity())).never_code is None
    types, keys = Exclusions(content_types=("a/b",)), Exclusions(keys=("path",))
    bare = deployed(described=None)
    assert only(plan_of(bare, parity(code="exact", never_code=keys))).never_code == keys
    wrapped = deployed(described=replace(WRAPPED, never_code=types))
    assert only(plan_of(wrapped, parity(never_code=keys))).never_code == types | keys


def test_a_declaration_of_what_is_never_coded_is_read_or_refused():
    ours = {"wire": 1, "role": "deployed", "never_code": {"keys": ["path"]}}
    assert read_described(ours).never_code == Exclusions(keys=("path",))
    with pytest.raises(BadDescribe, match="never_code"):
        read_described({**ours, "never_code": "path"})

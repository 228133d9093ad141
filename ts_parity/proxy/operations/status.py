"""What operators see: the status as JSON and as a table, and the proxy's health.

Pure: plan, reports and the engine's snapshot in, plain values out. Knows nothing of HTTP or of how any of them was
made.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ts_parity import __version__
from ts_parity.config import MANAGED, InstanceSettings, Settings
from ts_parity.engine import Policy, Standing
from ts_parity.proxy.fleet.plan import NO_PROTECTION, Plan, PoolPlan
from ts_parity.proxy.fleet.reports import InstanceReport
from ts_parity.proxy.serving.conditions import DOWN, SERVING, EndpointCondition, endpoint_condition, worst
from ts_parity.tables import column_widths, columns

Json = dict[str, Any]

THIS_PROXY = "this proxy"
_POOL = ("pool", "code", "trust", "verdict", "deployed", "protections", "waiting", "reconstruct_after")
_PROCESS = ("process", "pid", "state", "uptime_s", "requests_in_flight", "answered", "restarts")


def status_json(
    plan: Plan,
    reports: Sequence[InstanceReport],
    settings: Settings,
    engine: Mapping[str, Any],
    state: Mapping[str, Any],
    now: float,
    slowness: Mapping[str, float],
) -> Json:
    """`state`: uptime and the like, put first. `now`: on the clock of `time.monotonic`, as in the reports. `slowness`:
    endpoint -> what it takes, to what its peers take.
    """
    pools = {name: _pool(plan, pool, settings.policy, engine, slowness) for name, pool in plan.pools.items()}
    endpoints: dict[str, list[Json]] = {}
    for endpoint in (endpoint for pool in pools.values() for endpoint in pool["endpoints"]):
        endpoints.setdefault(endpoint["instance"], []).append(endpoint)
    return {
        "version": __version__,
        **state,
        "problems": [*plan.problems, *trust_problems(engine), *endpoint_problems(engine)],
        "policy": {"extra_work": settings.policy.extra_work, "differing": settings.policy.differing},
        "pools": pools,
        "instances": [
            _instance(plan, report, settings.instances, endpoints.get(report.name, ()), now) for report in reports
        ],
        "engine": engine,
    }


def trust_problems(engine: Mapping[str, Any]) -> list[str]:
    """Protections and second copies that were taken out because of answers, theirs or the deployed instances'."""
    problems = []
    for name, pool in engine["pools"].items():
        trust = pool.get("trust")
        if pool["copies"]["reason"]:
            problems.append(f"{name}: {pool['copies']['reason']}")
        elif trust is not None and trust["state"] == Standing.OUT.value:
            problems.append(str(trust["reason"]))
    return problems


def endpoint_problems(engine: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is ejected: {endpoint['why_out']}; it is probed regularly"
        for name, endpoint in engine["endpoints"].items()
        if endpoint["health"] != "in"
    ]


def health(plan: Plan, draining: bool, engine: Mapping[str, Any]) -> Json:
    """`healthy`: each model has a deployed endpoint that is in. `degraded`: some model has none, so its answers are
    rebuilt where possible; or no instance says what it hosts. `unhealthy`: no model has a READY worker. `draining`:
    this proxy wants no more requests.
    """
    if draining:
        return {"status": "draining", "reason": "this proxy is being stopped"}
    deployed: dict[str, list[str]] = {}
    for endpoint in plan.fleet.endpoints:
        if endpoint.row is None:
            deployed.setdefault(endpoint.pool, []).append(endpoint.name)
    if not deployed and plan.unauthorized:
        return {"status": "degraded", "reason": f"all is only passed through: {'; '.join(plan.problems)}"}
    if not deployed:
        reason = "; ".join(plan.problems) or "no instance hosts a model"
        return {"status": "unhealthy", "reason": f"no deployed model has a READY worker: {reason}"}
    states = engine["endpoints"]
    for pool, names in deployed.items():
        known = [states[name] for name in names if name in states]
        if known and all(state["health"] != "in" for state in known):
            return {
                "status": "degraded",
                "reason": f"{pool}: all endpoints that serve it are ejected: {known[0]['why_out']}",
            }
    return {"status": "healthy"}


def status_table(status: Mapping[str, Any], width: int = 120) -> str:
    """The same for people, at most `width` columns wide."""
    lines = _wrapped(f"ts-parity {status['version']}, {status['state']}, up {status['uptime_s']:.0f} s", "", width)
    if "processes" in status:
        rows = [_PROCESS, *(tuple(_cell(p[key]) for key in _PROCESS) for p in status["processes"])]
        lines += ["", *_columns(rows, width)]
    pools = [_POOL, *(_pool_row(name, pool) for name, pool in status["pools"].items())]
    lines += ["", *_columns(pools, width, [_pool_notes(pool) for pool in status["pools"].values()])]
    endpoints = [endpoint for pool in status["pools"].values() for endpoint in pool["endpoints"]]
    instances = [("instance", "state", "places", "domain")]
    for instance in status["instances"]:
        name, domain = instance["name"], instance["domain"]
        state, places = _state(instance, endpoints), str(instance["places"])
        kind = "" if instance.get("kind", MANAGED) == MANAGED else f"{instance['kind']}, "
        instances.append((name, kind + state, places, domain if domain != name else ""))
    lines += ["", *_columns(instances, width)]
    if "sharing" in status:
        lines += ["", *_columns(_peer_rows(status["sharing"]), width)]
    if status["problems"]:
        lines += ["", "problems:"]
        lines += [line for problem in status["problems"] for line in _wrapped(problem, "  - ", width)]
    return "\n".join(lines)


def _peer_rows(sharing: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The proxies in front of this fleet, and the models that each serves for all of them."""
    served: dict[str, list[str]] = {}
    for pool, owner in sharing["served_by"].items():
        served.setdefault(owner, []).append(pool)
    rows = [("proxy", "state", "serves"), (THIS_PROXY, "", ", ".join(served.get(THIS_PROXY, ())))]
    return [*rows, *((p["name"], p["state"], ", ".join(served.get(p["name"], ()))) for p in sharing["peers"])]


def _pool_row(name: str, pool: Mapping[str, Any]) -> tuple[str, ...]:
    code, endpoints, after_s = pool["code"], pool["endpoints"], pool["reconstruct_after_s"]
    return (
        name,
        f"{code['name']} k={code['k']} r={code['r']}" if code else "none",
        pool["trust"]["state"] if pool.get("trust") else "",
        ", ".join(dict.fromkeys(pool["verdicts"])),
        _how_many([endpoint for endpoint in endpoints if endpoint["row"] is None]),
        _how_many([endpoint for endpoint in endpoints if endpoint["row"] is not None]),
        str(pool["waiting"]),
        f"{after_s * 1000:.1f} ms" if after_s is not None else "",
    )


def _pool_notes(pool: Mapping[str, Any]) -> list[str]:
    """What is too long for a cell."""
    return [str(pool["does"])]


def _how_many(endpoints: Sequence[Mapping[str, Any]]) -> str:
    are_in = sum(endpoint.get("health", "in") == "in" for endpoint in endpoints)
    return f"{len(endpoints)}" if are_in == len(endpoints) else f"{are_in} of {len(endpoints)} in"


def _state(instance: Mapping[str, Any], endpoints: Sequence[Mapping[str, Any]]) -> str:
    if not instance["up"]:
        return "down"
    states = {e.get("health", "in") for e in endpoints if e["instance"] == instance["name"]}
    return next((state for state in ("out", "trial") if state in states), "in")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.0f}" if isinstance(value, float) else str(value)


def _pool(plan: Plan, pool: PoolPlan, policy: Policy, engine: Mapping[str, Any], slowness: Mapping[str, float]) -> Json:
    live = engine["pools"].get(pool.name, {})
    code = pool.code
    return {
        "does": what_it_does(pool, policy, live),
        "model": pool.model,
        "version": pool.version,
        "code": None
        if code is None
        else {"name": code.name, "k": code.k, "r": code.r, "family": code.family.value, "partial": pool.partial},
        "reason": pool.reason,
        "calibrated": code is not None and (code.lossless or pool.confidence is not None),
        "verdicts": list(pool.verdicts),
        "repeatable": pool.repeatable,
        "trust": live.get("trust"),
        "copies": live.get("copies"),
        "waiting": live.get("waiting", 0),
        "reconstruct_after_s": live.get("reconstruct_after_s"),
        "usual_s": live.get("usual_s"),
        "differing": live.get("differing"),
        "endpoints": [
            {
                "name": endpoint.name,
                "instance": endpoint.instance,
                "pool": pool.name,
                "row": endpoint.row,
                "places": endpoint.places,
                "slowness": round(slowness[endpoint.name], 3) if endpoint.name in slowness else None,
                "wrapped": plan.targets[endpoint.name].wrapped,
                **(of_engine := engine["endpoints"].get(endpoint.name, {})),
                "condition": endpoint_condition(of_engine, live)._asdict() if of_engine else None,
            }
            for endpoint in plan.fleet.endpoints
            if endpoint.pool == pool.name
        ],
    }


def what_it_does(pool: PoolPlan, policy: Policy, live: Mapping[str, Any]) -> str:
    """In a sentence, what late queries of this model get, and why. `live`: the engine's snapshot of the pool."""
    code, trust, copies = pool.code, live.get("trust") or {}, live.get("copies") or {}
    if not pool.repeatable:
        return "queries are balanced and nothing else, since the model may be asked once only"
    if copies.get("reason"):
        return f"queries are balanced and nothing else: {copies['reason']}"
    if not policy.extra_work:
        second = "nothing, since extra_work is 0"
    elif live.get("instances") == 1:
        second = "no second copies, since one instance serves it"
    else:
        second = f"second copies, for at most {policy.extra_work:.3g} extra inferences a query"
    if code is None:
        why = "it has no protection" if pool.reason == NO_PROTECTION else f"no protection: {pool.reason}"
        return f"late queries get {second}; {why}"
    if trust.get("state", Standing.IN_USE.value) != Standing.IN_USE.value:
        return f"late queries get {second}; {code.name} is {trust['state']}: {trust['reason']}"
    if live.get("launch") == "group":
        whose = f"every {code.k} queries" if code.k > 1 else "every query"
        what = f"{code.name} is launched with {whose}, since it has machines of its own; late queries get its answers, "
        what += f"then {second}"
    elif policy.extra_work:
        target = "" if policy.target_s is None else f", and in time for an answer within {policy.target_s:g} s"
        what = f"{code.name} is launched for late queries{target}, since it stands beside the model; then they get "
        what += second
    else:
        return f"late queries get {second}; {code.name} stands beside the model and would be launched for them only"
    if code.lossless:
        return f"{what}; its answers are the model's own"
    limit = "any number of" if policy.differing >= 1.0 else f"at most {100 * policy.differing:.3g} % of all"
    return f"{what}; {limit} answers may differ from the model's own"


def _instance(
    plan: Plan,
    report: InstanceReport,
    instances: Sequence[InstanceSettings],
    endpoints: Sequence[Mapping[str, Any]],
    now: float,
) -> Json:
    """`endpoints`: those on it, as the pools list them."""
    given = next(instance for instance in instances if instance.name == report.name)
    places = next((i.places for i in plan.fleet.instances if i.name == report.name), 0)
    return {
        "name": report.name,
        "kind": given.kind,
        "inference": given.inference,
        "management": given.management,
        "domain": given.domain or given.name,
        "up": report.up,
        "seen_s": round(now - report.seen_at, 3),
        "condition": _condition(report, endpoints)._asdict(),
        "in_flight": sum(endpoint.get("in_flight", 0) for endpoint in endpoints),
        "slowness": max((each["slowness"] for each in endpoints if each["slowness"] is not None), default=None),
        "places": places,
        "model_places": _model_places(places, given, endpoints),
        "models": [{"model": m.model, "version": m.version, "ready": m.ready} for m in report.models],
        "problem": report.problem,
    }


def _condition(report: InstanceReport, endpoints: Sequence[Mapping[str, Any]]) -> EndpointCondition:
    """The worst of its endpoints'."""
    if not report.up:
        return EndpointCondition(DOWN, report.problem or "it cannot be reached")
    if not endpoints:
        return EndpointCondition(DOWN, report.problem or "it hosts no model with a READY worker that could be used")
    found = worst(EndpointCondition(**each["condition"]) for each in endpoints if each["condition"])
    troubled = [each for each in endpoints if each["condition"] and each["condition"]["state"] != SERVING]
    if found.state == SERVING or len(endpoints) == 1:
        return found
    model = next(e["name"].partition("/")[2] for e in troubled if e["condition"] == found._asdict())
    return EndpointCondition(found.state, f"{model}: {found.reason}")


def _model_places(places: int, given: InstanceSettings, endpoints: Sequence[Mapping[str, Any]]) -> int:
    """How many tasks it may have in flight: where an operator has not said it, each model has places of its own, which
    its protection shares.
    """
    if given.places:
        return places
    of_pool: dict[str, int] = {}
    for each in endpoints:
        of_pool[each["pool"]] = max(of_pool.get(each["pool"], 0), each["places"])
    return sum(of_pool.values())


def _columns(rows: Sequence[tuple[str, ...]], width: int, notes: Sequence[Sequence[str]] = ()) -> list[str]:
    """A heading and rows, each with its notes below; on a narrow screen one paragraph for each row."""
    widths = column_widths(rows)
    fits = sum(widths) + 2 * len(widths) - 2 <= width
    lines = []
    for number, (row, line) in enumerate(zip(rows, columns(rows), strict=True)):
        if fits:
            lines.append(line)
        elif number:
            cells = [f"{name} {cell}" for name, cell in zip(rows[0][1:], row[1:], strict=True) if cell]
            lines += [*_wrapped(f"{rows[0][0]} {row[0]}", "", width), *_wrapped("; ".join(cells), "    ", width)]
        below = notes[number - 1] if number and notes else ()
        lines += [line for note in below for line in _wrapped(note, "    ", width)]
    return lines


def _wrapped(text: str, before: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, max(width, 20), initial_indent=before, subsequent_indent=" " * len(before), break_on_hyphens=False
    )

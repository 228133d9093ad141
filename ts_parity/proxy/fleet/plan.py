"""Turns the instances' reports into the engine's fleet: pools, places and codes, and a list of problems.

Pure: the same reports give the same plan. Anything wrong becomes a problem, which is a sentence for log and status, and
the fleet serves without the part that is wrong. Knows reports and settings. Knows nothing of how or when reports are
fetched.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts_parity.codes import ErasureCode, Family, RowErrors
from ts_parity.confidence import Confidence
from ts_parity.config import AUTO, EXACT_ONLY, MANAGED, OFF, InstanceSettings, ModelSettings
from ts_parity.engine import Endpoint, Fleet, Instance, Pool
from ts_parity.exclusion import Exclusions
from ts_parity.proxy.fleet.payloads import Target
from ts_parity.proxy.fleet.reports import REFUSED, InstanceReport, ModelReport

NO_PROTECTION = "no protection for it was found"


@dataclass(frozen=True)
class PoolPlan:
    """One model and version, and how it is protected. `reason`: why `code` is None."""

    name: str
    model: str
    version: str
    code: ErasureCode | None
    reason: str
    partial: bool
    verdicts: tuple[str, ...]
    repeatable: bool = True
    """As far as is known, the same request gets the same answer again and changes nothing."""
    agreement: float | None = None
    """The agreement that the protection's report promises: the least of its rows."""
    tolerance: float | None = None
    """How far off numbers in its protection's answers usually are: the largest of its rows."""
    row_errors: RowErrors | None = None
    """How its protection's rows err, by which they are weighed; None: all alike."""
    confidence: Confidence | None = None
    """Expected agreement of a rebuilt answer, from its raw output; None if the rows have none, or differ."""
    cost: float | None = None
    """Of a full group, in deployed inferences: the largest of its rows; None if it was not measured."""
    never_code: Exclusions | None = None
    """Bodies that no protection may answer, as the archives of pool and protections declare."""
    kind: str = MANAGED
    """Of the servers that host it."""


@dataclass(frozen=True)
class Plan:
    """The engine's fleet, and what else the proxy needs to reach it."""

    fleet: Fleet = field(default_factory=lambda: Fleet((), (), ()))
    problems: tuple[str, ...] = ()
    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Model -> the version that a request without one goes to."""
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Model (protections excluded) -> instances that are up and host it."""
    protections: frozenset[str] = frozenset()
    """Names of protections, which clients may not call."""
    up: tuple[str, ...] = ()
    serving: frozenset[str] = frozenset()
    """Pools with a READY worker."""
    cold: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Pool -> instances whose workers may need a prediction to become READY."""
    missing: frozenset[str] = frozenset()
    """Models and pools that were hosted only by instances that are down now."""
    down_by_gateway: tuple[str, ...] = ()
    """Instances that are down according to a gateway."""
    unauthorized: tuple[str, ...] = ()
    """Instances that are up but refuse our management key: they may host any model."""
    passed: Mapping[str, str] = field(default_factory=dict)
    """Model -> why its requests are only passed through, whatever they ask for."""


@dataclass(frozen=True)
class PlanOptions:
    """What the configuration says about the plan. `uncoded`: pool -> why it is not coded, learnt while serving.

    The plan is for process number `process` of the `processes` that share all places.
    """

    instances: tuple[InstanceSettings, ...]
    protect: str = AUTO
    uncoded: Mapping[str, str] = field(default_factory=dict)
    process: int = 0
    processes: int = 1
    models: tuple[ModelSettings, ...] = ()
    lossless: bool = False
    """Use no protection whose answers may differ from the deployed model's."""
    proved: bool = False
    """Use protections without a trial, for tests of what comes after it."""

    @property
    def of_students(self) -> frozenset[str]:
        """Instances that serve nothing but students."""
        return frozenset(where for model in self.models for where, _ in model.students if where)

    def repeatable(self, model: str, version: str) -> bool:
        return all(given.repeatable for given in self.models if given.name == model and given.version in ("", version))

    def share(self, places: int, instance: str) -> int:
        """The share of this process in the places of an instance, or of a model on it."""
        # Start with another process for each instance, or process 0 would get all the places left over.
        turn = [given.name for given in self.instances].index(instance)
        return share(places, (self.process + turn) % self.processes, self.processes)


HostedModel = tuple[str, ModelReport]
"""A model as an instance (by name) reports it."""


def make_plan(reports: Sequence[InstanceReport], options: PlanOptions) -> Plan:
    up = [report for report in reports if report.up]
    problems = [f"{report.name}: {report.problem}" for report in reports if report.problem]
    members = [(report.name, model) for report in up for model in report.models]
    problems += [f"{name}: {m.model} {m.version}: {m.problem}" for name, m in members if m.problem]
    if not up:
        problems.append("no instance can be reached; every prediction is answered with 503")
    passed = _passed(members)
    own = [m for m in members if not m[1].is_protection and m[1].model not in passed]
    deployed = _by_pool(own)
    versions, differing = _versions(own)
    protections = [_of_default_version(m, versions) for m in members if m[1].is_protection]
    problems += _orphans(protections, deployed)
    problems += differing
    pools: dict[str, PoolPlan] = {}
    endpoints: list[Endpoint] = []
    targets: dict[str, Target] = {}
    for (model, version), all_members in deployed.items():
        name = pool_name(model, version)
        used, trouble = _usable_members(name, all_members)
        pool, rows, more = _protect(model, version, used, protections, options)
        problems += trouble + more
        pools[name] = pool
        for host, member, row in [*((h, m, None) for h, m in used), *rows]:
            places = options.share(member.places, host)
            called = f"{host}/{pool_name(member.model, member.version)}"
            endpoint = Endpoint(called, host, name, row, places, member.running, member.apart)
            endpoints.append(endpoint)
            cost = member.described.cost if member.described is not None else None
            wrapped, default = member.described is not None, member.default and pool.code is None
            elsewhere = row is not None and host in options.of_students
            targets[called] = Target(host, member.real_name, member.version, wrapped, cost, default, elsewhere)
    return Plan(
        fleet=Fleet(
            _instances(up, endpoints, options),
            tuple(endpoints),
            tuple(_engine_pool(pool, options) for pool in pools.values()),
        ),
        problems=tuple(dict.fromkeys(problems)),
        pools=pools,
        targets=targets,
        versions=versions,
        hosts=_hosts(up, {m.model for _, m in protections}, passed),
        protections=frozenset(m.model for _, m in protections if m.kind == MANAGED),
        passed=passed,
        up=tuple(report.name for report in up),
        serving=frozenset(endpoint.pool for endpoint in endpoints if endpoint.row is None),
        cold={
            pool_name(model, version): hosts
            for (model, version), all_members in deployed.items()
            if (hosts := tuple(host for host, m in all_members if m.cold))
        },
        missing=_missing(reports),
        down_by_gateway=tuple(report.name for report in reports if report.down_by_gateway),
        unauthorized=tuple(report.name for report in reports if report.unauthorized),
    )


def _engine_pool(pool: PoolPlan, options: PlanOptions) -> Pool:
    code, cost = pool.code, 1.0
    if pool.cost is not None and code is not None and code.family is Family.BACKUP:
        cost = pool.cost / code.k
    return Pool(pool.name, code, pool.partial, pool.repeatable, pool.agreement, options.proved, cost)


def share(places: int, process: int, processes: int) -> int:
    """The shares add up to all places; but never 0, since a process without a place could not serve."""
    return max(1, places // processes + (process < places % processes))


def pool_name(model: str, version: str) -> str:
    """`version`: empty where the server tells none."""
    return f"{model}/{version}" if version else model


def _passed(members: Sequence[HostedModel]) -> dict[str, str]:
    """A student of a plain server is a model that clients may ask as they always could; nothing stands in for it."""
    passed = {m.model: m.passed for _, m in members if m.passed}
    deployed = {m.model for _, m in members if not m.is_protection}
    return passed | {
        m.model: f"it is the student of {m.described.protects.model}"
        for _, m in members
        if m.kind != MANAGED
        and m.model not in deployed
        and m.described is not None
        and m.described.protects is not None
    }


def _of_default_version(member: HostedModel, versions: Mapping[str, str]) -> HostedModel:
    """A student that the configuration names without a version protects the default one."""
    host, m = member
    described = m.described
    if m.kind == MANAGED or described is None or described.protects is None or described.protects.version:
        return member
    protects = replace(described.protects, version=versions.get(described.protects.model, ""))
    return host, replace(m, described=replace(described, protects=protects))


def _by_pool(members: Sequence[HostedModel]) -> dict[tuple[str, str], list[HostedModel]]:
    pools: dict[tuple[str, str], list[HostedModel]] = {}
    for member in members:
        pools.setdefault((member[1].model, member[1].version), []).append(member)
    return pools


def _usable_members(pool: str, members: Sequence[HostedModel]) -> tuple[list[HostedModel], list[str]]:
    """-> the members that can be used now, and what is wrong with the others."""
    problems = [f"{host}: {pool} has no READY worker" for host, m in members if not m.ready]
    used = [(host, m) for host, m in members if m.ready]
    if any(m.described is not None for _, m in used):
        # The rest of the pool is wrapped, so these are too: they are frozen or overloaded, and can wait until they
        # answer.
        silent = [host for host, m in used if m.silent]
        problems += [f"{host}: {pool} did not answer describe; not used until it does" for host in silent]
        used = [(host, m) for host, m in used if not m.silent]
    else:
        # A query sent to a worker that may be busy with describe would wait for it, so other members come first.
        free = [(host, m) for host, m in used if not m.describing]
        describing = [host for host, m in used if m.describing] if free else []
        problems += [f"{host}: {pool} has not answered describe yet; others serve meanwhile" for host in describing]
        used = free or used
        silent = [host for host, m in used if m.silent]
        problems += [f"{host}: {pool} did not answer describe; served as if it were not wrapped" for host in silent]
    return used, problems


def _protect(
    model: str,
    version: str,
    members: Sequence[HostedModel],
    protections: Sequence[HostedModel],
    options: PlanOptions,
) -> tuple[PoolPlan, list[tuple[str, ModelReport, int]], list[str]]:
    """-> the pool with its code, its protection endpoints with their rows, and what is wrong."""
    pool = pool_name(model, version)
    candidates, problems = _matching(pool, members, protections)
    offered, reason = _usable_codes(candidates, options)
    real = members[0][1].real_name if members else model
    once = _only_once(real, version, members, options)
    obstacles = [once or _obstacle(pool, each, members, options) for each in offered]
    code = next((each for each, obstacle in zip(offered, obstacles, strict=True) if not obstacle), None)
    if code is None:
        reason = next(iter(obstacles), reason)
    if code is None and candidates:
        problems.append(f"{pool} is not coded: {reason}")
    elif code is not None and len(offered) > 1:
        others = ", ".join(_in_words(each) for each in offered if each != code)
        problems.append(
            f"{pool} has protections of several codes: {_in_words(code)} is used, {others} is not; unregister "
            "what is not wanted, or say which code (protect)"
        )
    chosen = [(host, m, _row(m)) for host, m in candidates if code is not None and _code(m) == code]
    if code is not None:
        missing = sorted(set(range(code.r)) - {row for _, m, row in chosen if m.ready})
        if missing:
            problems.append(f"{pool}: no READY endpoint for protection row {', '.join(map(str, missing))} of {code.r}")
    rows = [(host, m, row) for host, m, row in chosen if m.ready]
    partial = bool(chosen) and all(m.described is not None and m.described.partial for _, m, _ in chosen)
    archives = [m for _, m in members if m.described is not None or m.kind == MANAGED]
    verdicts = tuple(dict.fromkeys(m.described.verdict if m.described else "not wrapped" for m in archives))
    values = [m.described.agreement for _, m, _ in chosen if m.described is not None]
    agreement = min((share for share in values if share is not None), default=None)
    off = [m.described.tolerance for _, m, _ in chosen if m.described is not None]
    tolerance = max((each for each in off if each is not None), default=None)
    costs = [m.described.cost for _, m, _ in chosen if m.described is not None]
    errors = {m.described.row_errors for _, m, _ in chosen if m.described is not None}
    if len(errors) > 1:
        problems.append(
            f"{pool}: the rows of its protection are of more than one training, so they are weighed as if all erred "
            "alike, which is less exact; register all rows of one"
        )
    plan = PoolPlan(
        pool,
        model,
        version,
        code,
        reason,
        partial,
        verdicts,
        not once,
        agreement,
        tolerance,
        next(iter(errors)) if len(errors) == 1 else None,
        _confidence([m for _, m, _ in chosen]),
        max((cost for cost in costs if cost is not None), default=None),
        _never_code(members, candidates),
        members[0][1].kind if members else MANAGED,
    )
    return plan, rows, problems


def _confidence(rows: Sequence[ModelReport]) -> Confidence | None:
    values = [m.described.confidence for m in rows if m.described is not None]
    return values[0] if values and all(each == values[0] for each in values) else None


def _only_once(model: str, version: str, members: Sequence[HostedModel], options: PlanOptions) -> str:
    """Why a query must run only once, so that no copy or protection may answer it; empty if it need not."""
    if not options.repeatable(model, version):
        return "the configuration says that it is not repeatable"
    for host, m in members:
        if m.described is not None and not m.described.repeatable:
            return f"it is not repeatable: {m.described.reason or 'no reason given'} ({host})"
    return ""


def _never_code(*groups: Sequence[HostedModel]) -> Exclusions | None:
    declared = [m.described.never_code for members in groups for _, m in members if m.described is not None]
    return functools.reduce(operator.or_, [each for each in declared if each is not None], Exclusions()) or None


def _matching(
    pool: str, members: Sequence[HostedModel], protections: Sequence[HostedModel]
) -> tuple[list[HostedModel], list[str]]:
    """-> the protections made for this model, version and weights, and what is wrong with others."""
    weights = {m.described.weights for _, m in members if m.described is not None and m.described.weights}
    matching, problems = [], []
    for host, m in protections:
        protects = m.described.protects if m.described else None
        if protects is None or pool_name(protects.model, protects.version) != pool:
            continue
        if m.described is not None and m.described.verdict == REFUSED:
            problems.append(f"{host}: {m.model} {m.version} is not used: it refuses groups: {m.described.reason}")
        elif m.described is not None and not m.described.repeatable:
            problems.append(f"{host}: {m.model} {m.version} is not used: it is not repeatable: {m.described.reason}")
        elif protects.weights and weights and protects.weights not in weights:
            problems.append(
                f"{host}: {m.model} {m.version} is not used: it was made for other weights of {pool} "
                f"({protects.weights[:19]}) than are deployed ({', '.join(sorted(w[:19] for w in weights))})"
            )
        else:
            matching.append((host, m))
    return matching, problems


def _usable_codes(candidates: Sequence[HostedModel], options: PlanOptions) -> tuple[list[ErasureCode], str]:
    """-> the codes that may be used, best first; if there is none, why."""
    if options.protect == OFF:
        return [], "protections are switched off (protect = off)"
    codes = list(dict.fromkeys(code for _, m in candidates if (code := _code(m)) is not None))
    if not codes:
        return [], NO_PROTECTION
    fitting = [c for c in codes if options.protect in (AUTO, c.name) or (options.protect == EXACT_ONLY and c.lossless)]
    asked = f"protect = {options.protect}"
    if fitting and options.lossless:
        fitting, asked = [code for code in fitting if code.lossless], "differing = 0"
    if not fitting:
        there = ", ".join(map(_in_words, codes))
        return [], f"the protections are {there}, the configuration asks for {asked}"
    return sorted(fitting, key=lambda code: _preference(code, candidates)), ""


def _preference(code: ErasureCode, candidates: Sequence[HostedModel]) -> tuple[Any, ...]:
    """A sort key: what can be used now, then what promises most, then the smallest group. While one protection replaces
    another both are registered, and all proxies must choose the same.
    """
    own = [m for _, m in candidates if _code(m) == code]
    complete = {_row(m) for m in own if m.ready} == set(range(code.r))
    values = [m.described.agreement for m in own if m.described is not None and m.described.agreement is not None]
    promised = 1.0 if code.lossless else min(values, default=0.0)
    # About nine in ten answers are within any protection's own tolerance, so the tolerance is what to compare.
    off = max((m.described.tolerance or 0.0 for m in own if m.described is not None), default=0.0)
    return (not complete, off, -promised, code.k, code.name, code.r, code.coefficients)


def _in_words(code: ErasureCode) -> str:
    return f"{code.name} with k={code.k} r={code.r}"


def _obstacle(pool: str, code: ErasureCode, members: Sequence[HostedModel], options: PlanOptions) -> str:
    """Why this pool cannot be coded; empty if it can."""
    if pool in options.uncoded:
        return options.uncoded[pool]
    described = [(host, m.described) for host, m in members]
    for what in ("weights", "output"):
        seen = {str(getattr(d, what)): host for host, d in described if d is not None and getattr(d, what)}
        if len(seen) > 1:
            values = ", ".join(f"{value[:40]} on {host}" for value, host in seen.items())
            return f"its deployed endpoints disagree about {'the raw output' if what == 'output' else what}: {values}"
    if code.family is Family.PARITY:
        # A finish may go to any of them, and one that is not wrapped would take the frame for a client's body.
        bare = [host for host, d in described if d is None]
        if bare:
            return f"code {code.name} needs wrapped archives, and that of {', '.join(bare)} is not"
        refused = [(host, d) for host, d in described if d is not None and d.verdict == REFUSED]
        if refused:
            return f"its handler cannot be coded: {refused[0][1].reason or 'no reason given'} ({refused[0][0]})"
    return ""


def _orphans(
    protections: Sequence[HostedModel], deployed: Mapping[tuple[str, str], Sequence[HostedModel]]
) -> list[str]:
    """Problems: protections of a model that no instance serves, or only in another version."""
    problems = []
    for host, m in protections:
        protects = m.described.protects if m.described else None
        if protects is None or (protects.model, protects.version) in deployed:
            continue
        others = sorted((version for model, version in deployed if model == protects.model), key=by_number)
        served = f"deployed is version {', '.join(others)}" if others else "no instance serves that model"
        served += _same_weights_elsewhere(protects.weights, deployed)
        problems.append(
            f"{host}: {m.model} {m.version} is not used: it protects {protects.model} {protects.version}, and {served}"
        )
    return problems


def _same_weights_elsewhere(weights: str | None, deployed: Mapping[tuple[str, str], Sequence[HostedModel]]) -> str:
    """A hint: deployed models that have the same weights under another name. Their handler may differ, so this only
    tells the operator and uses nothing.
    """
    twins = [
        (model, version)
        for (model, version), members in deployed.items()
        if weights and any(m.described is not None and m.described.weights == weights for _, m in members)
    ]
    if not twins:
        return ""
    have = "has" if len(twins) == 1 else "have"
    return (
        f"; {' and '.join(map(' '.join, twins))} {have} these weights: make the protection again with --protects "
        f"{'/'.join(twins[0])}, or register the model under the name that is protected"
    )


def _instances(
    up: Sequence[InstanceReport], endpoints: Sequence[Endpoint], options: PlanOptions
) -> tuple[Instance, ...]:
    """All models of an instance share one machine, which is busy when as many tasks run as its largest endpoint has
    places. That number limits protections only, unless an operator has set it.
    """
    settings = {instance.name: instance for instance in options.instances}
    instances = []
    for report in up:
        given = settings[report.name]
        largest = max((e.places for e in endpoints if e.instance == report.name), default=1)
        places = options.share(given.places, report.name) if given.places else largest
        instances.append(Instance(report.name, places, given.domain or given.name, capped=bool(given.places)))
    return tuple(instances)


def by_number(version: str) -> list[tuple[int, int, str]]:
    """A sort key: 9.0 comes before 10.0, and numbers before words."""
    parts = re.findall(r"[0-9]+|[^0-9.]+", version)
    return [(0, int(part), "") if part.isdecimal() and len(part) < 20 else (1, 0, part) for part in parts]


def _versions(members: Sequence[HostedModel]) -> tuple[dict[str, str], list[str]]:
    """-> the default version of each model, and which instances have another."""
    votes: dict[str, dict[str, list[str]]] = {}
    for host, m in members:
        if m.default:
            votes.setdefault(m.model, {}).setdefault(m.version, []).append(host)
    # The larger version wins a tie, so that all proxies of a fleet choose alike.
    chosen = {
        model: max(hosts, key=lambda version: (len(hosts[version]), by_number(version), version))
        for model, hosts in votes.items()
    }
    problems = [
        f"the default version of {model} differs: "
        + ", ".join(f"{version} on {' and '.join(hosts[version])}" for version in sorted(hosts, key=by_number))
        + f"; requests without a version go to {chosen[model]}"
        for model, hosts in votes.items()
        if len(hosts) > 1
    ]
    return chosen, problems


def _hosts(
    up: Sequence[InstanceReport], protections: Collection[str], passed: Collection[str]
) -> dict[str, tuple[str, ...]]:
    hosts: dict[str, dict[str, None]] = {}
    for report in up:
        deployed = [m.model for m in report.models if not m.is_protection or m.model in passed]
        for model in [*deployed, *(name for name in report.undescribed if name not in protections)]:
            hosts.setdefault(model, {})[report.name] = None
    return {model: tuple(names) for model, names in hosts.items()}


def _missing(reports: Sequence[InstanceReport]) -> frozenset[str]:
    """Models that only down instances had. An instance that is up has unregistered what it no longer has, while a down
    one may come back with it. While an instance that is up refuses our key, nothing is known to be missing.
    """
    if any(report.unauthorized for report in reports):
        return frozenset()
    last_hosted = [m for report in reports for m in report.last_hosted if not m.is_protection]
    here = [m for report in reports if report.up for m in report.models]
    undescribed = {name for report in reports for name in report.undescribed}
    models = {m.model for m in last_hosted} - {m.model for m in here} - undescribed
    there = {(m.model, m.version) for m in here}
    gone = {(m.model, m.version) for m in last_hosted if m.model not in undescribed} - there
    return frozenset(models | {pool_name(*each) for each in gone})


def _code(model: ModelReport) -> ErasureCode | None:
    return model.described.code if model.described is not None else None


def _row(model: ModelReport) -> int:
    return model.described.row if model.described is not None else 0

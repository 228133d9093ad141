"""Checks of what is there for late queries, and of a running proxy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

from ts_parity import __version__
from ts_parity.config import MANAGED
from ts_parity.doctor.check import NO_INSTANCE, NO_PROXY, CannotTell
from ts_parity.doctor.gathered import Gathered
from ts_parity.engine.trust import FAILURES, TRIAL_WHERE_QUIET, UNREPORTED, Standing
from ts_parity.proxy.fleet.plan import NO_PROTECTION
from ts_parity.proxy.serving.conditions import SERVING

FRONTEND_BYTES: Final = 6_553_500
"""TorchServe's own default of max_request_size and max_response_size."""
_ITEM_BYTES: Final = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_ENOUGH: Final = 200
"""Queries among which a trial finds early ones to compare, unless no place is ever idle."""


def protections_not_used(gathered: Gathered) -> Sequence[str] | CannotTell:
    """A protection is registered and cannot be used."""
    return _without(gathered, lambda reason: reason != NO_PROTECTION)


def no_protections(gathered: Gathered) -> Sequence[str] | CannotTell:
    return _without(gathered, lambda reason: reason == NO_PROTECTION)


def _without(gathered: Gathered, wanted: Any) -> Sequence[str] | CannotTell:
    """A running proxy knows more than the instances tell: answers that are streamed, say."""
    if gathered.status is not None:
        pools = {n: (p["code"] is not None, p["reason"]) for n, p in gathered.status.get("pools", {}).items()}
    else:
        pools = {n: (p.code is not None, p.reason) for n, p in gathered.plan.pools.items()}
    if not pools:
        return NO_INSTANCE
    return [f"{name}: {reason}" for name, (coded, reason) in pools.items() if not coded and wanted(reason)]


def orphans(gathered: Gathered) -> Sequence[str]:
    """Protections that are made for another model, another version or other weights, or that refuse groups."""
    return [problem for problem in gathered.plan.problems if "is not used: it " in problem]


def one_domain(gathered: Gathered) -> Sequence[str] | CannotTell:
    """Nothing can answer for a model whose endpoints all fail together."""
    found = []
    pools = list(gathered.plan.pools)
    for pool in pools:
        endpoints = gathered.endpoints(pool)
        domains = {gathered.domain(endpoint.instance) for endpoint in endpoints}
        if len(domains) == 1:
            instances = dict.fromkeys(endpoint.instance for endpoint in endpoints)
            whose = "its only instance" if len(instances) == 1 else f"all of its {len(instances)} instances"
            found.append(f"{pool}: {whose} and all that could answer for it are in failure domain {domains.pop()}")
    return found if pools else NO_INSTANCE


def large_groups(gathered: Gathered) -> Sequence[str] | CannotTell:
    if not gathered.sizes:
        if not any(pool.code for pool in gathered.plan.pools.values()):
            return CannotTell("no model is protected")
        return CannotTell(
            "nobody knows how large bodies are: no running proxy has seen any, and max_body_bytes is not set"
        )
    return [
        f"{probe.instance} refuses a request of {probe.size} bytes, which a group of {probe.pool} may have"
        for probe in gathered.sizes
        if not probe.taken
    ]


def large_answers(gathered: Gathered) -> Sequence[str] | CannotTell:
    """The limit itself is nowhere to be read, so TorchServe's default is what there is to compare with."""
    if not any(pool.code for pool in gathered.plan.pools.values()):
        return CannotTell("no model is protected")
    hosted = gathered.hosted()
    found = []
    for name, pool in gathered.plan.pools.items():
        sizes = [output_bytes(m.described.output) for _, m in hosted.get(name, ()) if m.described is not None]
        known = [size for size in sizes if size is not None]
        if pool.code is None or not known:
            continue
        answers = 1 if pool.code.coefficients else pool.code.k
        if max(known) * answers > FRONTEND_BYTES:
            found.append(
                f"{name}: what answers a group has {max(known) * answers} bytes of raw outputs, and TorchServe's "
                f"default max_response_size is {FRONTEND_BYTES}"
            )
    return found


def output_bytes(output: str) -> int | None:
    """Of a raw output as describe has it, float32[1, 1000]; None if that is not known."""
    dtype, bracket, shape = output.partition("[")
    try:
        sizes = json.loads(bracket + shape)
        return prod(int(size) for size in sizes) * _ITEM_BYTES[dtype.removeprefix("torch.")]
    except (ValueError, TypeError, KeyError):
        return None


def lost_trials(gathered: Gathered) -> Sequence[str] | CannotTell:
    """A trial that goes on and cannot end well, found out before the proxy gives it up."""
    if gathered.status is None:
        return NO_PROXY
    found = []
    for name, pool in gathered.status.get("pools", {}).items():
        trust = pool.get("trust") or {}
        if trust.get("state") == Standing.ON_TRIAL.value and (why := _why_lost(gathered, name, pool, trust)):
            found.append(f"{name}: {why}")
    return found


def _why_lost(gathered: Gathered, name: str, pool: Mapping[str, Any], trust: Mapping[str, Any]) -> str:
    agreed, differed, unknown, failed = (trust[each] for each in ("agreed", "differed", "unknown", "failed"))
    compared, plan = agreed + differed, gathered.plan.pools.get(name)
    lossless = plan is not None and plan.code is not None and plan.code.lossless
    if unknown >= TRIAL_WHERE_QUIET and not compared:
        return f"none of {unknown} answers could be compared with the deployed model's own: {trust['reason']}"
    if failed >= FAILURES // 2 and failed > compared:
        return f"{failed} groups on trial brought nothing, and {compared} were compared"
    if differed and (lossless or (compared >= TRIAL_WHERE_QUIET and agreed < UNREPORTED * compared)):
        return f"{differed} of {compared} answers differ from the deployed model's own"
    queries = (pool.get("recent") or {}).get("queries", 0)
    if not compared + unknown + failed and queries >= _ENOUGH:
        return (
            f"nothing was compared in {queries} queries: its trial runs on idle places, and there seem to be none, or "
            "no query's own answer comes early"
        )
    return ""


def taken_out(gathered: Gathered) -> Sequence[str] | CannotTell:
    if gathered.status is None:
        return NO_PROXY
    found = []
    for name, pool in gathered.status.get("pools", {}).items():
        trust, copies = pool.get("trust") or {}, pool.get("copies") or {}
        if copies.get("reason"):
            found.append(f"{name}: {copies['reason']}")
        elif trust.get("state") == Standing.OUT.value:
            found.append(f"{name}: {trust['reason']}")
    return found


def other_tensors(gathered: Gathered) -> Sequence[str] | CannotTell:
    """Students of other inputs and outputs than their models', as far as both tell."""
    found, untold = [], False
    deployed = {pool: (host, m.takes) for pool, members in gathered.hosted().items() for host, m in members if m.takes}
    for report in gathered.reports:
        for student in report.models if report.up else ():
            protects = student.described.protects if student.described is not None and student.is_protection else None
            if protects is None:
                continue
            version = protects.version or gathered.plan.versions.get(protects.model, "")
            host, takes = deployed.get(pool := f"{protects.model}/{version}", ("", ""))
            told = takes and student.takes
            untold = untold or not (told or student.kind == MANAGED)
            if told and takes != student.takes:
                found.append(f"{report.name}: {student.model} is {student.takes}, and {pool} on {host} is {takes}")
    if found or not untold:
        return found
    return CannotTell("a server tells the inputs and outputs of its models to nobody")


# ---- the running proxy -----------------------------------------------------------------------------------------------


def proxy_silent(gathered: Gathered) -> Sequence[str]:
    return [gathered.status_error] if gathered.status_error else []


def troubled_instances(gathered: Gathered) -> Sequence[str] | CannotTell:
    """In the words of the status page."""
    if gathered.status is None:
        return NO_PROXY
    return [
        f"{instance['name']} is {condition['state']}: {condition['reason']}"
        for instance in gathered.status.get("instances", [])
        if (condition := instance.get("condition")) and condition["state"] != SERVING
    ]


def other_instances(gathered: Gathered) -> Sequence[str] | CannotTell:
    if gathered.status is None or not gathered.configured:
        return CannotTell("it takes a running proxy, and the configuration that it should have")
    serving = {instance["name"] for instance in gathered.status.get("instances", [])}
    given = {instance.name for instance in gathered.settings.instances}
    return [
        *(f"{name} is configured, and the running proxy does not know it" for name in sorted(given - serving)),
        *(f"{name} is known to the running proxy, and not configured" for name in sorted(serving - given)),
    ]


def other_version(gathered: Gathered) -> Sequence[str] | CannotTell:
    if gathered.status is None:
        return NO_PROXY
    running = gathered.status.get("version")
    return [] if running == __version__ else [f"the running proxy is {running}, and this command {__version__}"]


def refused_reload(gathered: Gathered) -> Sequence[str] | CannotTell:
    last = _last_reload(gathered)
    return last if isinstance(last, CannotTell) else [str(problem) for problem in last.get("problems") or ()]


def waits_for_restart(gathered: Gathered) -> Sequence[str] | CannotTell:
    last = _last_reload(gathered)
    return last if isinstance(last, CannotTell) else [str(line) for line in last.get("needs_restart") or ()]


def _last_reload(gathered: Gathered) -> Mapping[str, Any] | CannotTell:
    if gathered.status is None:
        return NO_PROXY
    return (gathered.status.get("configuration") or {}).get("last_reload") or {}

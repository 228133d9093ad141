"""What a user could install instead, and ours: each a fleet and a policy of the same engine.

So that a comparison is between policies and not between code bases. Knows the engine's words. Knows nothing of service
times or of how a run is made. Times are in units of the mean service time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ts_parity.codes import Code, make_code
from ts_parity.engine import Endpoint, Fleet, Instance, Policy, Pool
from ts_parity.errors import ConfigError
from ts_parity.lab.simulate import Costs

POOL = "model"
UNBOUNDED = 1_000_000
# In service times: nobody gives up, so that every latency is seen.
PATIENT: dict[str, Any] = {"deadline_s": 1e6, "max_wait_s": 1e6, "max_waiting": UNBOUNDED, "reconstruct_cold_s": 2.0}
HEDGING: dict[str, Any] = {"hedge_ratio": 0.1, "hedge_burst": 10.0}
NAMES = (
    "none", "round_robin", "equal", "replication", "hedge", "hedge_fixed", "approximate", "parm", "coded",
    "coded_shared", "ours",
)  # fmt: skip


@dataclass(frozen=True)
class Arrangement:
    """`workers`: machines in all. `code` None: uncoded."""

    name: str
    fleet: Fleet
    policy: Policy
    costs: Costs
    code: Code | None = None

    @property
    def workers(self) -> int:
        return len(self.fleet.instances)


def arrange(
    name: str,
    workers: int = 12,
    extra: int = 3,
    code: str = "sum",
    k: int = 4,
    cost: float = 1.0,
    saves: float = 0.0,
    domains: int | None = None,
    places: int = 1,
    **changes: Any,
) -> Arrangement:
    """The arrangement of this name: `workers` deployed machines and, where it uses them, `extra` more.

    none          one queue, least outstanding, nothing else
    round_robin   each query to the next machine, whatever is there
    equal         as none, the extra machines serving too
    replication   two copies of everything on twice the machines
    hedge         as equal, a second copy at a running p90 within a 10 % budget, as the free hedging libraries do
    hedge_fixed   the same at 1.25 service times
    approximate   a small model on the extra machines gets a copy of every query; used from the median on
    parm          the paper's: parity always, the first usable answer wins
    coded         the paper's machines with our rules: release, second copies, slow machines taken out
    coded_shared  the same number of machines, all of them serving; the parity model beside, on idle places only
    ours          a student of `cost` on the same machines, launched late; no machine set aside; extra ones serve too

    `cost`: of a parity model's answer, or of one query in a backup; `saves`: what each further query of a backup's
    group saves, from 0 (k cost k) to 1 (k cost one). `code`: of `parm` and `coded` any, of `ours` a backup (else a
    student). `places`: how many tasks a machine runs at once. `changes`: to the policy. Raise ConfigError.
    """
    plan = _plan(name, workers, extra, code, k)
    if plan is None:
        raise ConfigError(f"there is no policy {name!r}; there are {', '.join(NAMES)}")
    built = None if plan.code is None else make_code(*plan.code)
    if name == "round_robin":  # it binds at once; machines have queues of their own then
        places = UNBOUNDED
    policy = Policy(**{**PATIENT, **plan.settings, **changes})
    fleet = make_fleet(plan.deployed, plan.protections, plan.shared, built, places, domains)
    return Arrangement(name, fleet, policy, Costs(group=cost, batch_saves=saves), built)


_NOT_SERVED = ("deadline_s", "max_wait_s", "max_waiting", "default_answer")
"""Of the policy: how patient clients are is no part of an arrangement; here they are endlessly so."""


def serve_flags(arrangement: Arrangement, unit: float) -> list[str]:
    """What `ts-parity serve` is to be given to do the same. `unit`: a service time in seconds."""
    code, policy, usual = arrangement.code, arrangement.policy, Policy()
    flags = ["--code", "none"] if code is None else ["--code", code.name, "--k", str(code.k)]
    for name in (item.name for item in fields(Policy) if item.name not in _NOT_SERVED):
        value = getattr(policy, name)
        if name == "reconstruct_cold_s" and code is None and not policy.hedge_ratio:
            continue  # nothing is ever late then
        if value != getattr(usual, name):
            told = _told(value * unit if name.endswith("_s") else value)
            flags += [f"--{name.replace('_', '-')}", told]
    return flags


def _told(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}" if isinstance(value, float) else str(value)


def make_fleet(
    deployed: int, protections: int, shared: bool, code: Code | None, places: int = 1, domains: int | None = None
) -> Fleet:
    """Machines m0 .. with the deployed model, protections on machines of their own or (`shared`) on the same ones.

    `domains`: machine i lies in failure domain i mod domains; None: each in its own.
    """
    count = deployed if shared else deployed + protections
    instances = [Instance(f"m{i}", places, f"z{i % domains}" if domains else f"m{i}") for i in range(count)]
    endpoints = [Endpoint(f"m{i}/d", f"m{i}", POOL, None, places) for i in range(deployed)]
    rows = code.r if code is not None and code.family == "parity" else 1
    hosts = range(deployed) if shared else range(deployed, count)
    if code is not None:
        endpoints += [Endpoint(f"m{i}/p", f"m{i}", POOL, n % rows, places) for n, i in enumerate(hosts)]
    return Fleet(tuple(instances), tuple(endpoints), (Pool(POOL, code, proved=True),))


@dataclass(frozen=True)
class _Plan:
    settings: dict[str, Any]
    deployed: int
    protections: int = 0
    shared: bool = False
    code: tuple[str, int] | None = None


_OURS: dict[str, Any] = {
    **HEDGING,
    "hedge_quantile": 0.98,
    "slow_factor": 3.0,
    "out_s": 20.0,
    "age_factor": 4.0,
    "spare_places": 1,
}


def _plan(name: str, workers: int, extra: int, code: str, k: int) -> _Plan | None:
    everyone = workers + extra
    coded = {**_OURS, "group_wait_s": 1.0, "seal_early": True}
    plans = {
        "none": _Plan({}, workers),
        "round_robin": _Plan({"balance": "round_robin"}, workers),
        "equal": _Plan({}, everyone),
        "replication": _Plan({"hedge_ratio": 1.0, "hedge_burst": 1e6, "hedge_after_s": 0.0}, 2 * workers),
        "hedge": _Plan({**HEDGING, "hedge_quantile": 0.9}, everyone),
        "hedge_fixed": _Plan({**HEDGING, "hedge_after_s": 1.25}, everyone),
        "approximate": _Plan({"reconstruct_quantile": 0.5}, workers, extra, code=("student", 1)),
        "parm": _Plan({"reconstruct_after_s": 0.0, "group_wait_s": 1e6}, workers, extra, code=(code, k)),
        "coded": _Plan(coded, workers, extra, code=(code, k)),
        "coded_shared": _Plan(coded, everyone, shared=True, code=(code, k)),
        "ours": _Plan(
            {**_OURS, "launch": "late", "launch_waiting": 0.5, "reconstruct_quantile": 0.9},
            everyone,
            shared=True,
            code=("exact" if code == "exact" else "student", k),
        ),
    }
    return plans.get(name)

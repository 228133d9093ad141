"""What a user could install instead, and our own: each a fleet and a policy of the same engine.

So that a comparison is between policies and not between code bases. Knows the engine's words. Knows nothing of service
times or of how a run is made. Times are in units of the mean service time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ts_parity.codes import ErasureCode, make_code
from ts_parity.engine import Endpoint, Fleet, Instance, Policy, Pool, plain
from ts_parity.errors import ConfigError
from ts_parity.lab.scenario import Costs

POOL = "model"
UNBOUNDED = 1_000_000
SERVICE_S = 0.05
"""What a service time is taken to last where nobody says."""
# In service times: nobody gives up, so that every latency is seen.
PATIENT: dict[str, Any] = {"deadline_s": 1e6, "max_wait_s": 1e6, "max_waiting": UNBOUNDED}
HEDGING: dict[str, Any] = {"extra_work": 0.1, "work_burst": 10.0, "copies": True}
NAMES = (
    "none", "round_robin", "equal", "replication", "hedge", "hedge_fixed", "approximate", "parm", "copies", "coded",
    "coded_shared", "default",
)  # fmt: skip


@dataclass(frozen=True)
class Arrangement:
    """`workers`: machines in all. `code` None: uncoded."""

    name: str
    fleet: Fleet
    policy: Policy
    costs: Costs
    code: ErasureCode | None = None

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
    service_s: float = SERVICE_S,
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
    copies        the recipe without any protection: second copies, slow machines taken out
    coded         the recipe with the paper's machines for parity
    coded_shared  the same number of machines, all of them serving; the parity model beside, on idle places only
    default       the recipe with a student of `cost` on the same machines; no machine set aside; extra ones serve too

    The recipe is `Policy()`, which `ts-parity serve` runs by itself.

    `cost`: of a parity model's answer, or of one query in a backup; `saves`: what each further query of a backup's
    group saves, from 0 (k cost k) to 1 (k cost one). `code`: of `parm` and `coded` any, of `default` a backup (else a
    student). `places`: how many tasks a machine runs at once. `service_s`: what a service time is in seconds, for the
    recipe's durations are in seconds. `changes`: to the policy, in service times. Raise ConfigError.
    """
    plan = _plan(name, workers, extra, code, k)
    if plan is None:
        raise ConfigError(f"there is no policy {name!r}; there are {', '.join(NAMES)}")
    built = None if plan.code is None else make_code(*plan.code)
    if name == "round_robin":  # it binds at once; machines have queues of their own then
        places = UNBOUNDED
    policy = replace(
        (Policy() if plan.recipe else plain()).in_units(service_s), **{**PATIENT, **plan.settings, **changes}
    )
    fleet = make_fleet(plan.deployed, plan.protections, plan.shared, built, places, domains, cost)
    return Arrangement(name, fleet, policy, Costs(group=cost, batch_saves=saves), built)


def serve_flags(name: str) -> list[str] | None:
    """What `ts-parity serve` is to be given to do the same; None: it never does."""
    return {"copies": ["--protect", "off"], "coded": [], "coded_shared": [], "default": []}.get(name)


def make_fleet(
    deployed: int,
    protections: int,
    shared: bool,
    code: ErasureCode | None,
    places: int = 1,
    domains: int | None = None,
    cost: float = 1.0,
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
    return Fleet(tuple(instances), tuple(endpoints), (Pool(POOL, code, proved=True, cost=cost),))


@dataclass(frozen=True)
class _Plan:
    """`settings`: what differs from the recipe, or from the plain policy, in service times."""

    settings: dict[str, Any]
    deployed: int
    protections: int = 0
    shared: bool = False
    code: tuple[str, int] | None = None
    recipe: bool = False


def _plan(name: str, workers: int, extra: int, code: str, k: int) -> _Plan | None:
    everyone = workers + extra
    backup = "exact" if code == "exact" else "student"
    plans = {
        "none": _Plan({}, workers),
        "round_robin": _Plan({"balance": "round_robin"}, workers),
        "equal": _Plan({}, everyone),
        "replication": _Plan({"extra_work": 1.0, "work_burst": 1e6, "copies": True, "hedge_after_s": 0.0}, 2 * workers),
        "hedge": _Plan({**HEDGING, "hedge_quantile": 0.9}, everyone),
        "hedge_fixed": _Plan({**HEDGING, "hedge_after_s": 1.25}, everyone),
        "approximate": _Plan({"reconstruct_quantile": 0.5}, workers, extra, code=("student", 1)),
        "parm": _Plan({"reconstruct_after_s": 0.0, "group_wait_s": 1e6}, workers, extra, code=(code, k)),
        "copies": _Plan({}, everyone, recipe=True),
        "coded": _Plan({}, workers, extra, code=(code, k), recipe=True),
        "coded_shared": _Plan({}, everyone, shared=True, code=(code, k), recipe=True),
        "default": _Plan({}, everyone, shared=True, code=(backup, k), recipe=True),
    }
    return plans.get(name)

"""Every policy in every kind of trouble, on the simulator: the tables of docs/benchmarks.md.

    python benchmarks/policies.py [--queries N] [--seeds N]    hours on one core as it is
    python benchmarks/policies.py --tables                     renew docs/benchmarks.md and docs/policy.md

Service lognormal, mean 1, cv 0.1; 12 workers are load 1; times in mean service times. `quiet`: no slowness; `ep`: each
worker 5 times slower 4 % of the time, in spells of mean 100; `net`: 2 % of replies late by Exp(5); `domains`: as ep,
but three failure domains are slow as one; `burst`: as ep, four times the rate for a tenth of the time. A row that is
kept is not run again. `proxies`: as ep, seen by three proxies that share the traffic and know nothing of each other;
`peers`: that do, so one serves and the others forward to it, a fiftieth of a service time away; `frozen`, `slow`: one
worker of twelve is frozen, or five times slower, for ever from 500 on; `dead`: so are all machines of one domain of
three.
`exact`: as ep, the deployed model itself as the backup, where four queries in one run cost as one, as 1.3 or as four.
As `ep` too: `cv05` and `cv10`, service times of cv 0.5 and 1; `sizes`, bodies of 1, 4 and 10 (89, 10 and 1 %) that take
so many times as long; `own`, half of whose variation belongs to the query; `three`, `four`, `six` machines; `quarter`,
where every fourth machine is twice as slow for good. `twice`: spells twice as slow, a tenth of the time; `change`:
everything is twice as slow from the middle on.

`r` is p99.9 against that of `none` on the same fleet at the same load with nothing slow: 1 is as if nothing were ever
slow. `extra_work` is the work beside that of `none` in the same scenario. `differing` are the answers expected to
differ from the deployed model's own by their confidence, as measured on Fashion-MNIST; `differing_drawn`, those that
did.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tables import renew
from ts_parity.arguments import count, number
from ts_parity.lab.compare import World, markdown_table, row_of
from ts_parity.lab.rivals import NAMES
from ts_parity.lab.scenario import Outage, ServiceTimes, Spells
from ts_parity.tables import markdown

RESULTS = Path(__file__).parent / "results" / "policies.json"
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks-policies.md"
POLICY = DOCS.parent / "policy.md"
SCENARIOS: dict[str, dict[str, Any]] = {
    "quiet": {},
    "ep": {"spells": Spells(0.04, 100.0, 5.0)},
    "net": {"net_share": 0.02, "net_mean": 5.0},
    "domains": {"spells": Spells(0.04, 100.0, 5.0, by_domain=True)},
    "burst": {"spells": Spells(0.04, 100.0, 5.0), "burst": 4.0},
    "proxies": {"spells": Spells(0.04, 100.0, 5.0), "proxies": 3},
    "peers": {"spells": Spells(0.04, 100.0, 5.0), "proxies": 3, "sharing": "active", "hop": 0.02},
    "frozen": {"outages": (Outage("m0", 500.0),)},
    "slow": {"outages": (Outage("m0", 500.0, kind="slow"),)},
    "dead": {"outages": tuple(Outage(f"m{i}", 500.0, kind="dead") for i in (0, 3, 6, 9))},
    "exact": {"spells": Spells(0.04, 100.0, 5.0)},
    "twice": {"spells": Spells(0.1, 100.0, 2.0)},
    "quarter": {"spells": Spells(0.04, 100.0, 5.0), "speeds": (2.0, 1.0, 1.0, 1.0)},
    "cv05": {"spells": Spells(0.04, 100.0, 5.0), "service": ServiceTimes(cv=0.5)},
    "cv10": {"spells": Spells(0.04, 100.0, 5.0), "service": ServiceTimes(cv=1.0)},
    "sizes": {"spells": Spells(0.04, 100.0, 5.0), "sizes": ((1.0, 0.89), (4.0, 0.1), (10.0, 0.01))},
    "own": {"spells": Spells(0.04, 100.0, 5.0), "own_cv": 0.5, "service": ServiceTimes(cv=0.5)},
    "three": {"spells": Spells(0.04, 100.0, 5.0), "workers": 3},
    "four": {"spells": Spells(0.04, 100.0, 5.0), "workers": 4},
    "six": {"spells": Spells(0.04, 100.0, 5.0), "workers": 6},
    "change": {"spells": Spells(0.04, 100.0, 5.0), "slower_from_half": 2.0},
}
LOADS = {
    "quiet": (0.3, 0.6),
    "ep": (0.1, 0.3, 0.6, 0.85, 1.0, 1.1),
    "net": (0.1, 0.3, 0.6, 0.85, 1.0, 1.1),
    "domains": (0.3, 0.6),
    "burst": (0.3, 0.6),
    "proxies": (0.3, 0.6),
    "peers": (0.3, 0.6),
    "frozen": (0.3,),
    "slow": (0.3,),
    "dead": (0.3,),
    "exact": (0.3, 0.6),
    "twice": (0.3, 0.6),
    "quarter": (0.5,),
    "cv05": (0.3, 0.6, 0.85),
    "cv10": (0.3, 0.6, 0.85),
    "sizes": (0.3, 0.6),
    "own": (0.3, 0.6),
    "three": (0.5,),
    "four": (0.5,),
    "six": (0.5,),
    "change": (0.4,),
}
VARIED = ("peers", "twice", "quarter", "cv05", "cv10", "sizes", "own", "three", "four", "six", "change")
# name, and how it is arranged; `extra` machines on top of the 12.
POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("none", {"extra": 0}),
    ("round_robin", {"extra": 0}),
    ("equal", {"extra": 3}),
    ("replication", {}),
    ("hedge", {"extra": 0}),
    ("hedge", {"extra": 3}),
    ("hedge_fixed", {"extra": 3}),
    ("approximate", {"extra": 3, "cost": 0.25}),
    ("parm", {"extra": 3, "k": 4}),
    ("coded", {"extra": 3, "k": 4}),
    ("coded", {"extra": 6, "k": 2}),
    ("coded_shared", {"extra": 3, "k": 4}),
    ("coded_shared", {"extra": 6, "k": 2}),
    ("default", {"extra": 0, "k": 4, "cost": 0.25}),
    ("default", {"extra": 3, "k": 4, "cost": 0.25}),
    ("default", {"extra": 0, "k": 4, "cost": 0.1}),
    ("default", {"extra": 0, "k": 4, "cost": 0.5}),
]
EXACT: list[tuple[str, dict[str, Any]]] = [
    (name, {"extra": extra, "k": 4, "code": "exact", "saves": saves})
    for name, extra in (("coded", 3), ("default", 0), ("default", 3))
    for saves in (1.0, 0.9, 0.0)
]
RIVALS = [(name, {"extra": 0}) for name in ("none", "hedge", "copies")]
WHERE_IT_VARIES: list[tuple[str, dict[str, Any]]] = [*RIVALS, ("default", {"extra": 0, "k": 4, "cost": 0.25})]
STUDENT, TENTH = ("student", 4, 0.25), ("student", 4, 0.1)
# What was aimed at: policy, (code, k, cost), machines, scenario, load, figure, at most. `+none`: above `none` there.
TARGETS: list[tuple[str, tuple[str, int, float], int, str, float, str, float]] = [
    ("coded", ("sum", 4, 1.0), 15, "ep", 0.6, "p999", 2.0),
    ("coded", ("sum", 4, 1.0), 15, "ep", 0.6, "p9999", 2.6),
    ("coded", ("sum", 2, 1.0), 18, "ep", 0.6, "p999", 1.6),
    ("coded_shared", ("sum", 2, 1.0), 18, "ep", 0.6, "p999", 1.6),
    *(("default", STUDENT, 12, name, load, "p999", 1.5) for name in ("ep", "net") for load in (0.1, 0.3)),
    *(("default", STUDENT, 12, name, 0.6, "p999", 1.75) for name in ("ep", "net")),
    *(("default", STUDENT, 12, name, load, "p9999", 2.6) for name in ("ep", "net") for load in (0.1, 0.3, 0.6)),
    *(("default", STUDENT, 12, name, load, "work+none", 0.03) for name in ("ep", "net") for load in (0.1, 0.3, 0.6)),
    *(("default", STUDENT, 15, name, 0.6, "p999", 1.5) for name in ("ep", "net")),
    *(("default", STUDENT, 15, name, 0.85, "p999", 1.85) for name in ("ep", "net")),
    ("default", STUDENT, 15, "ep", 1.0, "p999", 3.3),
    ("default", STUDENT, 15, "net", 1.0, "p999", 2.2),
    ("default", TENTH, 12, "ep", 0.3, "p999", 1.3),
    ("default", STUDENT, 12, "quiet", 0.3, "reconstructed", 0.001),
    ("default", STUDENT, 12, "quiet", 0.6, "reconstructed", 0.001),
]
# What the default policy with a student is to reach, in p99.9 against that with nothing slow: scenario, load, at most.
AS_IF_NOTHING_WERE_SLOW: list[tuple[str, float, float]] = [
    *(("ep", load, 1.08) for load in (0.1, 0.3, 0.6)),
    *(("net", load, 1.15) for load in (0.1, 0.3, 0.6)),
    *(("twice", load, 1.25) for load in (0.3, 0.6)),
    ("quarter", 0.5, 1.0),
    *(("cv05", load, most) for load, most in ((0.3, 0.68), (0.6, 0.82), (0.85, 0.92))),
    *(("cv10", load, most) for load, most in ((0.3, 0.42), (0.6, 0.5), (0.85, 0.6))),
    *(("sizes", load, 0.65) for load in (0.3, 0.6)),
    *((name, 0.5, most) for name, most in (("three", 0.9), ("four", 0.95), ("six", 1.08))),
    *(("domains", load, 1.5) for load in (0.3, 0.6)),
    *(("peers", load, 1.25) for load in (0.3, 0.6)),
]
WORDS = {
    "p999": "p99.9",
    "p9999": "p99.99",
    "reconstructed": "rebuilt",
    "work+none": "work above `none`",
}
KEY = ("scenario", "policy", "code", "k", "cost", "saves", "workers", "load", "queries", "seeds")


def key_of(scenario: str, load: float, name: str, shape: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What a row will say of itself, before it is run."""
    from ts_parity.lab.rivals import arrange

    made = arrange(name, SCENARIOS[scenario].get("workers", 12), **_shape(shape, scenario))
    code = made.code
    coded = (code.name, code.k, made.costs.group) if code is not None else (None, None, None)
    values = (scenario, name, *coded, made.costs.batch_saves, made.workers, load, args.queries, args.seeds)
    return dict(zip(KEY, values, strict=True))


def _shape(shape: dict[str, Any], scenario: str) -> dict[str, Any]:
    return {**shape, "domains": 3} if scenario in ("domains", "dead") else shape


def kept(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"rows": []}


def _policies_of(scenario: str) -> list[tuple[str, dict[str, Any]]]:
    if scenario == "exact":
        return EXACT
    return WHERE_IT_VARIES if scenario in VARIED else POLICIES


def baseline(scenario: str, load: float, world: World, args: argparse.Namespace) -> tuple[float, float]:
    """-> of `none` with as many queries and seeds: p99.9 with nothing slow, and the work in this scenario."""
    key = {"scenario": scenario, "load": load, "queries": args.queries, "seeds": args.seeds}
    known = kept(args.out).get("baselines", [])
    found = next((row for row in known if all(row[part] == value for part, value in key.items())), None)
    if found is None:
        shape = _shape({"extra": 0}, scenario)
        quiet = row_of(world.with_nothing_slow(), "none", range(args.seeds), **shape)
        none = row_of(world, "none", range(args.seeds), **shape)
        found = {**key, "quiet_p999": quiet["p999"], "none_work": none["work"]}
        keep("baselines", found, args.out)
    return found["quiet_p999"], found["none_work"]


def keep(part: str, row: dict[str, Any], file: Path) -> dict[str, Any]:
    """Add it to this part of the file; several of these programs may run side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = kept(file)
        document = {
            "command": "python benchmarks/policies.py",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "baselines": before.get("baselines", []),
            "rows": before["rows"],
        }
        document[part] = [*document[part], row]
        file.write_text(json.dumps(document, indent=1) + "\n")
    return document


def tables(document: dict[str, Any]) -> dict[str, str]:
    """One table a scenario and load, of each arrangement the row with most queries."""
    parts = {}
    for scenario in SCENARIOS:
        for load in LOADS[scenario]:
            best: dict[tuple[Any, ...], dict[str, Any]] = {}
            for row in sorted(document["rows"], key=lambda row: row["queries"]):
                if row["scenario"] == scenario and row["load"] == load:
                    best[tuple(row[part] for part in KEY if part not in ("queries", "seeds"))] = row
            rows = sorted(best.values(), key=lambda row: (NAMES.index(row["policy"]), row["workers"]))
            if rows:
                parts[f"{scenario} {load:g}"] = f"{_sizes(rows)}\n\n{markdown_table(rows)}"
    return parts


def _sizes(rows: list[dict[str, Any]]) -> str:
    """How many queries are behind them."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for row in rows:
        sizes.setdefault((row["queries"], row["seeds"]), []).append(row["policy"])
    parts = []
    for (queries, seeds), names in sorted(sizes.items(), reverse=True):
        which = "" if len(sizes) == 1 else f" ({', '.join(dict.fromkeys(names))})"
        parts.append(f"{queries:,} queries x {seeds} seeds{which}")
    return "; ".join(parts) + "."


def sections(document: dict[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says between its marks."""
    parts = tables(document).items()
    said = [f"## `{name.split()[0]}` at load {name.split()[1]}\n\n{part}" for name, part in parts]
    return {"policies": "\n\n".join(said), "targets": target_table(document)}


def target_table(document: dict[str, Any]) -> str:
    """Each target whose row is there, and what was reached."""
    rows = sorted(document["rows"], key=lambda row: row["queries"])

    def found(policy: str, code: tuple[str, int, float] | None, workers: int, name: str, load: float) -> dict[str, Any]:
        wanted = (policy, *(code or (None, None, None)), workers, name, load)
        keys = ("policy", "code", "k", "cost", "workers", "scenario", "load")
        return next((row for row in reversed(rows) if tuple(row[key] for key in keys) == wanted), {})

    body = []
    for policy, code, workers, name, load, figure, limit in TARGETS:
        row, none = found(policy, code, workers, name, load), found("none", None, 12, name, load)
        if not row or (figure.endswith("+none") and not none):
            continue
        reached = row["work"] - none["work"] if figure.endswith("+none") else row[figure]
        shown = (lambda value: f"{value:.2%}") if figure == "reconstructed" else (lambda value: f"{value:.3f}")
        what = f"{policy}, `{code[0]}` k = {code[1]}" + (f", cost {code[2]:g}" if code[2] != 1 else "")
        verdict = "yes" if reached <= limit else "no"
        body.append([what, str(workers), f"`{name}` {load:g}", WORDS[figure], shown(limit), shown(reached), verdict])
    return markdown(("policy", "machines", "at load", "figure", "at most", "got", "reached"), body)


def reached_table(document: dict[str, Any]) -> str:
    """What docs/policy.md says of the default policy with a student."""
    rows = {
        (row["scenario"], row["load"]): row
        for row in sorted(document["rows"], key=lambda row: row["queries"])
        if (row["policy"], row["code"], row["cost"]) == ("default", "student", 0.25) and "r" in row
    }
    body = []
    for scenario, load, most in AS_IF_NOTHING_WERE_SLOW:
        row = rows.get((scenario, load))
        if row is None:
            continue
        differing = f"{row['differing']:.3%} ({row['differing_drawn']:.3%})"
        told = (f"{row['p999']:.2f}", f"{row['extra_work']:.1%}", f"{row['reconstructed']:.1%}", differing)
        verdict = "yes" if row["r"] <= most else "no"
        body.append([f"`{scenario}` {load:g}", f"{most:g}", f"{row['r']:.2f}", *told, verdict])
    heading = ("at load", "R at most", "R", "p99.9", "extra work", "rebuilt", "differing (drawn)", "reached")
    return markdown(heading, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--loads", nargs="+", type=number(above=0), help="default: each scenario's own")
    parser.add_argument("--policies", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--queries", type=count(), default=500_000)
    parser.add_argument("--seeds", type=count(), default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="renew the tables of docs/benchmarks.md, run nothing")
    args = parser.parse_args()
    document = kept(args.out)
    if args.tables:
        for mark, text in sections(document).items():
            renew(DOCS, mark, text)
        renew(POLICY, "reached", reached_table(document))
        return
    todo = [
        (scenario, load, name, shape)
        for scenario in args.scenarios
        for load in args.loads or LOADS[scenario]
        for name, shape in _policies_of(scenario)
        if args.policies is None or name in args.policies
    ]
    for scenario, load, name, shape in todo:
        key = key_of(scenario, load, name, shape, args)
        document = kept(args.out)  # another process may have run it
        if any(all(row[part] == value for part, value in key.items()) for row in document["rows"]):
            continue
        world = World(load=load, queries=args.queries, **SCENARIOS[scenario])
        started = time.monotonic()
        total = args.queries * args.seeds
        with tqdm(total=total, desc=f"{scenario} {load:g} {name}", unit="query", unit_scale=True) as bar:
            row = row_of(world, name, range(args.seeds), bar.update, **_shape(shape, scenario))
        quiet, none_work = baseline(scenario, load, world, args)
        compared = {"r": round(row["p999"] / quiet, 3), "extra_work": round(row["work"] / none_work - 1.0, 4)}
        row = {"scenario": scenario, **row, **compared, "seconds": round(time.monotonic() - started)}
        document = keep("rows", row, args.out)
        print(f"{scenario} {load:g} {name} {row['workers']}: p99.9 {row['p999']}", file=sys.stderr)
    for name, part in tables(document).items():
        print(f"{name}\n{part}\n")


if __name__ == "__main__":
    main()

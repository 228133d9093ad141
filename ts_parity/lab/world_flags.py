"""Flags of `simulate` and `plan` that describe what happens to a fleet: service times, arrivals, slow spells."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ts_parity import output
from ts_parity.arguments import count, existing, number
from ts_parity.errors import ConfigError

if TYPE_CHECKING:
    from ts_parity.lab.compare import World

MOST_MACHINES, MOST_QUERIES, MOST_SEEDS = 10_000, 100_000_000, 1000
"""More than that would fill a machine's memory, or its days."""
HOP_S = 0.001
"""From one proxy to another, one way."""


def add_world(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    world = parser.add_argument_group("what happens to it")
    world.add_argument(
        "--service-log",
        type=_log,
        metavar="FILE",
        help="draw service times from an access log or records (JSON lines), or a table of seconds; gzip or not, -: "
        "standard input",
    )
    world.add_argument("--model", metavar="NAME[/VERSION]", help="whose service times, if the log is of several models")
    world.add_argument(
        "--trace", type=_log, metavar="FILE", help="arrival instants, one a line; in seconds with --service-log"
    )
    world.add_argument(
        "--slow",
        metavar="SHARE:MEAN:FACTOR",
        help="each machine is FACTOR times slower for SHARE of the time, in spells of MEAN service times on "
        "average, such as 0.04:100:5; FACTOR inf: frozen",
    )
    world.add_argument(
        "--net",
        metavar="SHARE:MEAN",
        help="the network delays SHARE of the replies by MEAN service times",
    )
    world.add_argument(
        "--gaps-cv",
        type=number(above=0),
        default=1.0,
        metavar="CV",
        help="variation of the gaps between arrivals; 1: Poisson",
    )
    world.add_argument(
        "--burst",
        type=number(least=1),
        default=1.0,
        metavar="TIMES",
        help="this many times the rate for a tenth of the time",
    )
    world.add_argument(
        "--domains", type=count(most=MOST_MACHINES), metavar="N", help="failure domains; default: each machine its own"
    )
    world.add_argument(
        "--proxies",
        type=count(most=MOST_MACHINES),
        default=1,
        metavar="N",
        help="proxies, each with a share of the traffic and knowing only that",
    )
    world.add_argument(
        "--peers", action="store_true", help="the proxies know each other: one serves, and the others forward to it"
    )
    world.add_argument(
        "--queries", type=count(most=MOST_QUERIES), default=100_000, metavar="N", help="queries per policy and seed"
    )
    world.add_argument(
        "--seeds",
        type=count(most=MOST_SEEDS),
        default=3,
        metavar="N",
        help="simulations per policy",
    )
    return world


def add_variety(world: argparse._ArgumentGroup) -> None:
    """What a plan takes from logs."""
    world.add_argument("--cv", type=number(above=0), metavar="CV", help="variation of service times; default: 0.1")
    world.add_argument(
        "--sizes", metavar="SIZE:SHARE,...", help="bodies that take SIZE times as long, such as 1:0.89,4:0.1,10:0.01"
    )
    world.add_argument(
        "--speeds", metavar="FACTOR,...", help="how many times longer each machine takes, in turn, such as 2,1,1,1"
    )


def add_output(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    shown = parser.add_argument_group("what is printed")
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_force(shown)
    return shown


def _log(text: str) -> Path:
    """A file, or - for standard input."""
    return Path(text) if text == "-" else existing()(text)


def world_of(args: argparse.Namespace) -> World:
    from ts_parity.lab.compare import World, service_from
    from ts_parity.lab.latencies import rate_of, read_instants
    from ts_parity.lab.rivals import SERVICE_S
    from ts_parity.lab.scenario import ServiceTimes, Spells

    share, positive = number(above=0, below=1), number(above=0)
    slow = _spell(args.slow, "--slow SHARE:MEAN:FACTOR", (share, number(least=0.01), _factor))
    net = _spell(args.net, "--net SHARE:MEAN", (share, positive)) or (0.0, 0.0)
    cv = getattr(args, "cv", None)
    service, unit, seen = ServiceTimes() if cv is None else ServiceTimes(cv=cv), 1.0, None
    if args.service_log is not None and cv is not None:
        raise ConfigError("--cv says how far service times vary, and so does a --service-log: give one of them")
    if args.service_log is not None:
        service, unit, seen = service_from(args.service_log, args.model, _note)
    elif args.model is not None:
        raise ConfigError("--model says whose service times of a --service-log are meant: give that too")
    trace = () if args.trace is None else _from_zero(read_instants(args.trace), unit)
    if seen is not None and not trace and args.load is None and args.rate is None and len(seen.arrivals) > 1:
        trace = _from_zero(seen.arrivals, unit)
    places = 1 if seen is None else seen.places
    rate = rate_of(trace, "--trace" if args.trace is not None else str(args.service_log)) if trace else 0.0
    return World(
        load=rate / (args.workers * places) if trace else args.load,
        workers=args.workers,
        queries=args.queries,
        service=service,
        spells=Spells(slow[0], slow[1], slow[2]) if slow else None,
        net_share=net[0],
        net_mean=net[1],
        arrival_cv=args.gaps_cv,
        burst=args.burst,
        trace=trace,
        proxies=args.proxies,
        sharing="active" if args.peers else "blind",
        hop=HOP_S / (unit if args.service_log is not None else SERVICE_S),
        unit=unit,
        places=places,
        seen=seen,
        sizes=_sizes(getattr(args, "sizes", None)),
        speeds=_speeds(getattr(args, "speeds", None)),
    )


def _sizes(text: str | None) -> tuple[tuple[float, float], ...]:
    positive = number(above=0)
    parts = () if text is None else text.split(",")
    numbers = [_spell(part, "--sizes SIZE:SHARE,...", (positive, positive)) for part in parts]
    sizes = tuple((size, share) for size, share in numbers)
    if sizes and not math.isclose(sum(share for _, share in sizes), 1.0):
        raise ConfigError(f"the shares of --sizes must add up to 1, not {sum(share for _, share in sizes):g}")
    return sizes


def _speeds(text: str | None) -> tuple[float, ...]:
    parts = () if text is None else text.split(",")
    return tuple(_spell(part, "--speeds FACTOR,...", (number(above=0),))[0] for part in parts)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _from_zero(instants: Sequence[float], unit: float) -> tuple[float, ...]:
    return tuple((instant - instants[0]) / unit for instant in instants)


def _spell(text: str | None, what: str, limits: Sequence[Callable[[str], float]]) -> tuple[float, ...]:
    """`text`: numbers between colons, one for each of `limits`."""
    if text is None:
        return ()
    parts = text.split(":")
    try:
        if len(parts) != len(limits):
            raise argparse.ArgumentTypeError(f"must have {len(limits)} numbers between colons, not {text!r}")
        return tuple(limit(part) for limit, part in zip(limits, parts, strict=True))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{what} {error}") from None


def _factor(text: str) -> float:
    """How many times slower; inf freezes."""
    return math.inf if text in ("inf", "infinity") else number(least=1)(text)

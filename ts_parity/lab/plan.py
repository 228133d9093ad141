"""What to run: compares every policy, code and k for one's own fleet, traffic and accuracy report.

Knows rows of the simulator, the training report and limits. Runs nothing itself but the simulator. How it is shown
stands in `page`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ts_parity.arguments import LARGEST
from ts_parity.config import CODES
from ts_parity.errors import ConfigError
from ts_parity.lab.compare import COMFORTABLE, World, row_of
from ts_parity.lab.page import named, plan_page, plan_table, spread, time_told
from ts_parity.lab.rivals import serve_flags
from ts_parity.training.recommend import MOST_LOSS, extra_work

__all__ = [
    "Limits", "candidates_of", "choices", "left_out", "make_plan", "plan_page", "plan_table", "read_candidates",
    "read_report",
]  # fmt: skip

WORTH = 0.97
"""A choice is worth it if its p99.9 is at most this share of doing nothing's."""
ALIKE = 1.05
"""Of choices this close at p99.9, the one with the fewest machines is taken, then the least work and loss."""
CALM = 3.0
"""A p99.9 of at most this many medians is no tail to speak of."""

_TOO_HIGH = "p99.9 too high"


@dataclass(frozen=True)
class Limits:
    """The user's limits; None: no limit. `work` beyond that of no protection, `loss` of overall accuracy, in shares;
    `p999` in the world's unit; `machines` more than the workers. Without a limit of loss, what the training
    report would never recommend is not allowed.
    """

    work: float | None = None
    loss: float | None = None
    p999: float | None = None
    machines: int = 0

    def broken_by(self, row: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
        broken = []
        if row["extra_machines"] > self.machines:
            broken.append(f"{row['extra_machines']} more machines")
        if self.work is not None and row["work"] - plain["work"] > self.work:
            broken.append(f"{row['work'] - plain['work']:.0%} more work")
        if self.loss is not None and row["loss"] > self.loss:
            broken.append(f"{100 * row['loss']:.3f} points lost")
        elif row["loss_each"] > MOST_LOSS and self.loss is None:
            broken.append(f"{row['loss_each']:.0%} lost on a rebuilt answer")
        if row["unanswered"]:
            broken.append(f"{row['unanswered']:.0f} queries never answered")
        if self.p999 is not None and _tail(row) > self.p999:
            broken.append(_TOO_HIGH)
        return broken


@dataclass(frozen=True)
class Choice:
    """One thing that could be run. `candidate`: the protection it needs, as the training report has it."""

    policy: str
    extra: int
    candidate: Mapping[str, Any] = field(default_factory=dict)

    def shape(self) -> dict[str, Any]:
        """For `arrange`: the cost is a parity model's answer, or that of one query in a backup's group."""
        if not self.candidate:
            return {"extra": self.extra}
        k, cost = int(self.candidate["k"]), float(self.candidate["cost"])
        each = cost / k if self.candidate["family"] == "backup" else cost
        return {"extra": self.extra, "code": self.candidate["code"], "k": k, "cost": each}


def read_report(folder: Path) -> dict[str, Any]:
    """The report that `ts-parity train` left in a folder. Raise ConfigError, naming what is wrong in it."""
    file = folder / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not isinstance(report.get("candidates"), list):
            raise ValueError("it is no report of ts-parity train: it lists no candidates")
        for number, candidate in enumerate([*report["candidates"], *report.get("beside", ())], 1):
            try:
                _check(candidate)
            except KeyError as error:
                raise ValueError(f"candidate {number} has no {error}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"candidate {number}: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the training report {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"cannot read the training report {file}: {error}") from None
    made: dict[str, Any] = report
    return made


def read_candidates(folder: Path) -> list[dict[str, Any]]:
    return candidates_of(read_report(folder))


def candidates_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that can be compared, and what was measured beside them."""
    return [candidate for candidate in [*report["candidates"], *report.get("beside", ())] if not _why_not(candidate)]


def left_out(report: Mapping[str, Any]) -> list[str]:
    """The others, each with the reason."""
    return [f"{c['code']} k={c['k']} r={c['r']}: {_why_not(c)}" for c in report["candidates"] if _why_not(c)]


def _why_not(candidate: Mapping[str, Any]) -> str:
    if candidate.get("cost") is None:
        return "what it costs was not measured (train it with --score)"
    if candidate["family"] == "parity" and candidate["r"] != 1:
        return "only protections with r = 1 are simulated"
    return ""


def _check(candidate: Any) -> None:
    """Raise KeyError, TypeError or ValueError."""
    if candidate["code"] not in CODES or candidate["family"] not in ("parity", "backup"):
        raise ValueError(f"there is no code {candidate['code']!r} of the family {candidate['family']!r}")
    for name in ("k", "r"):
        if not isinstance(candidate[name], int) or isinstance(candidate[name], bool) or not 1 <= candidate[name] <= 64:
            raise ValueError(f"{name} must be a whole number from 1 to 64, not {candidate[name]!r}")
    cost, multiplications = candidate.get("cost"), candidate.get("multiplications")
    if cost is not None and not (_is_number(cost) and 0 < cost <= LARGEST):
        raise ValueError(f"cost must be a positive, finite number, not {cost!r}")
    if multiplications is not None and not _is_number(multiplications):
        raise ValueError(f"multiplications must be a finite number, not {multiplications!r}")
    archives = candidate.get("archives", [])
    if not isinstance(archives, list) or not all(isinstance(archive, str) for archive in archives):
        raise ValueError(f"archives must be names, not {archives!r}")
    if not _is_number(_loss_each(candidate)):
        raise ValueError(f"what a rebuilt answer loses must be a finite number, not {_loss_each(candidate)}")


def _loss_each(candidate: Mapping[str, Any]) -> float:
    """Of a rebuilt answer, as a share. Reports of older versions name it otherwise."""
    if "loss" not in candidate and "agreement" in candidate:
        return float(candidate.get("drop", 1.0 - candidate["agreement"]))
    return float(candidate["loss"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choices(workers: int, extra: int, candidates: Sequence[Mapping[str, Any]]) -> list[Choice]:
    """What there is to choose from: without training, and with each trained candidate."""
    made = [Choice("none", 0), Choice("copies", 0)]
    if extra:
        made += [Choice("equal", extra), Choice("copies", extra)]
    for candidate in candidates:
        if candidate["family"] == "parity" and candidate["r"] == 1:
            made.append(Choice("coded", math.ceil(workers / int(candidate["k"])), candidate))
        elif candidate["family"] == "backup":
            made.append(Choice("default", 0, candidate))
            if extra:
                made.append(Choice("default", extra, candidate))
    return made


def make_plan(
    world: World,
    candidates: Sequence[Mapping[str, Any]],
    limits: Limits,
    seeds: Sequence[int],
    progress: Callable[[int], object] | None = None,
    domains: int | None = None,
) -> dict[str, Any]:
    """-> `rows` of all choices, each with what it breaks and the flags of `serve` that do it, `recommended` (its
    index), `sentence`, and `reached`: whether what is recommended is within the limits.
    """
    rows = [
        _row(world, choice, seeds, progress, domains) for choice in choices(world.workers, limits.machines, candidates)
    ]
    plain = rows[0]
    for row in rows:
        row["broken"] = limits.broken_by(row, plain)
        row["work_told"] = work_told(row, plain)
    chosen = _choose(rows, plain)
    return {
        "rows": rows,
        "recommended": rows.index(chosen),
        "sentence": _sentence(chosen, plain, world, rows, limits),
        "reached": not chosen["broken"],
        "assumed": assumed(world, domains),
        "unseen": unseen(world, candidates),
    }


def _row(
    world: World, choice: Choice, seeds: Sequence[int], progress: Callable[[int], object] | None, domains: int | None
) -> dict[str, Any]:
    shape, candidate = choice.shape() | {"domains": domains}, choice.candidate
    row = row_of(world, choice.policy, seeds, progress, **shape)
    lost = max(0.0, _loss_each(candidate)) if candidate else 0.0
    return row | {
        "extra_machines": choice.extra,
        "loss_each": lost,
        "loss": row["reconstructed"] * lost,
        "loss_of": _loss_of(candidate),
        "group_cost": candidate.get("cost"),
        "group_multiplications": candidate.get("multiplications"),
        "work_reported": extra_work(candidate) if candidate else None,
        "serve": serve_flags(choice.policy),
        "set_up": _set_up(choice, world.workers),
    }


def _loss_of(candidate: Mapping[str, Any]) -> str:
    return str(candidate.get("loss_of") or ("agreement" if "drop" not in candidate and candidate else "accuracy"))


def _set_up(choice: Choice, workers: int) -> str:
    """What to register, and where, before the flags do anything."""
    more = f" on {choice.extra} extra machines" if choice.extra else ""
    if not choice.candidate:
        return f"Register the model{more} too." if more else "Nothing is to be registered."
    code, k = choice.candidate["code"], choice.candidate["k"]
    archive = ", ".join(map(str, choice.candidate.get("archives", ()))) or "the protection's archive"
    if code == "exact" and "archives" not in choice.candidate:
        archive = f"the archive that `ts-parity package --role parity --code exact --k {k}` makes"
    if choice.policy == "coded":
        return (
            f"Register {archive}{more}, which serve nothing else, and the deployed archive of the same folder on the "
            f"{workers} that serve."
        )
    where = f"every machine, and both{more}" if more else "every machine"
    return f"Register {archive} beside the model on {where}."


def _tail(row: Mapping[str, Any]) -> float:
    return math.inf if row["p999"] is None else float(row["p999"])


def _choose(rows: Sequence[dict[str, Any]], plain: dict[str, Any]) -> dict[str, Any]:
    """No protection, unless something within the limits is clearly better, or that breaks them itself."""
    most = math.inf if plain["broken"] else WORTH * _tail(plain)
    fitting = [row for row in rows if not row["broken"] and _tail(row) < most]
    if not fitting:
        return plain
    best = min(map(_tail, fitting))
    close = [row for row in fitting if _tail(row) <= ALIKE * best]
    return min(close, key=lambda row: (row["extra_machines"], row["work"], row["loss"]))


def _sentence(
    chosen: Mapping[str, Any],
    plain: Mapping[str, Any],
    world: World,
    rows: Sequence[Mapping[str, Any]],
    limits: Limits,
) -> str:
    now, least = spread(plain, "p999", world), spread(chosen, "p999", world)
    if chosen["broken"] and limits.p999 is not None:
        best = min(rows, key=_tail)
        others = [why for why in best["broken"] if why != _TOO_HIGH]
        price = f" ({'; '.join(others)})" if others else ""
        return (
            f"Nothing reaches a p99.9 of {time_told(limits.p999, world)} within these limits. The lowest is "
            f"{spread(best, 'p999', world)}, with {named(best)}{price}; without protection it is {now}."
        )
    if chosen["broken"]:
        return (
            f"None of the choices fits these limits: with {named(chosen)} there are {'; '.join(chosen['broken'])}, and "
            f"p99.9 is {now}."
        )
    if chosen is plain:
        return f"Run nothing: {_why_nothing(plain, rows, limits)}; p99.9 is {now}."
    what = f"points of {chosen['loss_of']} lost over all answers"
    loss = f"{100 * chosen['loss']:.3f} {what}" if chosen["loss"] else "nothing lost"
    sentence = (
        f"Run {named(chosen)}: p99.9 {least} against {now} without, {chosen['work'] - plain['work']:+.1%} of work, "
        f"{loss} ({chosen['reconstructed']:.2%} of the answers rebuilt)."
    )
    if plain["seeds"] > 1 and plain["p999"] is not None and chosen["p999_high"] >= plain["p999_low"]:
        sentence += " The seeds do not agree on it, so it may be chance: try more --queries or --seeds."
    return sentence


def _why_nothing(plain: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], limits: Limits) -> str:
    if any(row["broken"] for row in rows):
        return "within these limits nothing is clearly better"
    calm = plain["p999"] is not None and plain["p999"] <= CALM * plain["p50"]
    return "it is enough" if calm or limits.p999 is not None else "none of the choices is clearly better"


def work_told(row: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """Where a row's work comes from, and why it differs from the training report's."""
    if row["code"] is None:
        return f"Second copies {row['work_copy']:+.1%}." if row["work_copy"] else ""
    counted = row["group_multiplications"]
    by = "by the clock" + ("" if counted is None else f", {counted:.2f} counted in multiplications")
    said = (
        f"A group costs {row['group_cost']:.2f} deployed inferences {by}, which is {row['work_reported']:.1%} for each "
        f"of k = {row['k']} if every query is protected; so says the training report"
    )
    if row["policy"] == "default":
        here = f"here only late queries get one, {row['launched_late']:.1%} of all"
    else:
        members = 1 / row["launched"] if row["launched"] else 0.0
        here = f"here every group gets one, and groups have {members:.2f} queries on average"
    parts = [f"protections {row['work_protection']:+.1%}", f"second copies {row['work_copy']:+.1%}"]
    parts += [f"finishes {row['work_finish']:+.1%}"] if row["work_finish"] else []
    own = row["work"] - row["work_protection"] - row["work_copy"] - row["work_finish"] - plain["work"]
    parts += [f"the model's own {own:+.1%} (slow machines are passed over)"] if abs(own) >= 0.001 else []
    return f"{said}; {here}. Of work: {', '.join(parts)}."


def assumed(world: World, domains: int | None) -> list[str]:
    """Assumptions about the fleet that the inputs do not show."""
    arrivals = (
        "Queries come at the instants of the trace, or of the log."
        if world.trace
        else f"Queries come at random at one rate all the time{_of_arrivals(world)}; real days have busier hours."
    )
    at_once = "one query" if world.places == 1 else f"{world.places} queries"
    told = [
        f"All machines are equally fast, and run {at_once} at a time.",
        *_of_slowness(world),
        arrivals,
        *_of_domains(world, domains),
        "Clients never give up: no deadline and no queue limit turns a query away.",
        "Protections cost and lose what the training report says, whose machine, device and bodies may differ from "
        "yours; all are in use from the start, without their trial.",
        "The proxy and the network add no time beyond what the log contains.",
    ]
    if world.busy > COMFORTABLE:
        told.append(
            f"The load of {world.busy:.2f} lasts as long as the simulation; after a longer time queues would be longer."
        )
    return told


def _of_domains(world: World, domains: int | None) -> list[str]:
    if domains is not None:
        return [f"{domains} failure domains."]
    return ["Each machine is slow by itself."] if world.seen is None else []


def _of_slowness(world: World) -> list[str]:
    told = []
    if world.seen is not None:
        told.append(
            "Machines are slow, frozen or dead when they were in the log, over and over; extra machines have the "
            "spells of others, at other times."
        )
    if world.spells is not None:
        told.append(
            f"Machines have spells of slowness, {world.spells.share:.1%} of the time, {world.spells.factor:g} times "
            f"slower, {time_told(world.spells.mean * world.unit, world)} long on average, as --slow has it."
        )
    return told or ["Service times depend neither on the machine nor on the inference before."]


def _of_arrivals(world: World) -> str:
    told = [] if world.arrival_cv == 1.0 else [f"gaps of cv {world.arrival_cv:g}"]
    told += [] if world.burst == 1.0 else [f"bursts of {world.burst:g} times as many for a tenth of the time"]
    return f" ({', '.join(told)})" if told else ""


def unseen(world: World, candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """What these figures cannot include."""
    told = []
    if world.service.samples:
        told.append(f"Anything rarer than once in the log's {len(world.service.samples):,} answers.")
    if world.seen is None:
        told.append("Machines that freeze, die or restart: the log does not say which machine was slow when.")
    else:
        spells = sum(map(len, world.seen.spells.values()))
        told.append(
            f"Spells longer or rarer than the {spells} that the log has in {world.seen.duration_s:.0f} s, and slow "
            "answers of a machine that comes back cold."
        )
        told.append("Differences between days: seeds differ only in where in the log the spells begin.")
    told.append("Other work of the machines: other models, other proxies, larger bodies than usual.")
    if candidates:
        told.append("Whether the machines have the memory for the protection beside the model.")
    else:
        told.append("What a trained protection would do: give --report.")
    return told

"""The last five minutes in figures and in a sentence: for the page, `top` and whoever reads `/status`.

Pure: what the processes have counted in, plain values out. Percentiles are told only as far as enough answers lie
beyond them. Knows what the figures mean. Knows nothing of how they were counted, or of HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ts_parity.proxy.operations.remedies import remedy
from ts_parity.proxy.serving.conditions import SERVING, SILENT, SUSPECT, told_seconds
from ts_parity.proxy.serving.durations import Counts, beyond, farthest, percentile
from ts_parity.proxy.serving.races import KEPT
from ts_parity.proxy.serving.recent import SLOT_S, SLOTS

Json = dict[str, Any]

LIMITS: Final = (
    "Queueing would have differed: without second copies and protections, other queries would have stood in other "
    "queues.",
    "A query whose own answer never came counts as its deadline; one whose own answer is still out counts as long as "
    "it has been out.",
)
"""Of every figure that says what would have been."""
_BUDGETS: Final = (("extra_work", "extra work"), ("differing", "differing"))
MOST_POINTS: Final = 80
IN_A_SLOT: Final = 0.99
"""Five seconds have few queries: a higher percentile would be the slowest one."""


def merge_recent(parts: Sequence[Json]) -> Json:
    """What several processes have counted, as if one had."""
    slots: dict[int, Json] = {}
    for slot in (slot for part in parts for slot in part["slots"]):
        slots[slot["number"]] = _merged(slots[slot["number"]], slot) if slot["number"] in slots else slot
    races = sorted((race for part in parts for race in part["races"]), key=lambda race: -race["answered_at"])
    newest = max(slots, default=0)
    kept = [slots[number] for number in sorted(slots) if number > newest - SLOTS]
    return {"slots": kept, "races": races[:KEPT]}


def _merged(one: Json, other: Json) -> Json:
    merged: Json = {"number": one["number"]}
    for name in ("extra_work", "differing"):
        merged[name] = one[name] + other[name]
    for name in ("given", "unprotected"):
        pools = dict.fromkeys([*one[name], *other[name]])
        merged[name] = {pool: [*one[name].get(pool, ()), *other[name].get(pool, ())] for pool in pools}
    for name in ("sources", "findings"):
        merged[name] = {}
        for pool in dict.fromkeys([*one[name], *other[name]]):
            counts = merged[name][pool] = dict(one[name].get(pool, {}))
            for key, number in other[name].get(pool, {}).items():
                counts[key] = counts.get(key, 0) + number
    return merged


def with_overview(status: Json, recent: Json, now: float) -> Json:
    """The status, with what happened of late. `now`: seconds since 1970."""
    first = int(now // SLOT_S) - SLOTS + 1
    slots = [slot for slot in recent["slots"] if slot["number"] >= first]
    seconds = _seconds(slots, status.get("uptime_s", 0.0), now)
    told = _figures(slots, seconds)
    told |= {
        "seconds": round(seconds, 1),
        "timeline_percentile": min(told["percentile"], IN_A_SLOT),
        "timeline": _timeline(slots, first, now, min(told["percentile"], IN_A_SLOT)),
        "tail": {name: _tail(_counts(slots, name)) for name in ("given", "unprotected")},
        "limits": [*LIMITS],
        **_spending(slots, told["queries"]),
    }
    pools = {name: {**pool, "recent": _figures(slots, seconds, name)} for name, pool in status.get("pools", {}).items()}
    whole = {**status, "pools": pools, "recent": told, "late_queries": recent["races"]}
    whole["advice"] = [{"problem": problem, "remedy": remedy(problem)} for problem in _problems(whole)]
    return {"sentence": sentence(whole), **whole}


def _problems(status: Json) -> list[str]:
    """Also those that the plan and the engine do not know: an instance that is silent now."""
    known = status.get("problems", [])
    troubled = [
        f"{instance['name']}: {condition['reason']}"
        for instance in status.get("instances", [])
        if (condition := instance.get("condition")) and condition["state"] == SILENT
    ]
    return [*dict.fromkeys([*known, *troubled])]


def sentence(status: Json) -> str:
    """What an operator wants to know first."""
    instances = status.get("instances", [])
    serving = sum(instance.get("condition", {}).get("state") in (SERVING, SUSPECT) for instance in instances)
    recent, policy = status["recent"], status.get("policy", {})
    parts = [f"{serving} of {len(instances)} {'machine' if len(instances) == 1 else 'machines'} serve"]
    if len(instances) == 1:
        parts = [f"{serving} of 1 machine serves"]
    if status.get("state") == "draining":
        parts.insert(0, "Draining")
    if recent["given_s"] is None:
        parts.append("no queries in the last five minutes")
    else:
        without_s = recent["unprotected_s"]
        without = f", {told_seconds(without_s)} without protection" if without_s is not None else ""
        parts.append(f"{told_percentile(recent['percentile'])} {told_seconds(recent['given_s'])}{without}")
        if "extra_work" in policy:
            parts += [_spent(what, recent[key], policy[key]) for key, what in _BUDGETS]
    return "; ".join(parts)


def _spent(what: str, used: float, limit: float) -> str:
    """More than the limit: some may be spent at once, and queries pay for it later."""
    if used > limit:
        return f"{what} {_percent(used)} %, at most {_percent(limit)} % over time"
    return f"{what} {_percent(used)} of {_percent(limit)} %"


def told_percentile(share: float) -> str:
    return "median" if share == 0.5 else f"p{share * 100:g}"


def _percent(share: float) -> str:
    percent = share * 100.0
    return "0" if percent == 0 else f"{percent:.1f}".removesuffix(".0") if percent >= 1 else f"{percent:.1g}"


# ---- figures ---------------------------------------------------------------------------------------------------------


def _seconds(slots: Sequence[Json], uptime_s: float, now: float) -> float:
    """That the slots cover."""
    return max(1.0, min(uptime_s or now, (SLOTS - 1) * SLOT_S + now % SLOT_S))


def _counts(slots: Iterable[Json], name: str, pool: str | None = None) -> dict[int, int]:
    total: dict[int, int] = {}
    for slot in slots:
        lists = slot[name].values() if pool is None else (slot[name].get(pool, ()),)
        for pairs in lists:
            for bucket, number in pairs:
                total[bucket] = total.get(bucket, 0) + number
    return total


def _sums(slots: Iterable[Json], name: str, pool: str | None = None) -> dict[str, int]:
    total: dict[str, int] = {}
    for slot in slots:
        for of, counts in slot[name].items():
            if pool is None or of == pool:
                for key, number in counts.items():
                    total[key] = total.get(key, 0) + number
    return total


def _figures(slots: Sequence[Json], seconds: float, pool: str | None = None) -> Json:
    given, unprotected = _counts(slots, "given", pool), _counts(slots, "unprotected", pool)
    queries, share = sum(given.values()), farthest(given, unprotected)
    return {
        "queries": queries,
        "rate": round(queries / seconds, 3),
        "percentile": share,
        "given_s": _rounded(percentile(given, share)),
        "unprotected_s": _rounded(percentile(unprotected, share)),
        "percentiles": {f"{p:g}": [_rounded(percentile(c, p)) for c in (given, unprotected)] for p in _TOLD},
        "sources": _sums(slots, "sources", pool),
        "findings": _sums(slots, "findings", pool),
    }


_TOLD: Final = (0.5, 0.9, 0.99, 0.999)


def _spending(slots: Sequence[Json], queries: int) -> Json:
    return {name: round(sum(slot[name] for slot in slots) / max(queries, 1), 8) for name in ("extra_work", "differing")}


def _timeline(slots: Sequence[Json], first: int, now: float, share: float) -> list[Json]:
    """Each slot: how many queries, their median, and the percentile that all told can tell, with and without. In a slot
    few lie beyond that percentile, so it is the largest there, rather than nothing.
    """
    by_number = {slot["number"]: slot for slot in slots}
    told = []
    for number in range(first, int(now // SLOT_S) + 1):
        of = [by_number[number]] if number in by_number else []
        given, unprotected = _counts(of, "given"), _counts(of, "unprotected")
        told.append(
            {
                "at": number * SLOT_S,
                "queries": sum(given.values()),
                "median_s": _rounded(percentile(given, 0.5)),
                "given_s": _rounded(_at_least(given, share)),
                "unprotected_s": _rounded(_at_least(unprotected, share)),
            }
        )
    return told


def _at_least(counts: Counts, share: float) -> float | None:
    """The percentile, however few lie beyond."""
    if not counts:
        return None
    wanted, before = share * sum(counts.values()), 0
    for bucket in sorted(counts):
        before += counts[bucket]
        if before >= wanted - 1e-9:
            return beyond({bucket: 1})[0][0]
    return None


def _tail(counts: Counts) -> list[list[float]]:
    """Which share of all took longer than so many seconds; the last point is the slowest of all."""
    curve = [[round(seconds, 6), round(share, 8)] for seconds, share in beyond(counts)]
    return curve[-MOST_POINTS:]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)

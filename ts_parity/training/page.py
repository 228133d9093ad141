"""The report as one HTML file that needs nothing else: what to take, what it is worth, and how it errs.

Knows the report's keys, and how a body is shown. Computes nothing that is not in the report.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_parity.pages import (
    TableCell,
    bar,
    between,
    lead,
    listed,
    note,
    page,
    pairs,
    section,
    sentence,
    table,
    text,
    typed,
)
from ts_parity.training.bodies import RequestBody
from ts_parity.training.charts import Chart, Pair, Series
from ts_parity.training.disagreements import SHOWN
from ts_parity.training.figures import FIGURES, Figure
from ts_parity.training.previews import preview
from ts_parity.training.recommend import MOST_LOSS, SMALL_LOSS, chosen, extra_work, looked_at, loss, named
from ts_parity.training.semantics import OutputSemantics
from ts_parity.training.steps import next_steps

MOST_SHOWN = 1 << 20
"""Signs of all bodies that are shown together; what comes after them has its name."""
MOST_CLASSES = 24
"""Rows of the table by class; the rest is summed up."""
MOST_LINES = 30
"""Warnings, and bodies that were refused."""
MOST_SIGNS = 2000
"""Of one line that a handler or a file name may have made."""
F = [i / 100 for i in range(21)]

Candidate = Mapping[str, Any]


def report_page(report: Mapping[str, Any], out: Path, bodies: Mapping[int, RequestBody] | None = None) -> str:
    """`out`: the folder of the archives. `bodies`: those of the disagreements, by their row among the scored ones."""
    candidates: Sequence[Candidate] = report["candidates"]
    deployed, figure = report["deployed"], FIGURES[report.get("metric") or "accuracy"]
    scored = [c for c in candidates if "error" in c]
    title = f"What a rebuilt answer of {deployed['model']} {deployed['version']} is worth"
    return page(
        title,
        [
            _said(report["recommendation"]),
            _tiles(report, figure),
            section("Warnings", _lines(report.get("warnings", ())), kind="alarm"),
            section("What to do next", _steps(report, out)),
            section("What was compared", _table(report, figure), _legend(report, figure)),
            _figures(report, scored, figure),
            _classes(report),
            _disagreements(report, bodies or {}),
            section("What was not made", _lines(report.get("refused", ()))),
            section(_left_out(report), _lines(report.get("refused_bodies", ()))),
            section("How it was made", pairs(_made(report)), _command(report), _archives(report)),
        ],
        text(f"ts_parity {report.get('package', '')}. This page needs no network: it loads nothing."),
    )


def _left_out(report: Mapping[str, Any]) -> str:
    return "Pairs that were left out" if "from_pairs" in report else "Bodies that the handler refused"


def _said(recommendation: str) -> str:
    """The recommendation; its first sentence says what to take."""
    first, point, rest = recommendation.partition(". ")
    said, more = (sentence(part) for part in (first + point.strip(), rest))
    return lead(said) + "\n" + (f"<p>{more}</p>" if more else "")


# ---- in a few numbers ------------------------------------------------------------------------------------------------


def _tiles(report: Mapping[str, Any], figure: Figure) -> str:
    """Of the one that is recommended, or else of the best of those that were made."""
    one = looked_at(report)
    if one is None or "score" not in one:
        return ""
    head = named(one) + (", recommended" if one is chosen(report) else ", the best of those trained")
    points = "" if figure.error else "points "
    gain = "; what is below 0 is gained" if (interval(one, "loss") or (loss(one),))[0] < 0 else ""
    tiles = [
        (_lost(one), f"{points}of {one['loss_of']} lost by a rebuilt answer{gain}", "loss"),
        (figure.format(one["score"]), f"{figure.own} {_beside_own(figure)} the model's own answers", "score"),
    ]
    if (work := extra_work(one)) is not None:
        tiles.append((f"{work:.0%}", "extra work per query, if every query is protected", ""))
    shown = "".join(
        f'<div class="tile"><dt>{text(what)}</dt><dd>{text(value)}{_between(one, name, "95 % interval ")}</dd></div>'
        for value, what, name in tiles
    )
    return f'<section class="tiles" aria-label="{text(head)}"><h2>{text(head)}</h2><dl>{shown}</dl></section>'


def _beside_own(figure: Figure) -> str:
    return "against" if figure.error else "with"


def _lost(candidate: Candidate) -> str:
    if FIGURES[candidate["metric"]].error:
        return f"{loss(candidate):.2%}"
    return f"{100 * loss(candidate):.2f}"


def interval(candidate: Mapping[str, Any], name: str) -> Pair | None:
    """From low to high, with 95 % certainty."""
    ends = candidate.get("intervals", {}).get(name)
    return None if ends is None or ends[0] == ends[1] else (float(ends[0]), float(ends[1]))


def _between(candidate: Candidate, name: str, what: str = "") -> str:
    ends = interval(candidate, name)
    if ends is None:
        return ""
    figure = FIGURES[candidate["metric"]]
    if name == "loss":
        told = (f"{100 * end:.2f}" + ("%" if figure.error else "") for end in ends)
    else:
        told = (figure.format(end) for end in ends)
    return between(what + " to ".join(told))


# ---- what to do ------------------------------------------------------------------------------------------------------


def _steps(report: Mapping[str, Any], out: Path) -> str:
    items = (f"<li>{sentence(step.say)}{typed(step.command)}</li>" for step in next_steps(report, out))
    capitals = note("What is written in capitals is yours to fill in.")
    return f'{capitals}<ol class="steps">{"".join(items)}</ol>'


def _lines(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - MOST_LINES} more, which report.json names"] if len(lines) > MOST_LINES else []
    return listed([line[:MOST_SIGNS] for line in [*lines[:MOST_LINES], *more]])


# ---- the candidates --------------------------------------------------------------------------------------------------


def _label(candidate: Candidate) -> str:
    return f"{candidate['code']} k={candidate['k']}" + (f" r={candidate['r']}" if candidate["r"] > 1 else "")


def _labelled(candidate: Candidate) -> bool:
    return "A_d" in candidate or "E_d" in candidate


def _table(report: Mapping[str, Any], figure: Figure) -> str:
    if "scored_on" not in report:  # `exact` alone, of which the first sentence says all that is known
        return ""
    candidates, taken = [*report["candidates"], *report.get("beside", ())], chosen(report)
    own, rebuilt = ("E_a", "E_d") if figure.error else ("A_a", "A_d")
    columns: list[tuple[str, Callable[[Candidate], str]]] = [
        (own, lambda c: _told(c, own, figure)),
        (rebuilt, lambda c: _told(c, rebuilt, figure)),
        ("loss", lambda c: text(_lost({"metric": report.get("metric", "accuracy"), **c})) + _between(c, "loss")),
        (figure.own, lambda c: _told(c, "score", figure)),
        ("cost of a group", lambda c: _cost(c)),
        ("extra work", lambda c: "" if extra_work(c) is None else f"{extra_work(c):.0%}"),
        ("seeds", lambda c: _over_seeds(c, figure)),
    ]
    shown = [(head, cell) for head, cell in columns if any(cell(c) for c in candidates)]
    rows = []
    for c in candidates:
        kind, tag = (
            ("take", "recommended") if c is taken else ("no", "loses too much") if loss(c) > MOST_LOSS else ("", "")
        )
        tagged = f' <span class="tag">{tag}</span>' if tag else ""
        label = f"{text(_label(c))}{tagged}{between(_kind(report, c), 80)}"
        rows.append((kind, [TableCell(label), *(TableCell(cell(c)) for _, cell in shown)]))
    return table(_scored_on(report), ["protection", *(head for head, _ in shown)], rows)


def _kind(report: Mapping[str, Any], candidate: Candidate) -> str:
    return "for comparison only" if candidate in report.get("beside", ()) else candidate["architecture"]


def _told(candidate: Candidate, name: str, figure: Figure) -> str:
    if name not in candidate:
        return ""
    return text(figure.format(candidate[name])) + _between(candidate, name)


def _over_seeds(candidate: Candidate, figure: Figure) -> str:
    """The packed seed, whose figures all others are, and the mean over seeds."""
    if "over_seeds" not in candidate:
        return ""
    mean = candidate["over_seeds"]
    told = f"{figure.own} {figure.format(mean['score'], mean['score_spread'])}"
    packed = f"{candidate['seeds']}, packed: seed {candidate['packed_seed']}"
    return packed + between(told)


def _cost(candidate: Candidate) -> str:
    if candidate.get("cost") is None:
        return ""
    counted = candidate.get("multiplications")
    more = "" if counted is None else between(f"{counted:.2f} by multiplications")
    return f"{candidate['cost']:.2f}{more}"


def _scored_on(report: Mapping[str, Any]) -> str:
    told = f"Scored on {report['scored_on']}, in {report['scored_groups']:,} groups, every slot erased once"
    known = any("intervals" in c for c in report["candidates"])
    return told + ("; the 95 % interval stands below each figure." if known else ".")


def _legend(report: Mapping[str, Any], figure: Figure) -> str:
    if "outputs" not in report:
        return ""
    first = next((c for c in report["candidates"] if "score" in c), None)
    letter, words = "E" if figure.error else "A", []
    if first is not None and _labelled(first):
        words.append((f"{letter}_a, {letter}_d", f"{figure.true} of the model's own and of rebuilt answers"))
    unit = f", in the outputs' unit; their spread is {first['spread']:.4g}" if first and "spread" in first else ""
    words.append((figure.own, f"of rebuilt answers {_beside_own(figure)} the model's own{unit}"))
    lost = first["loss_of"] if first else "agreement"
    words.append(
        (
            "loss",
            f"of a rebuilt answer, in {'per cent' if figure.error else 'points'} of {lost}; what is below 0 is gained",
        )
    )
    device = report.get("serve_on", report["device"])
    words.append(("cost of a group", f"its time on a worker in deployed inferences ({device} here)"))
    words.append(("extra work", "per query, if every query is protected; launched late, only late queries add it"))
    words.append(("outputs", f"taken for {report['outputs']['kind']}: {report['outputs']['why']}"))
    return pairs(words)


# ---- plots -----------------------------------------------------------------------------------------------------------


def _figures(report: Mapping[str, Any], scored: Sequence[Candidate], figure: Figure) -> str:
    """A plot of a single dot shows nothing that the table does not say."""
    drawn: list[tuple[str, str, str]] = []
    priced = [c for c in scored if extra_work(c) is not None]
    if len(priced) > 1:
        words = "What a rebuilt answer loses, against the work that it adds."
        drawn.append(("Loss and work", words, _against_work([*priced, *report.get("beside", ())], figure)))
    if scored:
        name = _overall_name(scored[0])
        words = (
            f"Look up your share of late answers: a line gives the {name} of all answers if the late ones are rebuilt."
        )
        drawn.append((f"Overall {name}", words, _overall(scored)))
    if sure := [c for c in scored if c.get("confidence", {}).get("surest")]:
        words = (
            "The fewer rebuilt answers are released, the surest first, the closer they are to the model's own. This "
            "holds for bodies like the scored ones. It does not detect bodies of another kind; the proxy's comparison "
            "with live answers does."
        )
        drawn.append(("Confidence", words, _confidence(sure)))
    shown = "".join(
        f"<figure><figcaption><h3>{text(name)}</h3><p>{text(words)}</p></figcaption>{svg}</figure>"
        for name, words, svg in drawn
    )
    return section("What it means", f'<div class="figures">{shown}</div>') if shown else ""


def _form(candidate: Candidate) -> int:
    return max(0, int(candidate["k"]) - 2)


def _points(candidate: Candidate) -> float:
    return 100 * loss(candidate)


def _ends(candidate: Candidate, name: str) -> Pair | None:
    ends = interval(candidate, name)
    return None if ends is None else (100 * ends[0], 100 * ends[1])


def _against_work(candidates: Sequence[Candidate], figure: Figure) -> str:
    marks = [
        Series(
            _label(c), c["code"], [(100 * (extra_work(c) or 0.0), _points(c))], _form(c), [_ends(c, "loss")],
        )
        for c in candidates
    ]  # fmt: skip
    told = "; ".join(f"{_label(c)} loses {_points(c):.2f} points and adds {extra_work(c):.0%}" for c in candidates)
    what = next(c["loss_of"] for c in candidates if "loss_of" in c)
    up = f"loss, % of {what}" if figure.error else f"loss, points of {what}"
    return Chart(
        told, "extra work per query, %", up, marks, (100 * SMALL_LOSS, "one per cent" if figure.error else "one point")
    ).svg()


def _overall_name(candidate: Candidate) -> str:
    figure = FIGURES[candidate["metric"]]
    return figure.true if _labelled(candidate) else figure.own


def _overall(candidates: Sequence[Candidate]) -> str:
    first = candidates[0]
    figure, semantics = FIGURES[first["metric"]], OutputSemantics(metric=first["metric"])
    scale = 1.0 if figure.error else 100.0
    own = float(first.get("E_a", 0.0) if figure.error else first.get("A_a", 1.0))

    def line(label: str, colour: str, other: float, form: int = 0) -> Series:
        points = [(100 * f, scale * semantics.mixed(own, other, f)) for f in F]
        return Series(label, colour, points, form, line=True)

    marks = [line(_label(c), c["code"], _worth(c), _form(c)) for c in candidates]
    ends = [scale * own, *(mark.points[-1][1] for mark in marks)]
    least, most = min(ends), max(ends)
    default = first.get("E_default" if figure.error else "A_default")
    if default is not None:  # far off, as a rule: the others are to be told from each other
        marks.append(line("a default answer", "plain", float(default)))
    # Half as much again on the side of the worse, where the default answer's line is seen to begin.
    edge = 0.1 * (most - least) + (0.02 if figure.error else 0.005) * scale * max(own, 0.1)
    worse = edge + 0.5 * (most - least)
    bounds = (max(0.0, least - edge), most + worse) if figure.error else (least - worse, min(100.0, most + edge))
    told = "; ".join(f"{mark.label}: {mark.points[10][1]:.4g} at 10 %" for mark in marks)
    up = _overall_name(first) + ("" if figure.error else ", %")
    return Chart(told, "answers that are rebuilt, %", up, marks, zero=False, bounds=bounds).svg()


def _worth(candidate: Candidate) -> float:
    """What rebuilt answers score: against labels where there are some."""
    return float(next(candidate[name] for name in ("A_d", "E_d", "score") if name in candidate))


def _confidence(candidates: Sequence[Candidate]) -> str:
    figure = FIGURES[candidates[0]["metric"]]
    marks = [_surest_numbers(c) if figure.error else _surest(c) for c in candidates]
    told = "; ".join(
        f"{mark.label}: " + ", ".join(f"{y:.4g} of the surest {x:.0f} %" for x, y in mark.points) for mark in marks
    )
    up = figure.own if figure.error else "agreement, %"
    bounds = (-math.inf, math.inf if figure.error else 100.0)
    return Chart(told, "surest answers that are released, %", up, marks, zero=False, bounds=bounds).svg()


def _surest(candidate: Candidate) -> Series:
    told = candidate["confidence"]
    points = [{**told, "released": 1.0}, *(each for each in told["surest"] if "agreement" in each)]
    shown = [(100 * point["released"], 100 * point["agreement"]) for point in points]
    ends = [(100 * point["agreement_95"][0], 100 * point["agreement_95"][1]) for point in points]
    return Series(_label(candidate), candidate["code"], shown, _form(candidate), ends, line=True)


def _surest_numbers(candidate: Candidate) -> Series:
    """Of numbers there is no share that agrees."""
    points = [(100 * p["released"], float(p["score"])) for p in candidate["confidence"]["surest"] if "score" in p]
    whole = (100.0, float(candidate["score"]))
    return Series(_label(candidate), candidate["code"], [whole, *points], _form(candidate), line=True)


# ---- by class --------------------------------------------------------------------------------------------------------


def _classes(report: Mapping[str, Any]) -> str:
    one = looked_at(report)
    rows = [] if one is None else one.get("classes", [])
    if one is None or len(rows) < 2:
        return ""
    all_ends = [100 * end for row in rows[:MOST_CLASSES] for end in (row["loss"], *(interval(row, "loss") or ()))]
    least, largest = min(0.0, *all_ends), max(0.0, *all_ends) or 1.0
    lines = []
    for row in rows[:MOST_CLASSES]:
        low, high = interval(row, "loss") or (row["loss"], row["loss"])
        cells = [
            TableCell(text(row["name"], 60)), TableCell(f"{row['bodies']:,}"),
            TableCell(bar(100 * row["loss"], 100 * low, 100 * high, largest, "take", least), "bars"),
            TableCell(f"{100 * row['loss']:.1f}{between(f'{100 * low:.1f} to {100 * high:.1f}')}"),
            TableCell(f"{row['agreement']:.1%}"),
        ]  # fmt: skip
        lines.append(("", cells))
    rest = rows[MOST_CLASSES:]
    more = f"{len(rest):,} more classes lose {100 * rest[0]['loss']:.1f} points or less each." if rest else ""
    of = "the label" if _labelled(one) else "the model's own answer"
    caption = (
        f"{named(one)}, by the class of {of}, the worst first; in points of {one['loss_of']}, with 95 % intervals. "
        "Classes of few bodies have wide ones."
    )
    heads = ["class", "bodies", "", "loss", "agreement"]
    rest = note(more) if more else ""
    return section("Loss by class", table(caption, heads, lines, small=True), rest)


# ---- how it errs -----------------------------------------------------------------------------------------------------


def _disagreements(report: Mapping[str, Any], bodies: Mapping[int, RequestBody]) -> str:
    one = looked_at(report)
    shown: Sequence[Mapping[str, Any]] = [] if one is None else one.get("disagreements", [])
    if one is None or not shown:
        return ""
    cards = "".join(_cards(shown, bodies))
    return section("Where the two differ", f"<p>{text(_counted(one, shown))}</p>", f'<ul class="gallery">{cards}</ul>')


def _counted(one: Candidate, shown: Sequence[Mapping[str, Any]]) -> str:
    told, figure = one.get("differing", {}), FIGURES[one["metric"]]
    if not told:
        furthest = "furthest off" if figure.error else "least alike"
        return f"{named(one)}: the bodies on which a rebuilt answer is {furthest}, as the client sends them."
    words = f"{named(one)}: {told['differ']:,} of {told['answers']:,} rebuilt answers differ from the model's own"
    if "own_right" in told:
        neither = told["differ"] - told["own_right"] - told["rebuilt_right"]
        words += (
            f". In {told['own_right']:,} of these the model is right, in {told['rebuilt_right']:,} the rebuilt answer "
            f"is, and both are wrong in {f'{neither:,}' if neither else 'none'}"
        )
    if len(shown) < SHOWN:  # a body is in many groups
        bodies = "one body" if len(shown) == 1 else f"{len(shown)} bodies"
        return f"{words}. They are all answers to {bodies}, shown here as the client sends them:"
    return f"{words}. Here are {len(shown)} of the bodies, drawn at random, as the client sends them:"


def _cards(shown: Iterable[Mapping[str, Any]], bodies: Mapping[int, RequestBody]) -> Iterator[str]:
    room = MOST_SHOWN
    for one in shown:
        body = bodies.get(one["row"])
        picture = preview(body) if body is not None else ""
        if not picture or len(picture) > room:
            picture = note("(not shown)")
        room -= len(picture)
        told = [("model", one["deployed"], one.get("answer")), ("rebuilt", one["rebuilt"], one.get("rebuilt_answer"))]
        if "label" in one:
            told.append(("label", one["label"], None))
        yield (
            f'<li><h3>{text(one["body"], 120)}</h3><div class="body">{picture}</div><dl>'
            + "".join(f"<dt>{name}</dt><dd>{_said_by(said, answer)}</dd>" for name, said, answer in told)
            + "</dl></li>"
        )


def _said_by(said: str, answer: str | None) -> str:
    more = f' <code class="between">{text(_short(answer), 200)}</code>' if answer and answer.strip() != said else ""
    return f"<b>{text(said, 120)}</b>{more}"


def _short(answer: str) -> str:
    """JSON in one line, its numbers to four digits, as the others on the page."""
    try:
        return json.dumps(json.loads(answer, parse_float=_rounded), ensure_ascii=False)
    except (ValueError, RecursionError):
        return answer


def _rounded(number: str) -> float:
    return float(f"{float(number):.4g}")


# ---- how it was made -------------------------------------------------------------------------------------------------


def _made(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "made_at" in report:
        yield "made at", report["made_at"]
    yield "model", f"{report['deployed']['model']} {report['deployed']['version']}"
    yield "bodies", _bodies(report)
    if "hyperparameters" in report:
        hparams = report["hyperparameters"]
        varied = f", varied by {', '.join(hparams['vary'])}" if hparams.get("vary") else ""
        yield "training", f"{hparams['steps']:,} steps a network, peak rate {hparams['peak_rate']:g}{varied}"
    if any(c["code"] != "exact" for c in report["candidates"]):
        seeds = max(int(c.get("seeds") or 0) for c in report["candidates"])
        yield "seeds", f"{seeds}, from {report['seed']} on" if seeds > 1 else f"one, {report['seed']}"
    yield "machine", f"{report['machine']}; {report['device']}; torch {report['torch']}"
    if "seconds" in report:
        yield "took", f"{report['seconds']:,} s"


def _command(report: Mapping[str, Any]) -> str:
    return f"{note('The command:')}{typed(shlex.join(report['command']))}" if "command" in report else ""


def _bodies(report: Mapping[str, Any]) -> str:
    told, split = f"{report['bodies']:,} given", report.get("split")
    if split:
        told += (
            f"; {split['learn']:,} to learn from, {split['choose']:,} to choose the best weights, "
            f"{split['score']:,} to score"
        )
        if split.get("repeated"):
            told += f"; {split['repeated']:,} are repeats"
    return told


def _archives(report: Mapping[str, Any]) -> str:
    hashes: Mapping[str, str] = report.get("hashes", {})
    if not hashes:
        return ""
    rows = [
        ("", [TableCell(text(name)), TableCell(f"<code>{text(digest.removeprefix('sha256:'))}</code>", "long")])
        for name, digest in hashes.items()
    ]
    return table("What was packed, and what it was made from.", ["archive", "sha256"], rows)

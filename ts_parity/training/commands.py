"""The subcommands `train` and `report`: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from ts_parity import output
from ts_parity.arguments import count, existing, number, seconds, source, to_write
from ts_parity.config import CODES
from ts_parity.errors import ConfigError, TrainingError, TsParityError
from ts_parity.tables import columns
from ts_parity.torchserve.commands import DECLARATION, add_declaration, declared
from ts_parity.training import FOLDERS, FORMATS, METRICS, VARIATIONS, PairSettings, TrainSettings
from ts_parity.training.figures import FIGURES, NO_GUARD, Figure, margin

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64")
"""Of Lightning Fabric's, those that need no other library."""


def add_parsers(subparsers: Any) -> None:
    _add_train(subparsers)
    _add_report(subparsers)


def _add_train(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="make protections for a model from its archive and request bodies",
        description="Distil parity models and students from the deployed model's raw outputs, through the archive's "
        "own handler; or, for any server, a student from recorded pairs. Write archives that are ready to register, or "
        "files for Triton and LitServe, and a report of what rebuilt answers are worth. From an archive, the same "
        "command continues an interrupted run.",
        examples=(
            "ts-parity train --archive resnet.mar --inputs bodies/ --out protected/",
            "ts-parity train --archive resnet.mar --inputs bodies/ --code student --k 4 --out protected/",
            "ts-parity train --from-pairs pairs.jsonl --out student/",
            "ts-parity train --archive m.mar --inputs set.npz/x_train --body png --score set.npz/x_test \\\n"
            "      --labels set.npz/y_test --code sum --code student --k 2 --k 4 --out protected/",
        ),
    )
    given = parser.add_argument_group("input and output")
    given.add_argument("--archive", type=existing(), metavar="X.mar", help="the deployed model's archive")
    given.add_argument(
        "--inputs",
        type=source,
        metavar="BODIES",
        help="a folder of files, FILE.zip or FILE.zip/FOLDER, FILE.npz/ARRAY with --body, or FILE.jsonl",
    )
    given.add_argument("--body", choices=FORMATS, help="how a row of an .npz array becomes a request body")
    given.add_argument(
        "--content-type",
        metavar="TYPE",
        help="content type of the bodies, where file names do not imply it. multipart/form-data: each folder is one "
        "request and its files are the parts; with ; name=PART each file is a request whose only part is PART",
    )
    given.add_argument(
        "--out",
        type=to_write("folder"),
        required=True,
        metavar="DIR",
        help="a new folder for archives, report.json and report.html",
    )
    given.add_argument("--force", action="store_true", help="replace --out if it exists, and discard unfinished work")
    pairs = parser.add_argument_group(
        "from recorded pairs, without an archive",
        "Of any server: a student from what `ts-parity record` has written. Beside these, it takes --protects (which "
        "model, if there are several in the files), --name, --architecture, --metric, --steps, --rate, --seed, "
        "--seeds, --device, --precision, and --budget with --service-time.",
    )
    pairs.add_argument(
        "--from-pairs",
        type=existing(),
        action="append",
        metavar="FILE",
        help="pairs of requests and answers; may be repeated",
    )
    pairs.add_argument(
        "--input",
        action="append",
        metavar="POINTER",
        help="JSON pointer to the numbers of a request, as /instances; may be repeated; default: what can be meant",
    )
    pairs.add_argument(
        "--output",
        action="append",
        metavar="POINTER",
        help="JSON pointer to the numbers of an answer; may be repeated; default: what can be meant",
    )
    pairs.add_argument("--parameters", type=count(), metavar="N", help="the student has at most so many")
    pairs.add_argument(
        "--service-time",
        type=seconds,
        metavar="TIME",
        help="what the deployed model takes for one query; the student takes at most --budget of it (default: 1), here",
    )
    codes = parser.add_argument_group("codes")
    codes.add_argument(
        "--code", action="append", choices=CODES, dest="codes", help="may be given several times; default: sum"
    )
    codes.add_argument(
        "--k",
        action="append",
        type=count(),
        dest="ks",
        metavar="N",
        help="queries per coding group, may be given several times; default: 2",
    )
    codes.add_argument("--r", type=count(), default=1, metavar="N", help="protections per coding group")
    scores = parser.add_argument_group("scores")
    scores.add_argument("--score", type=source, metavar="BODIES", help="bodies no model has seen, to score on")
    scores.add_argument(
        "--labels",
        type=_labels,
        metavar="FILE",
        help="used only to score: a CSV with the header file,label (a class index, a number, or several numbers), "
        "FILE.npz/ARRAY, or folders (the name of each body's folder, in sorted order)",
    )
    scores.add_argument(
        "--metric",
        choices=METRICS,
        help="how answers are scored; default: derived from outputs, labels and answers",
    )
    learning = parser.add_argument_group("learning")
    learning.add_argument(
        "--architecture",
        metavar="NAME",
        help="network to train: deployed (starts from its weights), deployed-fresh, narrower (of the deployed class), "
        "mlp, cnn, resnet18, for token ids bag, transformer (each with an optional :WIDTH), or file.py:function; "
        "default: deployed for parity models, and for students one that fits the inputs, sized by --budget",
    )
    learning.add_argument(
        "--budget",
        type=number(above=0),
        metavar="COST",
        help="multiplications that a group may take with a built-in network, in deployed inferences; time, where they "
        "cannot be counted; the report has the time of every protection; default: 1, or what the narrowest takes",
    )
    learning.add_argument(
        "--vary", action="append", choices=VARIATIONS, help="variations of the inputs to learn from; may be repeated"
    )
    learning.add_argument("--steps", type=count(), metavar="N", help="training steps per network; default: 2000")
    learning.add_argument("--rate", type=number(above=0), metavar="RATE", help="peak learning rate; default: 0.003")
    learning.add_argument("--seed", type=count(0), default=0, metavar="N", help="random seed")
    learning.add_argument(
        "--seeds",
        type=count(),
        default=1,
        metavar="N",
        help="train with this many seeds and pack the best; the report describes that one",
    )
    learning.add_argument(
        "--device", type=_device, metavar="NAME", help="cpu, cuda, cuda:1; default: cuda if there is one"
    )
    learning.add_argument(
        "--serve-on",
        type=_device,
        metavar="NAME",
        help="the kind of device that will serve: costs are measured there; default: the one that learns",
    )
    learning.add_argument("--devices", type=count(), default=1, metavar="N", help="how many of them learn together")
    learning.add_argument(
        "--precision",
        choices=PRECISIONS,
        metavar="NAME",
        help="32-true, bf16-mixed, 16-mixed; default: bf16-mixed on cuda (16-mixed before Ampere), else 32-true",
    )
    made = parser.add_argument_group("archives and output")
    made.add_argument(
        "--name",
        metavar="NAME",
        help="model name of the protection; default: MODEL-VERSION-CODE-kK, such as resnet-1.0-sum-k2",
    )
    made.add_argument(
        "--protects",
        metavar="NAME[/VERSION]",
        help="the deployed model as the instances know it, if it is registered under another name than its manifest's",
    )
    made.add_argument(
        "--never-code",
        action="append",
        default=[],
        metavar="TYPE|KEY",
        help="bodies that no protection may answer, as for package: a content type, or a JSON key or form field",
    )
    add_declaration(made)
    made.add_argument("--secret", metavar="KEY", help="the fleet's shared secret, written into the archives")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run_train)


def _device(text: str) -> str:
    """Checks the form only: whether the device exists, torch says later, and it takes seconds to import."""
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; there are cpu, cuda, cuda:1 and the like, mps, xpu")
    return text


def _labels(text: str) -> Path:
    return Path(text) if text == FOLDERS else source(text)


def _add_report(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="print what training found",
        description="Print the table of a folder that `ts-parity train` wrote. Its report.html has the plots, and the "
        "commands to type next.",
        examples=("ts-parity report protected/", "ts-parity report protected/ --json"),
    )
    given = parser.add_argument_group("input and output")
    given.add_argument("dir", type=existing("folder"), metavar="DIR", help="the folder given to train as --out")
    given.add_argument("--json", action="store_true", help="print report.json")
    parser.set_defaults(run=run_report)


def run_train(args: argparse.Namespace) -> int:
    from ts_parity.training import train, train_from_pairs

    if args.from_pairs:
        report = train_from_pairs(_pair_settings(args))
        print(json.dumps(report, indent=2) if args.json else report_text(report, args.out))
        return 0
    if unmeant := [flag for flag in _ONLY_PAIRS if getattr(args, flag[2:].replace("-", "_"))]:
        raise ConfigError(f"{unmeant[0]} is for pairs: give --from-pairs too")
    if missing := [flag for flag in ("--archive", "--inputs") if getattr(args, flag[2:]) is None]:
        raise ConfigError(f"the following arguments are required: {', '.join(missing)} (or --from-pairs, without both)")
    unsaid = ("run", "json", *_ONLY_PAIR_FIELDS, *DECLARATION.values())
    chosen = {key: value for key, value in vars(args).items() if key not in unsaid}
    chosen["declaration"] = declared(args)
    for name, default in (("codes", ("sum",)), ("ks", (2,)), ("vary", None), ("never_code", ())):
        chosen[name] = tuple(chosen[name]) if chosen[name] else default
    side_log = output.SideLog()
    try:
        with output.user_output_aside(side_log):
            report = train(TrainSettings(**chosen))
    except TsParityError as error:
        error.side_log = side_log
        raise
    if side_log.name:
        print(f"ts-parity: what the handler printed and logged is in {side_log.name}", file=sys.stderr)
    print(json.dumps(report, indent=2) if args.json else report_text(report, args.out))
    return 0


_ONLY_PAIRS = ("--from-pairs", "--input", "--output", "--parameters", "--service-time")
_ONLY_PAIR_FIELDS = tuple(flag[2:].replace("-", "_") for flag in _ONLY_PAIRS)


def _pair_settings(args: argparse.Namespace) -> PairSettings:
    """Raise ConfigError for options that are for archives only."""
    known = {field.name: field for field in dataclasses.fields(PairSettings)}
    kept = ("run", "json", "r", *known)
    unmeant = [name for name, value in vars(args).items() if name not in kept and value not in (None, [], ())]
    if args.r != 1:
        unmeant.append("r")
    if args.devices != 1:
        unmeant.append("devices")
    if unmeant:
        flag = {"codes": "code", "ks": "k"}.get(unmeant[0], unmeant[0]).replace("_", "-")
        raise ConfigError(
            f"--{flag} is for training from an archive, and --from-pairs needs none; leave one of them out"
        )
    chosen = {name: value for name, value in vars(args).items() if name in known}
    for name in ("from_pairs", "input", "output"):
        chosen[name] = tuple(chosen[name] or ())
    return PairSettings(**chosen)


def run_report(args: argparse.Namespace) -> int:
    file = args.dir / "report.json"
    try:
        text = file.read_text(encoding="utf-8").rstrip()
        shown = text if args.json else report_text(json.loads(text), args.dir)
    except OSError as error:
        raise TrainingError(
            f"cannot read {file}: {error.strerror}; DIR is the folder given to train as --out"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise TrainingError(f"{file} is not a training report of this version: {error!r}") from None
    print(shown)
    return 0


def report_text(report: dict[str, Any], out: Path) -> str:
    figure = FIGURES[report.get("metric") or "accuracy"]
    lines = []
    if "scored_on" in report:
        groups = f", {report['scored_groups']} groups, every slot erased once" if "from_pairs" not in report else ""
        lines.append(f"scored on {report['scored_on']}{groups}; ± is a 95 % interval")
        lines += _divided(report["split"])
        lines.append(taken_for(report))
    lines += _table(report["candidates"], figure)
    for candidate in report["candidates"]:
        lines += _details(candidate, figure)
    if (default := _overall(report["candidates"][0], figure, "_default")) is not None:
        lines.append(f"  one default answer: {default}")
    lines += _confidence(report["candidates"], figure)
    for beside in report.get("beside", []):
        lines.append(
            f"  for comparison: {beside['code']} k={beside['k']} would lose nothing at a cost of {beside['cost']:.2f}"
        )
    lines += [f"warning: {what}" for what in report.get("warnings", [])]
    lines += [f"not made: {why}" for why in report.get("refused", [])]
    if refused := report.get("refused_bodies"):
        what = "pairs that were left out" if "from_pairs" in report else "bodies the handler refused"
        lines.append(f"{what}: {report['refused_count']}, such as {'; '.join(refused[:3])}")
    lines += ["", report["recommendation"], ""]
    if "archives" in report:
        deployed = out / report["archives"]["deployed"]
        lines.append(f"deployed archive  {deployed} (your own, wrapped: register it in place of yours)")
    lines += [f"protection        {out / name}" for c in report["candidates"] for name in c["archives"]]
    lines.append(f"report page       {out / 'report.html'}")
    return "\n".join(lines)


def _divided(split: dict[str, int]) -> list[str]:
    """How many bodies were learned from, and how many are repeats."""
    told = [f"learned from {split['learn']} bodies; {split['choose']} others chose the best weights"]
    if split["repeated"]:
        told.append(f"{split['repeated']} bodies are repeats: all copies are learned from, one of each is scored")
    if split["scored_repeated"]:
        told.append(f"{split['scored_repeated']} of the scored bodies are repeats")
    return told


def taken_for(report: dict[str, Any]) -> str:
    """What the outputs were taken for, and the flag that overrules it."""
    outputs, metric = report["outputs"], report["metric"]
    figure = FIGURES[metric]
    unit = f", in the outputs' unit (their spread is {report['spread']:.4g})" if figure.error else ""
    return (
        f"outputs taken for {outputs['kind']} ({outputs['why']}), scored by {figure.own}{unit}; --metric says otherwise"
    )


_SHOWN = ("0.01", "0.05", "0.10")


def _table(candidates: list[dict[str, Any]], figure: Figure) -> list[str]:
    letter = "E" if figure.error else "A"
    heads = ["code", "k", "r", f"{letter}_a", f"{letter}_d", "loss", figure.own, "cost", "architecture"]
    return columns([heads, *(_row(candidate, figure, letter) for candidate in candidates)])


def _row(candidate: dict[str, Any], figure: Figure, letter: str) -> list[str]:
    def told(name: str) -> str:
        return figure.format(candidate[name], margin(candidate, name)) if name in candidate else "-"

    lost = margin(candidate, "loss")
    cost = candidate.get("cost")
    return [
        candidate["code"],
        str(candidate["k"]),
        str(candidate["r"]),
        told(f"{letter}_a"),
        told(f"{letter}_d"),
        f"{100 * candidate['loss']:.2f}" + (f" ± {100 * lost:.2f}" if lost else ""),
        told("score"),
        "-" if cost is None else f"{cost:.2f}",
        candidate["architecture"],
    ]


def _overall(candidate: dict[str, Any], figure: Figure, of: str = "") -> str | None:
    name = f"{'E' if figure.error else 'A'}_o{of}"
    if name not in candidate:
        return None
    told = {f: figure.format(candidate[name][f], margin(candidate, name, f)) for f in _SHOWN}
    return ", ".join(f"{value} at f={float(f):.0%}" for f, value in told.items())


def _details(candidate: dict[str, Any], figure: Figure) -> list[str]:
    name = f"{candidate['code']} k={candidate['k']}"
    lines = []
    if (overall := _overall(candidate, figure)) is not None:
        lines.append(f"  {name}: {'E' if figure.error else 'A'}_o, overall: {overall}")
    if candidate["family"] == "parity":
        partial = candidate.get("members", {})
        told = ", ".join(f"{figure.format(one['score'], margin(one, 'score'))} of {m}" for m, one in partial.items())
        lines.append(f"  {name}: {figure.own} in groups by their number of members: {told}")
    if "over_seeds" in candidate:
        lines.append(f"  {name}: {_seeds(candidate, figure)}")
    counted, cost = candidate.get("multiplications"), candidate.get("cost")
    if candidate["code"] != "exact" and counted is not None and cost is not None and cost > 1.25 * counted:
        lines.append(
            f"  {name}: {counted:.2f} deployed inferences by multiplications, {cost:.2f} by the clock: the rest is "
            "what the handler does with each body, and overhead that no smaller network saves"
        )
    if two := candidate.get("two_erased"):
        told = figure.format(two["score"], margin(two, "score"))
        lines.append(f"  {name}: with two slots erased, {figure.own} {told}")
    return lines


def _confidence(candidates: list[dict[str, Any]], figure: Figure) -> list[str]:
    """Agreement if only the surest answers are released."""
    named = [(f"{c['code']} k={c['k']}", c["confidence"]) for c in candidates if "confidence" in c]
    lines = [f"  {name}: no confidence: {told['too_few']}" for name, told in named if "too_few" in told]
    known = [c for c in candidates if "surest" in c.get("confidence", {})]
    if not known:
        return lines
    shares = [each["share"] for each in known[0]["confidence"]["surest"]]
    rows = [["code", "k", "r", "all", *(f"{share:.0%}" for share in shares)], *(_surest(c, figure) for c in known)]
    what = f"{figure.own} of their numbers" if figure.error else "agreement, with its 95 % interval"
    lines.append(f"confidence: if only the surest answers are released, {what}")
    lines += columns(rows)
    lines += [f"  {name}: {_calibrated(told)}" for name, told in named if "surest" in told]
    return [*lines, f"  {NO_GUARD}"]


def _calibrated(told: dict[str, Any]) -> str:
    return (
        f"calibrated on {told['fitted_on']} bodies; of all answers {told['expected']:.2%} were expected to agree and "
        f"{told['agreement']:.2%} did; tenth by tenth the two are {100 * told['off']:.2f} points apart"
    )


def _surest(candidate: dict[str, Any], figure: Figure) -> list[str]:
    told = candidate["confidence"]
    cells = [figure.format(candidate["score"]) if figure.error else _share(told)]
    for each in told["surest"]:
        cells.append("-" if "score" not in each else figure.format(each["score"]) if figure.error else _share(each))
    return [candidate["code"], str(candidate["k"]), str(candidate["r"]), *cells]


def _share(told: dict[str, Any]) -> str:
    low, high = told["agreement_95"]
    return f"{told['agreement']:.2%} ({100 * low:.1f} to {100 * high:.1f})"


def _seeds(candidate: dict[str, Any], figure: Figure) -> str:
    """Mean and spread over all seeds; the figures above are those of the packed one."""
    mean, letter = candidate["over_seeds"], "E" if figure.error else "A"
    names = {f"{letter}_d": f"{letter}_d", "score": figure.own}
    told = [f"{shown} {figure.format(mean[n], mean[f'{n}_spread'])}" for n, shown in names.items() if n in mean]
    seed, seeds = candidate["packed_seed"], candidate["seeds"]
    packed = f"packed is seed {seed}, the best on bodies that are not scored"
    return f"{packed}; mean and spread of {seeds} seeds: {', '.join(told)}"

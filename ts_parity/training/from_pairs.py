"""A student that is learned from recorded pairs, for a model of which there is no archive: one job from start to end.

What the deployed model was asked and has answered is all that is known of it. So nothing is varied, no handler is
asked, and a cost is known only if the user names the deployed model's service time. The report has no bodies: they are
what clients have sent. Knows the order of the steps; what each does stands elsewhere.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ts_parity import __version__, output
from ts_parity.codes import make_code
from ts_parity.errors import TrainingError
from ts_parity.fingerprint import fingerprint
from ts_parity.training import PairSettings
from ts_parity.training.architectures import BUILT_IN, Shapes, folded
from ts_parity.training.calibration import HeldOut, NotCalibrated, cross_validated
from ts_parity.training.candidates import described, progress_bar
from ts_parity.training.devices import device_told, make_fabric
from ts_parity.training.disagreements import RebuiltAnswers, by_class, class_name, who_was_right
from ts_parity.training.evaluate import evaluate, of_packed
from ts_parity.training.fit import Hyperparameters, Progress, TrainingData, fit, run_network
from ts_parity.training.goals import Goal
from ts_parity.training.page import report_page
from ts_parity.training.recommend import MOST_LOSS, SMALL_LOSS, loss, lost_told
from ts_parity.training.recorded import RecordedPairs
from ts_parity.training.scaling import scaled
from ts_parity.training.semantics import OutputSemantics, infer_semantics
from ts_parity.training.served import FlatNetwork, write
from ts_parity.training.sizing import NARROWEST, WIDEST, bound, in_turn, usual, widest, widest_of
from ts_parity.training.split import contents_of, repeated, split
from ts_parity.training.steps import command_of
from ts_parity.wire import Array

CODE = make_code("student", 1)
_WIDEST = 4.0
"""Nothing is known of the deployed model's size, and a student is meant to be small."""
_TIMED = 7
_FOLDS = 5
_ANSWERS = 20


def run(settings: PairSettings, pairs: RecordedPairs) -> dict[str, Any]:
    """See `training.train_from_pairs`."""
    started = time.monotonic()
    name = settings.name or _name(pairs)
    work = settings.out.with_name(f"{settings.out.name}.unfinished")
    with _made_in(work):
        report = _PairsJob(settings, pairs).run(name, work)
        report["seconds"] = round(time.monotonic() - started, 1)
        report["recommendation"] = _recommendation(report)
        (work / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (work / "report.html").write_text(report_page(report, settings.out), encoding="utf-8")
        output.moved(work, settings.out)
    return report


@contextmanager
def _made_in(work: Path) -> Iterator[None]:
    """The folder of the work; gone if it fails. (It takes a minute, so nothing of it is kept.)"""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _name(pairs: RecordedPairs) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", pairs.model.rpartition("/")[0] or "model") + "-student"


class _PairsJob:
    """The stages of a job, and what they share."""

    def __init__(self, settings: PairSettings, pairs: RecordedPairs) -> None:
        self.settings = settings
        self.pairs = pairs
        self.fabric = make_fabric(settings)
        lone = pairs.outputs[0].shape if len(pairs.outputs) == 1 else ()
        self.output = lone or (pairs.said.shape[1],)
        self.inputs = torch.from_numpy(pairs.given)
        self.outputs = pairs.said.reshape(-1, *self.output)
        self.shapes = Shapes((1, pairs.given.shape[1]), (1, *self.output))
        self.semantics = self._meaning()
        hparams = Hyperparameters(steps=settings.steps or Hyperparameters.steps)
        self.hparams = hparams if settings.rate is None else replace(hparams, peak_rate=settings.rate)
        [self.contents] = contents_of(pairs.keys)
        self.parts = split(self.contents, np.random.default_rng(settings.seed))

    def run(self, name: str, work: Path) -> dict[str, Any]:
        settings, pairs, parts = self.settings, self.pairs, self.parts
        architecture, width = self._sized()
        self._tell(architecture, width)
        models = [
            self._trained(architecture, width, seed) for seed in range(settings.seed, settings.seed + settings.seeds)
        ]
        losses = [self._scores(model, parts.choose)["loss"] for model in models]
        packed = losses.index(min(losses))
        scores = of_packed([self._scores(model, parts.score) for model in models], packed)
        model = models[packed]
        network = FlatNetwork(folded(model.network), self.output, self.semantics).cpu().eval()
        made, missing = write(network, pairs, name, work)
        counted = sum(each.numel() for each in network.parameters())
        told = f"{architecture}, width {width:.3g}, {counted:,} parameters"
        version = pairs.model.rpartition("/")
        candidate = {
            **described(CODE, told), **scores, **self._cost(network), "parameters": counted,
            "confidence": self._confidence(model), "packed_seed": settings.seed + packed, "archives": made,
            **self._errors(model),
        }  # fmt: skip
        return {
            "package": __version__,
            "made_at": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            "command": command_of(settings),
            "from_pairs": [str(file) for file in settings.from_pairs],
            "form": {"kind": pairs.kind, "batched": pairs.batched, **_form(pairs)},
            "name": name,
            "deployed": {"model": version[0] or pairs.model, "version": version[2], "weights": None},
            "bodies": len(pairs.keys),
            "pairs": pairs.pairs,
            "seed": settings.seed,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {platform.system()}, threads: {torch.get_num_threads()}",
            "device": device_told(self.fabric.device),
            "hyperparameters": {**asdict(self.hparams), "vary": []},
            "split": {
                "learn": len(parts.learn), "choose": len(parts.choose), "score": len(parts.score),
                "repeated": repeated(self.contents), "scored_repeated": 0, "overlap": 0,
            },
            "scored_on": f"{len(parts.score)} held-out queries",
            "scored_groups": len(parts.score),
            "metric": self.semantics.metric,
            "outputs": {"kind": self.semantics.kind, "why": self.semantics.why},
            **({"spread": scores["spread"]} if "spread" in scores else {}),
            "candidates": [candidate],
            "warnings": [*pairs.warnings],
            "refused": missing,
            "refused_bodies": list(pairs.left_out),
            "refused_count": pairs.left_out_count,
            "hashes": {file: fingerprint(work / file) for file in made if (work / file).is_file()},
        }  # fmt: skip

    def _meaning(self) -> OutputSemantics:
        pairs, metric = self.pairs, self.settings.metric
        if len(pairs.outputs) > 1 and metric is None:
            return replace(infer_semantics("mae", self.outputs, None, list), why="there are several outputs")

        def answers() -> list[bytes]:
            return [json.dumps(each.tolist()).encode() for each in self.outputs[:_ANSWERS]]

        semantics = infer_semantics(metric, self.outputs, None, answers)
        if semantics.numbered:
            raise TrainingError(
                f"{pairs.outputs[0].name or 'the answer'} is the number of a class ({semantics.why}), and a network "
                "would answer with what lies between. Record answers that give scores; if these are quantities, say "
                "--metric mae"
            )
        return semantics

    def _network(self, architecture: str, width: float) -> nn.Module:
        shapes = [each.shape for each in self.pairs.inputs]
        one_input = shapes[0] if architecture != "mlp" else (self.pairs.given.shape[1],)
        network = BUILT_IN[architecture](one_input, self.pairs.said.shape[1], width)
        if architecture != "mlp":
            network = nn.Sequential(nn.Unflatten(1, one_input), network)
        return scaled(network, self.shapes, Goal(CODE), self.semantics, self.inputs, self.outputs)

    def _sized(self) -> tuple[str, float]:
        """-> the architecture and its width. Raise TrainingError."""
        pairs, settings = self.pairs, self.settings
        first = Shapes((1, *pairs.inputs[0].shape), (1, *self.output))
        name, _, own = (settings.architecture or "").partition(":")
        name = name or ("cnn" if len(pairs.inputs) == 1 and first.is_image else "mlp")
        if name not in BUILT_IN or (own and not _is_width(own)):
            raise TrainingError(
                f"--architecture {settings.architecture}: from pairs learn {', '.join(BUILT_IN)}, each with :WIDTH if "
                "wanted"
            )
        if name != "mlp" and not (len(pairs.inputs) == 1 and first.is_image):
            raise TrainingError(
                f"--architecture {name} is for images (1 to 4 channels first), not for {_form(pairs)['inputs']}"
            )
        if own:
            return name, float(own)
        widths = [1.0] if settings.parameters is None and settings.service_time is None else []
        if (most := settings.parameters) is not None:
            found = widest(lambda width: _parameters(self._network(name, width)), most)
            if found is None:
                least = _parameters(self._network(name, NARROWEST))
                raise TrainingError(f"--parameters {most} is too few: the narrowest {name} has {least:,}")
            widths.append(found)
        if settings.service_time is not None:
            widths.append(self._by_the_clock(name, settings.service_time * (settings.budget or 1.0)))
        return name, min(widths)

    def _by_the_clock(self, name: str, most_s: float) -> float:
        widths = [float(width) for width in np.geomspace(NARROWEST, _WIDEST, _TIMED)]
        one, device = self.inputs[:1], torch.device("cpu")
        with torch.no_grad():
            seconds = usual(in_turn([bound(self._network(name, width).eval(), one) for width in widths], device, 20))
        if float(seconds.min()) > most_s:
            raise TrainingError(
                f"--budget: even the narrowest {name} takes {seconds.min() * 1000:.3g} ms here, and "
                f"{most_s * 1000:.3g} ms may be spent; give a larger one"
            )
        return widest_of(widths, seconds, most_s)

    def _trained(self, architecture: str, width: float, seed: int) -> FlatNetwork:
        torch.manual_seed(seed)
        model = FlatNetwork(self._network(architecture, width), self.output, self.semantics)
        data = TrainingData(self.inputs, self.outputs, self.parts.learn, self.parts.choose, None, self.semantics)
        figure = self.semantics.figure
        with progress_bar(self.settings, f"student, seed {seed}", self.hparams.steps, "step") as bar:

            def told(step: int, loss: float, score: float) -> None:
                bar.update(step - bar.n)
                bar.set_postfix_str(f"loss={loss:.3f}, {figure.own}={figure.format(score)}")

            weights = fit(self.fabric, model, data, Goal(CODE), self.hparams, seed, None, Progress(told))
        model.load_state_dict(weights)
        return model.to("cpu").eval()

    def _says(self, model: nn.Module, rows: Array) -> Array:
        """(n, 1, *output)"""
        return run_network(model, self.inputs, rows[:, None], Goal(CODE))[:, None]

    def _scores(self, model: nn.Module, rows: Array) -> dict[str, Any]:
        protections = {1: {0: self._says(model, rows)}}
        return evaluate(
            CODE, self.outputs[rows][:, None], protections, None, self.semantics, self.contents[rows][:, None]
        )

    def _held(self, model: nn.Module, rows: Array) -> HeldOut:
        contents = self.contents[rows][:, None]
        return HeldOut(self.outputs[rows][:, None], {1: {0: self._says(model, rows)}}, None, contents)

    def _confidence(self, model: nn.Module) -> dict[str, Any]:
        """What its answers are worth if only the surest are used; see `calibration`."""
        folds = np.array_split(self.parts.score, _FOLDS)
        if min(map(len, folds)) < 2:
            return {"too_few": f"{len(self.parts.score)} held-out queries are too few to say how sure an answer is"}
        found = cross_validated(
            CODE, [self._held(model, self.parts.choose)], [self._held(model, each) for each in folds], self.semantics
        )
        return {"too_few": found.reason} if isinstance(found, NotCalibrated) else found[1]

    def _errors(self, model: nn.Module) -> dict[str, Any]:
        rows = self.parts.score
        answers = RebuiltAnswers(rows, self._says(model, rows)[:, 0], self.outputs[rows], self.contents[rows], None)
        tables = [*self.pairs.answers.follows.values()]
        names = [str(tables[0].get(str(each), f"class {each}")) for each in range(self.output[-1])] if tables else []
        classes = [{**each, "name": class_name(each["class"], names)} for each in by_class(answers, self.semantics)]
        return {"classes": classes, "differing": who_was_right(answers, self.semantics)}

    def _cost(self, network: nn.Module) -> dict[str, Any]:
        """In deployed inferences, where it is known how long one takes."""
        if self.settings.service_time is None:
            return {}
        with torch.no_grad():
            [seconds] = usual(in_turn([bound(network, self.inputs[:1])], torch.device("cpu")))
        return {"cost": round(float(seconds) / self.settings.service_time, 4)}

    def _tell(self, architecture: str, width: float) -> None:
        if self.settings.progress:
            form = _form(self.pairs)
            print(
                f"pairs: {form['inputs']} -> {form['outputs']}; network: {architecture}, width {width:.3g}",
                file=sys.stderr,
            )
            kind, why = self.semantics.kind, self.semantics.why
            print(f"outputs are taken for {kind} and scored by {self.semantics.metric}: {why}", file=sys.stderr)


def _parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def _is_width(text: str) -> bool:
    return bool(re.fullmatch(r"\d+(\.\d+)?", text)) and 0 < float(text) <= WIDEST


def _form(pairs: RecordedPairs) -> dict[str, str]:
    """For people."""
    return {
        side: ", ".join(f"{each.name or 'the body'} {each.datatype} {list(each.shape)}" for each in tensors)
        for side, tensors in (("inputs", pairs.inputs), ("outputs", pairs.outputs))
    }


def _recommendation(report: dict[str, Any]) -> str:
    [one] = report["candidates"]
    lost = f"the student {lost_told(one)}"
    work = f" and takes {one['cost']:.0%} of a deployed inference's time" if "cost" in one else ""
    if loss(one) > MOST_LOSS:
        return (
            f"Do not use it: {lost}; what loses more than {MOST_LOSS:.0%} is never recommended. Record more pairs "
            f"(these were {report['pairs']:,}), allow more --parameters, or give more --steps."
        )
    more = "" if loss(one) <= SMALL_LOSS else " More pairs, --parameters or --steps may lose less."
    return f"Take it where second copies of late queries are not enough: {lost}{work}.{more}"

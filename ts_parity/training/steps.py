"""What to type next: the commands that put a recommended protection to use, with the archives' real paths.

The instances' addresses are not known yet, so they are names to fill in. Knows the report, and commands.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ts_parity.describe import ProtectedModel
from ts_parity.torchserve.wrapping import protection_name
from ts_parity.training import FOLDERS, PairSettings, TrainSettings
from ts_parity.training.recommend import chosen, named, to_try


@dataclass(frozen=True)
class NextStep:
    """`say`: what the command does, in words. `command` may have several lines."""

    say: str
    command: str


def next_steps(report: Mapping[str, Any], out: Path) -> list[NextStep]:
    """`out`: the folder of the archives."""
    out = out.absolute()
    taken = chosen(report)
    if "from_pairs" in report:
        return _of_pairs(report, taken, out)
    if taken is None:
        return [_again(report), _serve("Until then, its second copies of late queries lose nothing.")]
    if "archives" not in taken:  # `exact`, which was only compared with
        name = protection_name(ProtectedModel(**report["deployed"]), taken["code"], taken["k"])
        return [_plan(out), _package(report, taken, out), *_of_backup(taken, [out / f"{name}.mar"])]
    files = [out / name for name in taken["archives"]]
    if taken["family"] == "parity":
        return [_plan(out), *_of_parity(report, taken, files, out)]
    return [_plan(out), *_of_backup(taken, files)]


def _of_pairs(report: Mapping[str, Any], taken: Mapping[str, Any] | None, out: Path) -> list[NextStep]:
    if taken is None:
        return [_again(report)]
    made, name = taken["archives"], report["name"]
    steps = []
    if f"triton/{name}" in made:
        say = "Triton: copy the student into the model repository, beside the model."
        steps.append(NextStep(say, _line("cp -r", out / "triton" / name, "MODEL_REPOSITORY/")))
    run = _line("python", out / "litserve" / "server.py", "--port", 8001)
    steps.append(NextStep("LitServe: run the student as a server of its own.", run))
    steps.append(NextStep("Then name it in the proxy's configuration (docs/any-server.md).", "ts-parity config init"))
    return steps


def _of_backup(taken: Mapping[str, Any], files: list[Path]) -> list[NextStep]:
    return [
        _copied("Copy the protection into the model store of every instance.", files),
        NextStep(
            f"Register {named(taken)} beside the model on every instance: one --management each.",
            _line("ts-parity register --management http://INSTANCE:8081", *files),
        ),
        _serve("Serve through the proxy: one --endpoint for each instance. It finds the protection by itself."),
        _STATUS,
    ]


def _of_parity(report: Mapping[str, Any], taken: Mapping[str, Any], files: list[Path], out: Path) -> list[NextStep]:
    deployed = out / report["archives"]["deployed"]
    return [
        _copied("Copy the archives into the model stores of the instances that shall run them.", [deployed, *files]),
        NextStep(
            "Your own model, wrapped so that its workers give raw outputs as well, takes the place of yours on every "
            "deployed instance: one --management each.",
            _line("ts-parity register --management http://DEPLOYED:8081 --replace", deployed),
        ),
        *(
            NextStep(
                f"Register {named(taken)} on instances of its own" + (f" (row {row} of the code)." if row else "."),
                _line("ts-parity register --management http://PARITY:8081", file),
            )
            for row, file in enumerate(files)
        ),
        _serve("Serve through the proxy: one --endpoint for each instance, deployed or not."),
        _STATUS,
    ]


_STATUS = NextStep("Watch it prove itself on live queries: first on trial, then in use.", "ts-parity status")


def _again(report: Mapping[str, Any]) -> NextStep:
    tips = ["--steps 8000"] if "from_pairs" in report else to_try(report)
    more = [tip for tip in tips if tip.startswith("--") and "(" not in tip]
    return NextStep("Train again with more.", " ".join([_line(*report["command"]), *more, "--force"]))


def _package(report: Mapping[str, Any], taken: Mapping[str, Any], out: Path) -> NextStep:
    words = (
        "--archive",
        Path(report["archive"]).absolute(),
        "--role",
        "parity",
        "--code",
        "exact",
        "--k",
        taken["k"],
        "--out",
        out,
    )
    return NextStep(f"Package {named(taken)}. It needs no training.", _line("ts-parity package", *words))


def _copied(say: str, files: list[Path]) -> NextStep:
    return NextStep(say, _line("cp", *files, "MODEL_STORE/"))


def _serve(say: str) -> NextStep:
    return NextStep(say, "ts-parity serve --endpoint http://INSTANCE:8080")


def _plan(out: Path) -> NextStep:
    return NextStep(
        "First see whether it is worth it for your traffic. LOG is an access log, or a table of how long your model's "
        "answers take; RATE is in queries per second; N is the number of instances.",
        _line("ts-parity plan --service-log LOG --rate RATE --workers N --report", out),
    )


def _line(start: object, *more: object) -> str:
    return " ".join([str(start), *(shlex.quote(str(word)) for word in more)])


_FLAGS = {"codes": "code", "ks": "k", "declaration": ""}
_DECLARED = {"input": "model-input", "output": "model-output"}
_UNSAID = ("progress", "force", "secret")
"""A secret is not for a page; the others make no difference to what is made."""


def command_of(settings: TrainSettings | PairSettings) -> list[str]:
    """The command line that asks for this, in whatever folder it is typed."""
    words = ["ts-parity", "train"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _UNSAID and value not in (field.default, None, (), {}):
            words += _flags(_FLAGS.get(field.name, field.name.replace("_", "-")), value)
    return words


def _flags(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for part, told in value.items():
            yield from _flags(str(_DECLARED.get(part, part)), told)
        return
    for each in value if isinstance(value, tuple) else (value,):
        yield from (f"--{name}", f"{each:g}" if isinstance(each, float) else _anywhere(each))


def _anywhere(value: object) -> str:
    """A path, or `--architecture FILE.py:FUNCTION`, from the root on."""
    file, colon, function = str(value).partition(":")
    if (isinstance(value, Path) and str(value) != FOLDERS) or (colon and file.endswith(".py")):
        return f"{Path(file).absolute()}{colon}{function}"
    return str(value)

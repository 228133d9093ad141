"""A hundred and more wrong command lines: each gets one line that names what is wrong, and its kind's exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_archive
from ts_parity import errors
from ts_parity.arguments import Parser, subcommands
from ts_parity.cli import build_parser, main
from ts_parity.errors import EXIT_CODES

ROOT = Path(__file__).parents[1]


def cases() -> Iterator[tuple[int, str, str]]:
    for line in Path(__file__).with_name("wrong_command_lines.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            code, told, words = (part.strip() for part in line.split("|"))
            yield int(code), told, words


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """A port that is in use, and one of a web server that is neither a proxy nor TorchServe."""

    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = HTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        yield {"{busy}": str(busy.getsockname()[1]), "{web}": str(web.server_port)}
    web.shutdown()
    web.server_close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command lines are given, and a temporary folder of their own."""
    folder = tmp_path / "here"
    for name in ("bodies/a.json", "bodies/b.json", "bodies/c.json", "old/report.html", "plain.txt", "empty.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if name == "empty.txt" else "{}")
    (folder / "empty").mkdir()
    write_archive(folder / "tiny.mar")
    (folder / "cut.mar").write_bytes((folder / "tiny.mar").read_bytes()[:-40])
    with zipfile.ZipFile(folder / "nameless.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "x"}}')
    with zipfile.ZipFile(folder / "bodies.zip", "w") as archive:
        archive.writestr("a.json", "{}")
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((30, 4, 4)))
    (folder / "set.npz").write_bytes(buffer.getvalue())
    (folder / "broken.npz").write_bytes(buffer.getvalue()[:-50])
    for name, text in {
        "half.json": '{"inference": ',
        "pairs.jsonl": '{"ts_parity_pairs": 1}\n',
        "half.jsonl": '{"a": 1}\n{"a": \n',
        "ca.pem": "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n",
        "fleet.toml": "deadline = 2\n",
        "words.txt": "0.5\nsoon\n",
        "nan.csv": "seconds\n0.5\nnan\n",
        "log.csv": "0.02\n" * 50,
        "wrong-report/report.json": '{"candidates": [{}]}',
        "list-report/report.json": "[1, 2]",
        "deep-report/report.json": "[" * 100_000,
        "odd-report/report.json": '{"candidates": [{"code": "student", "family": "backup", "k": 2, "r": 1, "cost": 0.2,'
        ' "loss": 0.0, "archives": 5}]}',
        "deep.jsonl": "[" * 100_000,
        "deep.toml": "port = " + "[" * 100_000,
        "digits.toml": "port = " + "9" * 5000,
        "key.json": '{"inference": {"key": ""}}',
        "old-report/report.json": "{not json",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "lost").symlink_to("nowhere")
    (folder / "latin.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def no_proxy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gets as far as serving was given a command line that should have been refused."""

    def accepted(*_: object) -> None:
        raise AssertionError("it serves")

    monkeypatch.setattr("ts_parity.proxy.commands._announce", accepted)
    # These change the process, which is the tests' own.
    monkeypatch.setattr("ts_parity.proxy.app.use_uvloop", lambda: None)
    monkeypatch.setattr("ts_parity.proxy.http.descriptors.raise_limit", lambda: None)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("logging.Logger.setLevel", lambda *_: None)


def all_files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


@pytest.mark.parametrize(("code", "told", "line"), list(cases()), ids=lambda value: str(value)[:60])
def test_a_wrong_command_line(
    code: int, told: str, line: str, here: Path, ports: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, port in ports.items():
        told, line = told.replace(name, port), line.replace(name, port)
    before = all_files(here.parent)
    ended = main(shlex.split(line))
    said = capsys.readouterr()
    assert ended == code, said.err
    assert told in said.err
    assert said.err.startswith("ts-parity: ")
    assert said.err.count("\n") == 1, "one line"
    assert "Traceback" not in said.err
    assert not said.out
    assert all_files(here.parent) == before, "nothing is left behind"


ANSWERS = {
    "not HTTP": b"garbage\r\n\r\n",
    "nothing": b"",
    "half": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    "elsewhere, for ever": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    **{
        body[:20].decode("latin-1"): b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
        for body in (
            b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 100_000, b"\xff\x00", b"<html>", b'{"models": "ab"}',
            b'{"models": null, "pools": null}', b'{"models": [3], "pools": {"m": 3}}',
            b'{"models": [{"modelName": "m"}], "pools": {"m": {"endpoints": 3}}, "nextPageToken": null}',
            b'{"status": "alive"}', b"x" * (5 << 20),
        )
    },
}  # fmt: skip
"""Of programs that are not the one that was meant."""


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that says `request.param` whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(request.param)
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(1 << 16)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("stranger", ANSWERS.values(), ids=[*ANSWERS], indirect=True)
def test_whoever_answers_is_told_in_a_line(stranger: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        f"status --admin {stranger}",
        f"status --admin {stranger} --json",
        f"drain --admin {stranger}",
        f"reload --admin {stranger}",
        f"plan --service-log log.csv --rate 5 --admin {stranger}",
        f"register --management {stranger} there.mar",
        f"unregister --management {stranger} m",
    ):
        ended = main(shlex.split(line))
        said = capsys.readouterr()
        assert (ended, said.err.count("\n"), said.out) == (3, 1, ""), (line, said)
        assert stranger in said.err
        assert "fault of ts_parity" not in said.err


def test_a_proxy_for_the_world_outside_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ports: dict[str, str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert main(["status", "--admin", f"http://127.0.0.1:{ports['{web}']}"]) == 3
    assert "404" in capsys.readouterr().err


def test_there_are_a_hundred_of_them_and_every_command_has_some() -> None:
    lines = [shlex.split(line)[:1] for _, _, line in cases()]
    assert len(lines) >= 100
    for command in subcommands(build_parser()):
        assert lines.count([command]) >= 2, command


def commands() -> dict[str, Parser]:
    """By what is typed, such as `config check`."""
    found = {}
    for name, parser in subcommands(build_parser()).items():
        found[name] = parser
        found |= {f"{name} {below}": each for below, each in subcommands(parser).items()}
    return found


@pytest.mark.parametrize("command", commands())
def test_help(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples come first, their options exist, options are in groups, and every default is told."""
    monkeypatch.setenv("COLUMNS", "80")
    parser = commands()[command]
    text = parser.format_help()
    examples, _, options = text.partition("\nexamples:\n")[2].partition("\n\n")
    for line in examples.splitlines():
        assert line.startswith((f"  ts-parity {command}", "      --"))
        for word in shlex.split(line.rstrip("\\")):
            assert not word.startswith("--") or word in parser._option_string_actions
    assert len(parser._actions) < 5 or "\noptions:\n" not in f"\n{options}", "each option is in a group with a title"
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, [], argparse.SUPPRESS) and action.default is not False:
            told = " ".join(options.partition(f"\n  {action.option_strings[-1]} ")[2].split("\n  --")[0].split())
            assert str(action.default) in told, action.dest
    assert "Exit codes: 0 done, 1 failed, 2 wrong input, 3 something outside, 4 out of reach" in " ".join(text.split())


def test_serve_has_two_screens_of_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert commands()["serve"].format_help().count("\n") <= 2 * 40


def test_exit_codes_are_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    helped = " ".join(build_parser().format_help().split())
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in text
        assert f"{code} {meaning}" in helped
    codes = {name: each.exit_code for name, each in vars(errors).items() if hasattr(each, "exit_code")}
    assert set(codes.values()) <= set(EXIT_CODES)
    assert codes["ConfigError"] == codes["ArchiveError"] == codes["TrainingError"] == 2


@pytest.mark.parametrize("told", [None, "ACTIVE"])
def test_torchs_threads_sleep_while_they_wait_unless_told(told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that spins keeps the core from the one it waits for: minutes instead of seconds on a busy machine."""
    monkeypatch.setenv("OMP_WAIT_POLICY", told or "")
    if told is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["plan"]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == (told or "PASSIVE")


NO_TORCH = "raise ImportError('torch was imported')\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "train --help",
        "train --archive no.mar --inputs bodies --out made",
        "train --archive tiny.mar --inputs bodies --out made",
        "train --archive plain.txt --inputs bodies --out made",
        "train --archive tiny.mar --inputs bodies --out made --code exact --labels plain.txt",
        "train --archive tiny.mar --inputs bodies --out made --device gpu",
        "train --from-pairs pairs.jsonl --out made",
        "package --archive no.mar --out made",
        "report no",
        "demo --example no",
        "plan --service-log no.csv",
    ],
)
def test_what_is_wrong_is_found_before_torch_is_imported(line: str, here: Path) -> None:
    (here / "torch.py").write_text(NO_TORCH)
    environment = {**os.environ, "PYTHONPATH": f"{here}:{ROOT}"}
    command = [sys.executable, "-m", "ts_parity.cli", *shlex.split(line)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "torch was imported" not in ran.stderr
    assert ran.returncode == (0 if "--help" in line else 2), ran.stderr


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("TS_PARITY_PROT", "80", "unknown setting 'prot'; did you mean 'port'?"),
        ("TS_PARITY_PORT", "http", "port must be a whole number"),
        ("TS_PARITY_DEADLINE_S", "nan", "deadline_s must be a number"),
        ("TS_PARITY_ENDPOINTS", "http://h:1 nonsense", "must be like http://HOST:PORT"),
        ("TS_PARITY_MODELS", "m,repeatable=perhaps", "repeatable must be true or false"),
    ],
)
def test_a_wrong_variable(
    variable: str, text: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, text)
    assert main(["serve", "--endpoint", "http://h:1"][: 1 if "ENDPOINTS" in variable else 3]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


HANDLER = """
import json, logging, torch
{load}
class Handler:
    initialized = False
    def initialize(self, context):
        self.model = torch.nn.Linear(3, 4)
        self.initialized = True
    def handle(self, data, context):
        print("hello from the handler")
        {run}
        with torch.no_grad():
            return self.model(torch.tensor([row["body"] for row in data])).tolist()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "run", "told", "kept"),
    [
        ("raise ValueError('odd\\nand long')", "", "could not be loaded: ValueError: odd (more in", "and long"),
        ("import no_such_module", "", "No module named 'no_such_module'", "Traceback"),
        ("raise SystemExit(5)", "", "RuntimeError: it called sys.exit(5)", "Traceback"),
        ("", "raise KeyError('each')", "the handler refused", "raise KeyError('each')"),
        ("", "logging.getLogger('x').error('logged'); return 5", "the handler refused", "logged"),
    ],
)
def test_what_a_users_handler_says_goes_to_a_file(
    load: str, run: str, told: str, kept: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tracebacks, what it logs, and what it prints: standard output is for the report, as JSON perhaps."""
    write_archive(here / "odd.mar", HANDLER.format(load=load, run=run or "pass"))
    for number in range(20):
        (here / "bodies" / f"{number}.json").write_text("[1.0, 2.0, 3.0]")
    assert main(shlex.split("train --archive odd.mar --inputs bodies --out made --code student --steps 2 --json")) == 2
    said = capsys.readouterr()
    assert not said.out
    [line] = [line for line in said.err.splitlines() if line.startswith("ts-parity: ")]
    assert told in line
    assert "Traceback" not in said.err
    [file] = (here.parent / "tmp").glob("ts-parity-*.log")
    assert line.endswith(f" (more in {file})")
    assert kept in file.read_text()
    assert ("hello from the handler" in file.read_text()) is not bool(load)
    assert {"made", "made.unfinished"}.isdisjoint(all_files(here))


@pytest.mark.slow
def test_a_fault_of_ours_goes_to_a_file_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("ts_parity.torchserve.archive.wrap_deployed", broken)
    assert main(["package", "--archive", "tiny.mar", "--out", "made"]) == 1
    said = capsys.readouterr().err
    assert "a fault of ts_parity" in said
    assert "please report it: ZeroDivisionError: ours (more in " in said
    [file] = (here.parent / "tmp").glob("ts-parity-*.log")
    assert 'raise ZeroDivisionError("ours")' in file.read_text()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "there"), 2, "'there': Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "there"), 2, "'there': Read-only file system"),
        (MemoryError(), 3, "there is not enough memory"),
        (ModuleNotFoundError("no", name="torch"), 3, "this command needs torch: pip install 'ts-parity[training]'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_machine_lacks(
    error: BaseException,
    code: int,
    told: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ts_parity.torchserve.archive.wrap_deployed", lacking)
    assert main(["package", "--archive", "tiny.mar", "--out", "made"]) == code
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == bool(told)

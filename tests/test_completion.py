"""Completion scripts: what a shell offers is what the parsers take. Bash runs ours for real."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ts_parity.arguments import subcommands
from ts_parity.cli import build_parser, main
from ts_parity.completion import bash_script, zsh_script

BASH = shutil.which("bash") or ""
ZSH = shutil.which("zsh") or ""


def offered(line: str) -> list[str]:
    """What bash offers for the last word of `line`; its words are those that bash makes of it."""
    words = line.split(" ")
    asked = (
        f"{bash_script(build_parser())}\n"
        f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}\n"
        "_ts_parity\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run([BASH, "--norc"], input=asked, capture_output=True, text=True, timeout=500)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split()


@pytest.mark.skipif(not BASH, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ts-parity se", ["serve"]),
        ("ts-parity config ", ["check", "show", "schema", "init"]),
        ("ts-parity config init --pro", ["--profile"]),
        ("ts-parity config init --profile ", ["plain", "student", "proxies"]),
        ("ts-parity config init --profile = s", ["student"]),
        ("ts-parity serve --protect = ex", ["exact-only"]),
        ("ts-parity serve --vouch ", ["true", "false"]),
        ("ts-parity serve --endpoint http://h:1 --max-w", ["--max-waiting", "--max-wait-s"]),
        ("ts-parity serve --reconstruct-after-s =", ["auto"]),
        ("ts-parity completion z", ["zsh"]),
        ("ts-parity serve --config ", []),
        ("ts-parity serve --port ", []),
    ],
)
@pytest.mark.slow
def test_bash_offers(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


@pytest.mark.skipif(not BASH, reason="there is no bash")
@pytest.mark.slow
def test_bash_offers_every_command_and_every_option_of_each() -> None:
    commands = subcommands(build_parser())
    assert offered("ts-parity ") == [*commands]
    for name, parser in commands.items():
        shown = [
            flag for flag in parser._option_string_actions if parser._option_string_actions[flag].help != "==SUPPRESS=="
        ]
        assert sorted(offered(f"ts-parity {name} -")) == sorted(shown)


def test_zsh_knows_every_option_and_its_words() -> None:
    script = zsh_script(build_parser())
    assert script.startswith("#compdef ts-parity\n")
    for name, parser in subcommands(build_parser()).items():
        body = script.partition(f"\n_ts_parity_{name}() {{\n")[2].partition("\n}\n")[0]
        for flag, action in parser._option_string_actions.items():
            assert (f"{flag}[" in body or f"{flag}=[" in body) is (action.help != "==SUPPRESS=="), flag
    assert "(auto exact-only off sum concat student)" in script
    assert "(plain student proxies)" in script


@pytest.mark.skipif(not ZSH, reason="there is no zsh")
@pytest.mark.slow
def test_zsh_reads_the_script(tmp_path: Path) -> None:
    file = tmp_path / "_ts-parity"
    file.write_text(zsh_script(build_parser()))
    subprocess.run([ZSH, "-n", str(file)], check=True, timeout=500)


def test_the_command_prints_either(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, script in (("bash", bash_script), ("zsh", zsh_script)):
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == script(build_parser())


READING = (
    "demo", "simulate", "plan", "bench", "train", "report", "register", "unregister", "status", "top",
    "record", "reload", "doctor",
)  # fmt: skip


def test_every_command_that_reads_prints_json_if_asked() -> None:
    """The others act and have nothing to tell (serve, drain, package), or print what is no table (completion)."""
    commands = subcommands(build_parser())
    reading = {name: commands[name] for name in READING}
    reading |= {name: subcommands(commands["config"])[name] for name in ("check", "show")}
    assert {*commands} - {*READING} == {"serve", "drain", "package", "config", "completion"}
    assert [name for name, parser in reading.items() if "--json" not in parser._option_string_actions] == []


def test_top_prints_the_status_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status = {"state": "serving"}
    monkeypatch.setattr("ts_parity.admin_client.ask", lambda url: status)
    monkeypatch.setattr("ts_parity.proxy.operations.top.screen", lambda *_: "a screen")
    assert main(["top", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status

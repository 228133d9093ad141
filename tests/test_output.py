"""What is there is overwritten only when asked, by whatever command; what fails half-way leaves nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ts_parity.cli import main
from ts_parity.errors import ConfigError
from ts_parity.output import check_free, moved, written

MakeArchive = Callable[..., Path]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        ["package", "--archive", "{archive}", "--out", "{taken}"],
        ["package", "--archive", "{archive}", "--out", "{folder}", "--name", "taken"],
        ["package", "--archive", "{archive}", "--out", "{archive}"],
        ["package", "--archive", "{archive}", "--role", "parity", "--code", "exact", "--k", "2", "--out", "{taken}"],
        ["train", "--archive", "{archive}", "--inputs", "{folder}", "--code", "exact", "--out", "{folder}"],
        ["simulate", "--plot", "{plot}"],
        ["plan", "--service-log", "{taken}", "--workers", "2", "--rate", "1", "--html", "{taken}"],
        ["demo", "--out", "{folder}"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_no_command_overwrites_unless_forced(
    words: list[str], make_archive: MakeArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    taken = folder / "taken.mar"
    plot = folder / "taken.png"
    for file in (taken, plot):
        file.write_bytes(b"precious")
    names = {"archive": make_archive(), "taken": taken, "plot": plot, "folder": folder}
    before = files(tmp_path)
    assert main([word.format(**names) for word in words]) == 2
    told = capsys.readouterr().err
    assert "is there already; give another, or --force to replace it" in told
    assert told.count("\n") == 1
    assert files(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("forced", [[], ["--force"]])
def test_a_device_is_written_to_and_never_replaced(
    forced: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("0.02\n" * 50)
    words = ["plan", "--service-log", str(log), "--workers", "2", "--rate", "5", "--queries", "50", "--seeds", "1"]
    assert main([*words, "--html", "/dev/null", *forced]) == 0
    capsys.readouterr()
    assert main([*words, "--html", "/dev/full", *forced]) == 3
    assert "ts-parity: cannot write /dev/full: No space left on device\n" in capsys.readouterr().err
    for device in ("/dev/null", "/dev/full"):
        assert Path(device).is_char_device()


def test_forced_it_is_replaced(make_archive: MakeArchive, tmp_path: Path) -> None:
    taken = tmp_path / "out.mar"
    taken.write_bytes(b"old")
    assert main(["package", "--archive", str(make_archive()), "--out", str(taken), "--force"]) == 0
    assert taken.read_bytes().startswith(b"PK")


def test_a_dangling_link_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is there already"):
        check_free(tmp_path / "link", force=False)
    check_free(tmp_path / "link", force=True)
    check_free(None, force=False)


def test_what_fails_half_way_leaves_what_was(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "page.html"
    for text in ("first", None):
        try:
            with written(target) as unfinished:
                unfinished.write_text(text or "half")
                if text is None:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert files(tmp_path) == {"deep/page.html": b"first"}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for path, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "page.html", r"cannot write .*file is no folder"),
    ):
        with pytest.raises(ConfigError, match=said), written(path) as unfinished:
            unfinished.write_text("text")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigError, match=r"cannot write .*Permission denied"), written(tmp_path / "x") as file:
            file.write_text("text")


def test_an_error_of_something_else_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written(tmp_path / "page.html"):
        (tmp_path / "nowhere").read_text()


@pytest.mark.parametrize("there", ["nothing", "folder", "file", "link"])
def test_a_finished_folder_takes_the_place_of_what_is_there(there: str, tmp_path: Path) -> None:
    made, out, other = tmp_path / "made", tmp_path / "out", tmp_path / "other"
    for folder in (made, other, out) if there == "folder" else (made, other):
        folder.mkdir()
        (folder / folder.name).write_text("")
    if there == "file":
        out.write_text("")
    elif there == "link":
        out.symlink_to(other)
    moved(made, out)
    assert [path.name for path in out.iterdir()] == ["made"]
    assert [path.name for path in other.iterdir()] == ["other"]


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_free(tmp_path / "out", force=False)
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(ConfigError, match="is there already"):
        check_free(tmp_path / "out", force=False)

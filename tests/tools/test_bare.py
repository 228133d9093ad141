"""A wheel in an empty environment without a compiler: in plain Python, or as `make test-compiled` has compiled it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tools import bare, release

ROOT = Path(__file__).parents[2]
COMPILED = [*(ROOT / "wheel").glob("*.whl")]
OPERATORS_FILES = {"alerts.yml", "grafana-dashboard.json", "prometheus.yml"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return COMPILED[0] if COMPILED else built(tmp_path_factory.mktemp("wheel"))


def built(folder: Path, **environment: str) -> Path:
    """The wheel in plain Python."""
    # What building leaves behind stays out of the work tree.
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "monitoring", "ts_parity"):
        (source / name).symlink_to(ROOT / name)
    code = "import setuptools.build_meta; setuptools.build_meta.build_wheel('..')"
    environment = {"TS_PARITY_COMPILE": "0", "PATH": "/usr/bin:/bin", **environment}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=source, env=environment, stdout=subprocess.DEVNULL, check=True, umask=release.UMASK)
    (made,) = folder.glob("*.whl")
    return made


def test_the_same_files_make_the_same_wheel(tmp_path: Path) -> None:
    """Built in another folder, at another time; a release says how old its files are."""
    one, two = ((tmp_path / name) for name in ("one", "another"))
    for folder in (one, two):
        folder.mkdir()
    first, second = built(one, **release.settled(1_800_000_000)), built(two, **release.settled(1_800_000_000))
    assert first.read_bytes() == second.read_bytes()
    assert {each.date_time[:1] for each in zipfile.ZipFile(first).infolist()} == {(2027,)}


@pytest.mark.long
def test_commands_and_a_query_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    borrowed = (sysconfig.get_path("purelib"),)
    environment = bare.BareEnvironment(sys.executable, tmp_path / "bare", wheel, borrowed=borrowed)
    bare.check(environment, wheel, compiled=bool(COMPILED))
    with pytest.raises(SystemExit, match=r"ts_parity.wire compiled: "):
        bare.check(environment, wheel, compiled=not COMPILED)
    with pytest.raises(FileNotFoundError):
        environment.run("cc")


def test_the_wheel_has_every_module_and_what_lies_beside_them(wheel: Path) -> None:
    package = ROOT / "ts_parity"
    files = {str(file.relative_to(ROOT)) for file in package.rglob("*") if file.suffix in (".py", ".html", ".typed")}
    held = zipfile.ZipFile(wheel).namelist()
    assert files - set(held) == set()
    assert {Path(name).name for name in held if "/share/ts-parity/monitoring/" in name} == OPERATORS_FILES
    assert bare.foreign(wheel, str(ROOT)) == []


def test_foreign_files_are_found(tmp_path: Path) -> None:
    wheel = tmp_path / "ts_parity-1.0-py3-none-any.whl"
    own = [
        "ts_parity/a.py",
        "ts_parity-1.0.dist-info/RECORD",
        "ts_parity-1.0.data/data/share/ts-parity/alerts.yml",
        "0f__mypyc.x.so",
    ]
    with zipfile.ZipFile(wheel, "w") as files:
        for name in [*own, "tests/test_a.py", "ts_parity.libs/libc.so"]:
            files.writestr(name, "")
        files.writestr("ts_parity-1.0.data/", "")  # as auditwheel does
        files.writestr("ts_parity/b.so", "\0/home/me/python/lib\0")
    assert bare.foreign(wheel, "/home/you", "/home/me/python/lib") == [
        "tests/test_a.py",
        "ts_parity.libs/libc.so",
        "ts_parity/b.so",
    ]

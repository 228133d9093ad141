"""A wheel in an empty environment without a compiler: in plain Python, or as `make test-compiled` has compiled it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tools import bare

ROOT = Path(__file__).parents[2]
COMPILED = [*(ROOT / "wheel").glob("*.whl")]
OPERATORS_FILES = {"alerts.yml", "grafana-dashboard.json", "prometheus.yml"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILED:
        return COMPILED[0]
    folder = tmp_path_factory.mktemp("wheel")
    # What building leaves behind stays out of the work tree.
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "monitoring", "ts_parity"):
        (source / name).symlink_to(ROOT / name)
    code = "import setuptools.build_meta; setuptools.build_meta.build_wheel('..')"
    environment = {"TS_PARITY_COMPILE": "0", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, stdout=subprocess.DEVNULL, check=True)
    (made,) = folder.glob("*.whl")
    return made


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

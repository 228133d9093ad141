"""What is a release, and that the workflow that publishes it runs what there is."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import release

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
GIT = ("git", "-c", "user.name=tests", "-c", "user.email=tests@localhost")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Version 1.2.0, all committed."""
    (tmp_path / "ts_parity").mkdir()
    (tmp_path / "ts_parity/__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2026-11-28)\n\n- new\n\n## 1.1.0\n\n- old\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*GIT, *command], cwd=tmp_path, check=True)
    return tmp_path


def test_what_is_committed_and_named_is_a_release(repository: Path) -> None:
    assert release.refusals(repository) == release.refusals(repository, "v1.2.0") == []


@pytest.mark.parametrize("file", ["ts_parity/__init__.py", "new.py"])
def test_a_dirty_tree_is_refused(repository: Path, file: str) -> None:
    with (repository / file).open("a") as text:
        text.write("\n")
    (reason,) = release.refusals(repository)
    assert file in reason


@pytest.mark.parametrize(
    ("headings", "reason"),
    [
        ("## Unreleased\n\n## 1.1.0\n", "CHANGELOG.md has no heading `## 1.2.0`"),
        ("## Unreleased\n\n## 1.2.0\n", "CHANGELOG.md says Unreleased above 1.2.0"),
        ("## 1.3.0\n\n## 1.2.0\n", "CHANGELOG.md says 1.3.0 above 1.2.0"),
    ],
)
def test_a_version_that_the_changelog_does_not_head_is_refused(repository: Path, headings: str, reason: str) -> None:
    (repository / "CHANGELOG.md").write_text(headings)
    subprocess.run([*GIT, "commit", "-qam", "headings"], cwd=repository, check=True)
    (found,) = release.refusals(repository)
    assert found.startswith(reason)


def test_another_versions_tag_is_refused(repository: Path) -> None:
    assert release.refusals(repository, "v1.1.0") == ["the tag v1.1.0 is not v1.2.0"]


def test_an_interpreter_is_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim of pyenv may only say that there is none."""
    number = "{}.{}".format(*sys.version_info)
    (tmp_path / "shims").mkdir()
    shim = tmp_path / f"shims/python{number}"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert release.interpreter(number) is None
    there = tmp_path / f"versions/{number}.7/bin/python"
    there.parent.mkdir(parents=True)
    there.symlink_to(sys.executable)
    assert release.interpreter(number) == str(there)
    shim.unlink()
    shim.symlink_to(sys.executable)
    assert release.interpreter(number) == str(shim), "pip takes no bare name"


def test_a_python_that_is_not_here_is_named_and_one_that_is_not_supported_too() -> None:
    assert release.missing({"3.10": "/usr/bin/python3.10"}) == []
    assert release.missing({"3.10": None, "3.11": "/usr/bin/python3.11", "3.9": "/usr/bin/python3.9"}) == [
        "--pythons: 3.10, 3.11, 3.12 are those that there are, not 3.9",
        "there is no Python 3.10 here; --pythons leaves it out",
    ]


def test_a_tree_that_is_no_release_makes_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(release, "refusals", lambda root, tag: [])
    monkeypatch.setattr(release, "interpreter", lambda number: None)
    monkeypatch.setattr(sys, "argv", ["release.py", "--pythons", "3.12", "--out", str(tmp_path / "dist")])
    with pytest.raises(SystemExit, match=r"^no release:\n- there is no Python 3\.12 here"):
        release.main()
    assert list(tmp_path.iterdir()) == []


def test_a_source_archive_is_the_same_whoever_packs_it_and_when(tmp_path: Path) -> None:
    made = []
    for at, mode in ((1_700_000_000, 0o664), (1_750_000_000.5, 0o600)):
        folder = tmp_path / str(at) / "ts_parity-1.2.0"
        folder.mkdir(parents=True)
        (folder / "setup.py").write_text("pass\n")
        (folder / "setup.py").chmod(mode)
        os.utime(folder / "setup.py", (at, at))
        archive = folder.with_suffix(".tar.gz")
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(folder, folder.name)
        made.append(archive)
    assert made[0].read_bytes() != made[1].read_bytes()
    for archive in made:
        release.repack(archive, 1_800_000_000)
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[1]) as packed:
        folder, file = packed.getmembers()
        assert (folder.isdir(), folder.mode, file.mode, file.mtime) == (True, 0o755, 0o644, 1_800_000_000)
        content = packed.extractfile(file)
        assert content is not None
        assert content.read() == b"pass\n"


def test_the_links_of_the_readme_lead_to_the_repository() -> None:
    readme = "[a](docs/a.md#f) ![b: c](docs/b.png) [d](https://example.org/) [e](#f)"
    home = "https://example.org/us/ts"
    assert release.with_links_home(readme, home, "v1.2.0") == (
        f"[a]({home}/blob/v1.2.0/docs/a.md#f) ![b: c]({home}/raw/v1.2.0/docs/b.png) [d](https://example.org/) [e](#f)"
    )
    whole = release.with_links_home((ROOT / "README.md").read_text(), home, "v1.2.0")
    targets = re.findall(r"\]\(([^)\s]+)\)", whole)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []


def test_the_bill_is_about_the_package_and_says_nothing_of_this_machine() -> None:
    path = {"type": "distribution", "url": "file:///tmp/made/ts_parity-1.2.0-py3-none-any.whl"}
    own = {"bom-ref": "ts-parity==1.2.0", "name": "ts-parity", "version": "1.2.0", "externalReferences": [path]}
    numpy = {"bom-ref": "numpy==2.0", "name": "numpy", "version": "2.0"}
    bill = {"metadata": {"timestamp": "2026"}, "components": [numpy, own], "dependencies": ["kept"]}
    subject = {
        "bom-ref": "ts-parity==1.2.0",
        "name": "ts-parity",
        "version": "1.2.0",
        "purl": "pkg:pypi/ts-parity@1.2.0",
    }
    assert release.about(bill, "ts-parity") == {
        "metadata": {"timestamp": "2026", "component": subject},
        "components": [numpy],
        "dependencies": ["kept"],
    }


def test_checksums_are_those_that_sha256sum_reads(tmp_path: Path) -> None:
    for name in ("b.whl", "a.tar.gz"):
        (tmp_path / name).write_text(name)
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in ("a.tar.gz", "b.whl")]
    assert release.checksums(tmp_path) == "".join(lines)


def test_the_version_is_said_once_and_the_pythons_are_those_of_setup_py() -> None:
    setup = (ROOT / "setup.py").read_text()
    assert release.version(ROOT) not in setup
    (named,) = re.findall(r"Python :: .* for number in (\(.*?\))", setup)
    assert named == str(release.PYTHONS).replace("'", '"')


# ---- the workflow ----------------------------------------------------------------------------------------------------


def words(step: dict[str, Any]) -> list[list[str]]:
    """The commands of a step."""
    return [shlex.split(command) for command in re.split(r"&&|\n", step.get("run", "")) if command.strip()]


def test_it_runs_targets_of_make_with_options_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [command[1] for step in STEPS for command in words(step) if command[0] == "make"]
    assert made == ["test", "test-long", "test-compiled", "release"]
    assert set(made) <= targets
    (arguments,) = re.findall(r'ARGS="(.*?)"', str(STEPS))
    options = subprocess.run([sys.executable, ROOT / "tools/release.py", "--help"], capture_output=True, text=True)
    assert arguments == "--tag $GITHUB_REF_NAME --home $GITHUB_SERVER_URL/$GITHUB_REPOSITORY"
    assert set(re.findall(r"--\w+", arguments)) <= set(re.findall(r"--\w+", options.stdout))
    others = {command[0] for step in STEPS for command in words(step)} - {"make"}
    assert others == {"git", "cd", "sha256sum", "mkdir", "cp", "gh"}


def test_a_tag_publishes_once_everything_is_tested_and_built() -> None:
    assert WORKFLOW[True] == {"push": {"tags": ["v*"]}}  # YAML takes `on` for a truth
    assert WORKFLOW["jobs"].keys() == {"test", "build", "publish"}
    assert WORKFLOW["jobs"]["publish"]["needs"] == ["test", "build"]
    uploaded = [step["with"] for step in STEPS if "upload-artifact" in step.get("uses", "")]
    fetched = [step["with"] for step in STEPS if "download-artifact" in step.get("uses", "")]
    assert [(each["name"], each["path"]) for each in (*uploaded, *fetched)] == [("dist", "dist/")] * 2


def test_only_the_job_that_publishes_may_write_and_nobody_has_a_token_of_pypi() -> None:
    jobs = WORKFLOW["jobs"]
    assert WORKFLOW["permissions"] == {}
    assert jobs["test"]["permissions"] == jobs["build"]["permissions"] == {"contents": "read"}
    assert jobs["publish"]["permissions"] == {"id-token": "write", "attestations": "write", "contents": "write"}
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()
    (publish,) = (step for step in STEPS if "pypi-publish" in step.get("uses", ""))
    assert publish["with"] == {"packages-dir": "packages/", "attestations": True}
    assert any("attest-build-provenance" in step.get("uses", "") for step in jobs["publish"]["steps"])

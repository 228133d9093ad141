"""An archive is what TorchServe reads, whoever packed it: the same files are read here, or it is refused with why."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.conftest import TorchServeFactory
from tests.torchserve.zips import CASES, HANDLER
from ts_parity.errors import ArchiveError, ManagementError
from ts_parity.torchserve.archive import extract_archive, read_archive, wrap_deployed
from ts_parity.torchserve.launcher import TorchServeInstance

OWN = {"MAR-INF/MANIFEST.json", "handler.py"}


def unpacked(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in OWN}


@pytest.mark.parametrize("name", CASES)
def test_zips_of_other_programs(name: str, tmp_path: Path) -> None:
    case, out = CASES[name], tmp_path / "out"
    archive = case.write(tmp_path / f"{name}.mar")
    if case.said:
        with pytest.raises(ArchiveError, match=case.said) as refused:
            wrap_deployed(archive, out)
        assert "\n" not in str(refused.value)
        assert not list(out.glob("*"))
        return
    read = extract_archive(archive, tmp_path / "files")
    assert {name for name in read.files if name not in OWN} == set(case.files or {})
    assert unpacked(tmp_path / "files") == case.files
    wrapped = wrap_deployed(archive, out)
    again = extract_archive(wrapped, tmp_path / "again")
    assert set(read.files) < set(again.files)
    assert unpacked(tmp_path / "again").items() >= (case.files or {}).items()
    with zipfile.ZipFile(wrapped) as plain:  # and everybody else reads it so too
        assert set(plain.namelist()) >= set(read.files)
        assert plain.read("handler.py") == HANDLER


@pytest.mark.parametrize(("written", "version"), [('"1.0"', "1.0"), ("1.10", "1.10"), ("2", "2"), ("null", "1.0")])
def test_versions_that_are_numbers(written: str, version: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.mar", "w") as archive:
        archive.writestr("x.py", HANDLER)
        archive.writestr(
            "MAR-INF/MANIFEST.json", f'{{"model": {{"modelName": "x", "handler": "x.py", "modelVersion": {written}}}}}'
        )
    assert read_archive(tmp_path / "x.mar").model_version == version
    assert read_archive(wrap_deployed(tmp_path / "x.mar", tmp_path / "out")).model_version == version


@pytest.mark.torchserve
@pytest.mark.slow
def test_the_table_says_what_torchserve_does(torchserve_factory: TorchServeFactory, tmp_path: Path) -> None:
    # Java gets the names of files through the locale.
    instance = torchserve_factory(model_api=True, env={"LC_ALL": "C.UTF-8"})
    found = {name: by_torchserve(instance, CASES[name].write(tmp_path / f"{name}.mar")) for name in CASES}
    assert found == {name: case.files for name, case in CASES.items()}
    wrapped = {
        name: wrap_deployed(tmp_path / f"{name}.mar", tmp_path / "wrapped", f"{name}_wrapped")
        for name, case in CASES.items()
        if not case.said
    }
    for name, archive in wrapped.items():
        assert by_torchserve(instance, archive).items() >= CASES[name].files.items(), name


def by_torchserve(instance: TorchServeInstance, archive: Path) -> dict[str, bytes] | None:
    """The files it unpacks when it registers this archive; None if it refuses."""
    models = Path(str(instance.folder)) / "tmp" / "models"
    before = set(models.glob("*"))
    with instance.management() as management:
        try:
            management.register(instance.add_archive(archive), initial_workers=0)
        except ManagementError:
            return None
    [folder] = set(models.glob("*")) - before
    return unpacked(folder)

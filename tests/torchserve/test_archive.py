"""Archives: what is refused, and that wrapping leaves everything of the user's as it was."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ts_parity.arguments import Parser
from ts_parity.cli import main as run_cli
from ts_parity.errors import ArchiveError, CodeError, ConfigError
from ts_parity.exclusion import Exclusions
from ts_parity.fingerprint import fingerprint
from ts_parity.torchserve import commands, mar
from ts_parity.torchserve.archive import (
    ProtectedModel,
    SampleRequest,
    extract_archive,
    pack,
    read_archive,
    shim,
    worker_zip_bytes,
    wrap_deployed,
    wrap_parity,
)
from ts_parity.torchserve.weights import WeightsFormat, format_of_file

MakeArchive = Callable[..., Path]
ROOT = Path(__file__).parents[2]
OURS = {"ts_parity_worker.zip", "MAR-INF/MANIFEST.json", "model-config.yaml"}
CONFIG = "# tuned by hand\nminWorkers: 2   # not one\nbatchSize: 8\n"


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def as_torch_writes(*names: str) -> bytes:
    """A file of weights or a program, as far as its form goes."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name in names:
            archive.writestr(f"net/{name}", "text")
    return written.getvalue()


FORMS = {
    "script": as_torch_writes("code/net.py", "constants.pkl", "data.pkl"),
    "saved": as_torch_writes("data.pkl", "data/0"),
    "exported": as_torch_writes("archive_format"),
    "pickle": pickle.dumps([1.0]),
    "other": b"other",
}


@pytest.fixture
def digits(make_archive: MakeArchive) -> Path:
    files = {"labels.json": b"[0, 1]", "deep/er/.hidden": b"\x00\xff", "vendored.zip": random.Random(0).randbytes(2000)}
    return make_archive("digits", serialized=b"weights", files=files, config=CONFIG, version="2.1")


def without_utf8_flags(data: bytes) -> bytes:
    """The same zip as a packer writes it that does not say that its names are UTF-8."""
    packed = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found = packed.find(mark)
        while found >= 0:
            packed[found + at + 1] &= ~0x08
            found = packed.find(mark, found + 4)
    return bytes(packed)


class TestReading:
    def test_what_an_archive_says(self, digits: Path) -> None:
        archive = read_archive(digits)
        assert (archive.model_name, archive.model_version, archive.handler) == ("digits", "2.1", "digits_handler.py")
        assert (archive.serialized_file, archive.config_file) == ("digits.pt", "model-config.yaml")
        assert archive.config == {"minWorkers": 2, "batchSize": 8}
        assert (archive.section, archive.role) == (None, None)
        assert "deep/er/.hidden" in archive.files
        assert archive.read("labels.json") == b"[0, 1]"
        assert archive.weights() == "sha256:" + hashlib.sha256(b"weights").hexdigest()
        assert archive.protects() == ProtectedModel("digits", "2.1", archive.weights())

    def test_an_archive_without_weights_or_version(self, make_archive: MakeArchive) -> None:
        archive = read_archive(make_archive(version=""))
        assert (archive.model_version, archive.weights(), archive.serialized_file) == ("1.0", None, None)
        with pytest.raises(ArchiveError, match="holds no nothing"):
            archive.read("nothing")

    def test_extracting(self, digits: Path, tmp_path: Path) -> None:
        extract_archive(digits, tmp_path / "out" / "here")
        assert (tmp_path / "out" / "here" / "deep/er/.hidden").read_bytes() == b"\x00\xff"
        assert fingerprint(tmp_path / "out" / "here" / "digits.pt") == read_archive(digits).weights()

    def test_what_is_no_archive(self, tmp_path: Path) -> None:
        plain, packed = tmp_path / "plain.mar", tmp_path / "packed.tar.gz"
        plain.write_bytes(b"hello")
        packed.write_bytes(b"\x1f\x8b and so on")
        for path, said in (
            (tmp_path / "nowhere.mar", "there is no archive"),
            (tmp_path, "is a folder: pack it as a .mar"),
            (plain, "is not a whole .mar"),
            (packed, "is a tar.gz: pack it as a .mar"),
        ):
            with pytest.raises(ArchiveError, match=said):
                read_archive(path)

    @pytest.mark.slow
    def test_a_damaged_archive(self, digits: Path, tmp_path: Path) -> None:
        """Cut short, or a flipped byte anywhere: an ArchiveError or, where nothing needed is hit, the same reading."""
        whole = digits.read_bytes()
        damaged = tmp_path / "damaged.mar"
        damaged.write_bytes(whole[:-40])
        with pytest.raises(ArchiveError, match=r"not a whole \.mar"):
            read_archive(damaged)
        refused = 0
        for at in range(0, len(whole), 7):
            damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                extract_archive(damaged, tmp_path / "out")
            except ArchiveError:
                refused += 1
        assert refused > 20

    @pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py", "./../e.py", ".//e/../../x.py"])
    def test_a_path_that_leads_out_is_refused_whole(self, make_archive: MakeArchive, tmp_path: Path, name: str) -> None:
        archive = make_archive(files={name: b"evil"})
        with pytest.raises(ArchiveError, match="leads out of the archive"):
            extract_archive(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["größen.json", "日本.txt", "./a.txt", ".//./b/c.txt", "a\\b.txt", "a:b.txt"])
    def test_names_are_what_java_reads(self, make_archive: MakeArchive, tmp_path: Path, name: str) -> None:
        """Info-ZIP writes UTF-8 without saying so, bsdtar begins names with ./, and a backslash is a letter."""
        packed, meant = tmp_path / "packed.mar", name.removeprefix(".//").removeprefix("./")
        with zipfile.ZipFile(make_archive(files={name: b"text"})) as source, zipfile.ZipFile(packed, "w") as target:
            for entry in source.infolist():
                dotted = f"./{entry.filename}" if name.startswith(".") else entry.filename
                target.writestr(dotted, source.read(entry))
        packed.write_bytes(without_utf8_flags(packed.read_bytes()))
        archive = extract_archive(packed, tmp_path / "out")
        assert archive.model_name == "tiny"
        assert (tmp_path / "out" / meant).read_bytes() == archive.read(meant) == b"text"
        wrapped = wrap_deployed(packed, tmp_path / "wrapped")
        assert meant in read_archive(wrapped).files
        with zipfile.ZipFile(wrapped) as plain:  # and everybody else reads it so too
            assert plain.read(meant) == b"text"

    def test_a_name_that_java_cannot_read_is_refused(self, make_archive: MakeArchive, tmp_path: Path) -> None:
        old = tmp_path / "old.mar"
        old.write_bytes(make_archive(files={"größen": b""}).read_bytes().replace("größen".encode(), b"gr\xf6\xdf__en"))
        old.write_bytes(without_utf8_flags(old.read_bytes()))
        with pytest.raises(ArchiveError, match="not UTF-8, so TorchServe cannot read it"):
            read_archive(old)

    def test_links_and_repeated_names(self, make_archive: MakeArchive) -> None:
        linked, repeated = make_archive("linked"), make_archive("repeated")
        entry = zipfile.ZipInfo("passwords")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(linked, "a") as archive:
            archive.writestr(entry, "/etc/passwd")
        with pytest.raises(ArchiveError, match="symbolic link 'passwords'"):
            read_archive(linked)
        with zipfile.ZipFile(repeated, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("repeated_handler.py", "other")
        with pytest.raises(ArchiveError, match=r"'repeated_handler\.py' twice"):
            read_archive(repeated)

    @pytest.mark.parametrize(
        ("manifest", "said"),
        [
            (None, "no MAR-INF/MANIFEST.json"),
            (b"{", "is not JSON"),
            (b"\xff\xfe", "is not UTF-8"),
            (b"[]", "says nothing of a model"),
            (b'{"model": {"handler": "x.py"}}', "names no modelName"),
            (b'{"model": {"modelName": "x"}}', "names no handler"),
            (
                b'{"model": {"modelName": "x", "handler": "x", "serializedFile": "x.pt"}}',
                "serializedFile is x.pt, which",
            ),
        ],
    )
    def test_manifests(self, tmp_path: Path, manifest: bytes | None, said: str) -> None:
        with zipfile.ZipFile(tmp_path / "x.mar", "w") as archive:
            archive.writestr("x.py", "")
            if manifest is not None:
                archive.writestr("MAR-INF/MANIFEST.json", manifest)
        with pytest.raises(ArchiveError, match=said):
            read_archive(tmp_path / "x.mar")

    @pytest.mark.parametrize(
        ("config", "said"), [("a: [", "is not YAML"), ("- 1", "must be a mapping"), ("7", "an? int")]
    )
    def test_configs(self, make_archive: MakeArchive, config: str, said: str) -> None:
        with pytest.raises(ArchiveError, match=said):
            read_archive(make_archive(config=config))


ZEROS = 1 << 20


def bomb(path: Path, name: str, size: int, *, said: int | None = None, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of one file of so many zero bytes, made without compressing them all; `said` is what its headers claim."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(ZEROS)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = block * (size // ZEROS) + packer.flush(zlib.Z_FINISH)
    sizes = struct.pack("<LLL", 0, len(packed), size if said is None else said)
    encoded = name.encode()
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, method, 0, 33) + sizes + struct.pack("<HH", len(encoded), 0)
    central = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, method, 0, 33) + sizes
    central += struct.pack("<HHHHHLL", len(encoded), 0, 0, 0, 0, 0, 0) + encoded
    start = len(local) + len(encoded) + len(packed)
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), start, 0)
    path.write_bytes(local + encoded + packed + central + end)
    return path


class TestBombs:
    """No size is believed: refused in one line, and in little memory."""

    def refused(self, path: Path, said: str) -> None:
        tracemalloc.start()
        try:
            with pytest.raises(ArchiveError, match=said) as error:
                read_archive(path)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
        assert "\n" not in str(error.value)

    def test_a_manifest_of_gigabytes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Whether the headers admit it, call it small, or call it empty."""
        path = bomb(tmp_path / "x.mar", "MAR-INF/MANIFEST.json", 2 << 30)
        assert path.stat().st_size < 4 << 20
        self.refused(path, r"of 2\.\d MB would expand to 2,147\.5 MB")
        assert run_cli(["package", "--archive", str(path), "--out", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        self.refused(bomb(path, "MAR-INF/MANIFEST.json", 200 << 20), r"MANIFEST.json is larger than 1\.0 MB")
        self.refused(bomb(path, "MAR-INF/MANIFEST.json", 200 << 20, said=100), "not a whole .mar|is not JSON")
        self.refused(bomb(path, "MAR-INF/MANIFEST.json", 200 << 20, said=0), "not a whole .mar|is not JSON")

    def test_a_table_of_contents_without_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mar, "_LARGEST_DIRECTORY", 2000)
        with zipfile.ZipFile(tmp_path / "x.mar", "w") as archive:
            for number in range(100):
                archive.writestr(str(number), "")
        self.refused(tmp_path / "x.mar", "table of contents")

    def test_a_config_that_multiplies(self, make_archive: MakeArchive) -> None:
        lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
        self.refused(make_archive(config="\n".join(lines)), "with its aliases")
        merged = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
        self.refused(make_archive(config="\n".join(merged)), "with its aliases")
        self.refused(make_archive(config="a: &a [*a]"), "with its aliases")
        with pytest.raises(ArchiveError, match="nested too deeply"):
            read_archive(make_archive(config="[" * 1000))
        assert read_archive(make_archive(config="a: &a [1]\nb: *a\n")).config == {"a": [1], "b": [1]}

    def test_a_method_that_torchserve_does_not_know(self, tmp_path: Path) -> None:
        """Such entries are expanded these without limit by zipfile."""
        with zipfile.ZipFile(tmp_path / "x.mar", "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("MAR-INF/MANIFEST.json", "{}")
        self.refused(tmp_path / "x.mar", "packed by a method")

    def test_a_small_archive_may_hold_much_emptiness(self, make_archive: MakeArchive, tmp_path: Path) -> None:
        """An embedding may be all zeros."""
        archive = make_archive(serialized=bytes(8 << 20))
        assert wrap_deployed(archive, tmp_path / "out").stat().st_size < 1 << 20


class TestWrapping:
    def test_everything_of_the_users_is_as_it_was(self, digits: Path, tmp_path: Path) -> None:
        before, wrapped = contents(digits), wrap_deployed(digits, tmp_path / "out")
        after = contents(wrapped)
        assert wrapped == tmp_path / "out" / "digits.mar"
        assert {name: after[name] for name in before if name not in OURS} == {
            name: before[name] for name in before if name not in OURS
        }
        assert set(after) - set(before) == {"ts_parity_worker.zip", "ts_parity_deployed.py"}
        assert after["model-config.yaml"].startswith(CONFIG.encode())
        with zipfile.ZipFile(digits) as old, zipfile.ZipFile(wrapped) as new:
            for name in set(before) - OURS:
                a, b = old.getinfo(name), new.getinfo(name)
                assert (a.date_time, a.external_attr, a.compress_type) == (
                    b.date_time,
                    b.external_attr,
                    b.compress_type,
                )
        manifests = [json.loads(files["MAR-INF/MANIFEST.json"]) for files in (before, after)]
        assert manifests[1]["model"].pop("handler") == "ts_parity_deployed.py"
        assert manifests[0]["model"].pop("handler") == "digits_handler.py"
        assert manifests[0] == manifests[1]

    def test_the_section_of_a_deployed_archive(self, digits: Path, tmp_path: Path) -> None:
        body = tmp_path / "one.png"
        body.write_bytes(b"png")
        wrapped = wrap_deployed(
            digits,
            tmp_path / "other.mar",
            "renamed",
            samples=[body, SampleRequest(body, "image/png")],
            secret="s3cret",
            declaration={"model": "net", "call": "encode"},
        )
        archive = read_archive(wrapped)
        assert wrapped == tmp_path / "other.mar"
        assert archive.model_name == "renamed"
        assert archive.config["minWorkers"] == 2
        assert archive.section == {
            "role": "deployed",
            "handler": "digits_handler.py",
            "model": "net",
            "call": "encode",
            "samples": [
                "ts_parity_samples/0_one.png",
                {"file": "ts_parity_samples/1_one.png", "content_type": "image/png"},
            ],
            "secret": "s3cret",
        }
        assert archive.read("ts_parity_samples/1_one.png") == b"png"

    def test_an_archive_without_config_gets_one(self, make_archive: MakeArchive, tmp_path: Path) -> None:
        archive = read_archive(wrap_deployed(make_archive(), tmp_path))
        assert archive.config_file == "model-config.yaml"
        assert archive.config == {"ts_parity": {"role": "deployed", "handler": "tiny_handler.py"}}
        unused = make_archive("other", files={"model-config.yaml": "not: the config"})
        archive = read_archive(wrap_deployed(unused, tmp_path))
        assert archive.config_file == "ts_parity-model-config.yaml"
        assert archive.read("model-config.yaml") == b"not: the config"

    @pytest.mark.parametrize(
        "config", ["", "# only a comment", "a: 1", "{a: 1}", "--- {a: 1}\n...\n", "a: 1\n...\n", "a: |\n  text\n", "{}"]
    )
    def test_any_config_keeps_its_settings(self, make_archive: MakeArchive, tmp_path: Path, config: str) -> None:
        archive = read_archive(wrap_deployed(make_archive(config=config), tmp_path))
        settings = dict(archive.config)
        assert settings.pop("ts_parity")["role"] == "deployed"
        assert settings == (yaml.safe_load(config) or {})

    @pytest.mark.parametrize(
        "handler",
        ["tiny_handler", "tiny_handler.py:handle", "tiny_handler:other", "image_classifier", "a.module:run"],
    )
    def test_handlers(self, make_archive: MakeArchive, tmp_path: Path, handler: str) -> None:
        """A file, a function of one, one of TorchServe's own, an installed module: named as they were."""
        section = read_archive(wrap_deployed(make_archive(handler_entry=handler), tmp_path)).section
        assert section == {"role": "deployed", "handler": handler}

    def test_what_cannot_be_wrapped(self, make_archive: MakeArchive, digits: Path, tmp_path: Path) -> None:
        for archive, said in (
            (make_archive("a", handler_entry="missing.py"), "no missing.py in the archive"),
            (make_archive("b", files={"ts_parity_worker.zip": b""}), "a name needed here"),
            (wrap_parity(digits, tmp_path, "c", code="exact", k=2), "is a protection already"),
        ):
            with pytest.raises(ArchiveError, match=said):
                wrap_deployed(archive, tmp_path / "out")
        for more, said in (
            ({"model_name": "a b"}, "'a b' cannot be a model's name"),
            ({"secret": "zwölf"}, "printable ASCII"),
            ({"secret": ""}, "printable ASCII"),
            ({"samples": [tmp_path / "nowhere.png"]}, "cannot read .*nowhere.png"),
            ({"declaration": {"modle": "x"}}, "model, call, input and output, not modle"),
        ):
            with pytest.raises(ArchiveError, match=said):
                wrap_deployed(digits, tmp_path / "out", **more)
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []

    def test_wrapping_again_replaces_what_is_ours(self, digits: Path, tmp_path: Path) -> None:
        """Also the way from an archive wrapped by hand to a protection of it: the user's handler stays the handler."""
        once = wrap_deployed(digits, tmp_path / "1", secret="old", declaration={"model": "net"})
        twice = wrap_deployed(once, tmp_path / "2", secret="new")
        assert read_archive(twice).section == {
            "role": "deployed",
            "handler": "digits_handler.py",
            "model": "net",
            "secret": "new",
        }
        assert read_archive(twice).config_text.count("ts_parity:") == 1
        assert read_archive(twice).config_text.startswith(CONFIG)
        assert read_archive(twice).config_text.count("#") == read_archive(once).config_text.count("#")
        guard = read_archive(wrap_parity(once, tmp_path / "3", "guard", code="exact", k=3))
        assert guard.section is not None
        assert (guard.section["handler"], guard.section["secret"]) == ("digits_handler.py", "old")
        assert "ts_parity_deployed.py" not in guard.files

    def test_a_response_timeout(self, digits: Path, make_archive: MakeArchive, tmp_path: Path) -> None:
        once = wrap_deployed(digits, tmp_path / "1", response_timeout_s=7)
        assert read_archive(once).config["responseTimeout"] == 7
        assert read_archive(wrap_deployed(once, tmp_path / "2", response_timeout_s=7)).config["responseTimeout"] == 7
        for archive, seconds in ((make_archive(config="responseTimeout: 30"), 7), (digits, 0)):
            with pytest.raises(ArchiveError, match="responseTimeout cannot be"):
                wrap_deployed(archive, tmp_path / "3", response_timeout_s=seconds)

    def test_wrapping_in_place(self, digits: Path) -> None:
        assert wrap_deployed(digits, digits.parent) == digits
        assert read_archive(digits).role == "deployed"


class TestProtections:
    def test_exact(self, digits: Path, tmp_path: Path) -> None:
        archive = read_archive(wrap_parity(digits, tmp_path, "digits-parity", code="exact", k=2, r=2, row=1))
        assert (archive.model_name, archive.model_version) == ("digits-parity", "2.1")
        assert archive.handler == "ts_parity_parity.py"
        assert archive.read("digits.pt") == b"weights"
        assert archive.section == {
            "role": "parity",
            "handler": "digits_handler.py",
            "code": "exact",
            "k": 2,
            "r": 2,
            "row": 1,
            "coefficients": [],
            "partial": True,
            "protects": {"model": "digits", "version": "2.1", "weights": read_archive(digits).weights()},
        }

    def test_weights_take_the_place_of_the_users_own(self, digits: Path, tmp_path: Path) -> None:
        (tmp_path / "parity.bin").write_bytes(b"parity weights")
        wrapped = wrap_parity(
            digits, tmp_path, "p", code="sum", k=3, r=2, row=1, serialized_file=tmp_path / "parity.bin", partial=False
        )
        archive = read_archive(wrapped)
        assert (archive.serialized_file, archive.read("digits.pt")) == ("digits.pt", b"parity weights")
        assert archive.weights() == fingerprint(tmp_path / "parity.bin")
        assert archive.section is not None
        assert archive.section["coefficients"] == [[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]]
        assert archive.section["partial"] is False
        assert archive.section["protects"]["weights"] == read_archive(digits).weights()

    def test_a_parity_model_beside_the_users_own(self, digits: Path, tmp_path: Path) -> None:
        (tmp_path / "net.pt").write_bytes(as_torch_writes("code/net.py", "constants.pkl", "data.pkl"))
        whom = ProtectedModel("other", "7", None)
        archive = read_archive(
            wrap_parity(
                digits,
                tmp_path,
                "p",
                code="sum",
                k=2,
                coefficients=[[1, 2]],
                parity_model=tmp_path / "net.pt",
                protects=whom,
            )
        )
        assert archive.section is not None
        assert archive.read(archive.section["parity_model"]) == (tmp_path / "net.pt").read_bytes()
        assert archive.read("digits.pt") == b"weights"
        assert archive.section["coefficients"] == [[1.0, 2.0]]
        assert archive.section["partial"] is False  # of a learned model it must be said
        assert archive.section["protects"] == {"model": "other", "version": "7", "weights": None}

    def test_what_does_not_fit_together(self, digits: Path, make_archive: MakeArchive, tmp_path: Path) -> None:
        weights = tmp_path / "w.pt"
        weights.write_bytes(b"w")
        with pytest.raises(ArchiveError, match="code sum needs a model of its own"):
            wrap_parity(digits, tmp_path, "p", code="sum", k=2)
        with pytest.raises(ArchiveError, match="takes no other model"):
            wrap_parity(digits, tmp_path, "p", code="exact", k=2, parity_model=weights)
        with pytest.raises(ArchiveError, match="no serialized file to replace"):
            wrap_parity(make_archive(), tmp_path, "p", code="sum", k=2, serialized_file=weights)
        with pytest.raises(ArchiveError, match="row counts the r = 1 protections from 0"):
            wrap_parity(digits, tmp_path, "p", code="exact", k=2, row=1)
        with pytest.raises(CodeError):
            wrap_parity(digits, tmp_path, "p", code="sum", k=9, serialized_file=weights)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (as_torch_writes("data.pkl", "data/0"), "is what torch.save has written.*; or give it as the serialized"),
            (as_torch_writes("archive_format", "models/model.json"), "is a program of torch.export, and"),
            (pickle.dumps([1.0]), "is a pickled object, and .* write it with torch.jit.trace and torch.jit.save"),
            (b"", "is of no format of torch's"),
            (b"weights", "is of no format of torch's"),
            (as_torch_writes("constants.pkl")[:60], "is not whole: File is not a zip file"),
            (as_torch_writes("constants.pkl").replace(b"text", b"tixt"), "is not whole: .*constants.pkl"),
        ],
        ids=["state", "exported", "pickled", "empty", "text", "cut", "damaged"],
    )
    def test_a_parity_model_that_no_worker_could_load(
        self, digits: Path, tmp_path: Path, content: bytes, why: str
    ) -> None:
        (tmp_path / "net.pt").write_bytes(content)
        with pytest.raises(ArchiveError, match=rf"net\.pt {why}"):
            wrap_parity(digits, tmp_path / "out", "p", code="sum", k=2, parity_model=tmp_path / "net.pt")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("own", FORMS)
    @pytest.mark.parametrize("given", FORMS)
    def test_what_takes_the_place_of_weights_is_of_their_form(
        self, make_archive: MakeArchive, tmp_path: Path, own: str, given: str
    ) -> None:
        archive = make_archive("m", serialized=FORMS[own] + bytes(3 << 20))
        (tmp_path / "net").write_bytes(FORMS[given])
        if own == given:
            assert wrap_parity(archive, tmp_path, "p", code="sum", k=2, serialized_file=tmp_path / "net").exists()
            return
        with pytest.raises(
            ArchiveError, match=r"net is .*, and the serialized file of .*m\.mar is .*: its handler loads"
        ):
            wrap_parity(archive, tmp_path, "p", code="sum", k=2, serialized_file=tmp_path / "net")

    @pytest.mark.slow
    def test_what_torch_writes_is_known_by_its_form(self, tmp_path: Path) -> None:
        net, file = torch.nn.Linear(3, 2), tmp_path / "net"
        torch.save(net.state_dict(), file)
        assert format_of_file(file) is WeightsFormat.SAVED
        torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
        assert format_of_file(file) is WeightsFormat.SAVED
        torch.jit.save(torch.jit.script(net), str(file))
        assert format_of_file(file) is WeightsFormat.SCRIPT
        torch.export.save(torch.export.export(net, (torch.rand(1, 3),)), tmp_path / "net.pt2")
        assert format_of_file(tmp_path / "net.pt2") is WeightsFormat.EXPORTED

    @pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=other"])
    def test_a_sample_of_a_form_without_its_boundary(self, digits: Path, tmp_path: Path, content_type: str) -> None:
        (tmp_path / "body").write_bytes(b'--here\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--here--\r\n')
        with pytest.raises(ArchiveError, match=r"body: a sample of a form is the whole body .* boundary="):
            wrap_deployed(digits, tmp_path, samples=[SampleRequest(tmp_path / "body", content_type)])
        right = SampleRequest(tmp_path / "body", 'multipart/form-data; boundary="here"')
        assert wrap_deployed(digits, tmp_path / "out", samples=[right]).exists()


class TestWorkerZip:
    def test_the_same_code_is_the_same_bytes(self) -> None:
        first = worker_zip_bytes()
        assert first == worker_zip_bytes()
        with zipfile.ZipFile(io.BytesIO(first)) as archive:
            names = archive.namelist()
        assert {f"ts_parity/{name}.py" for name in ("__init__", "errors", "wire", "codes", "worker/__init__")} <= set(
            names
        )
        assert not [name for name in names if name.startswith(("ts_parity/proxy", "ts_parity/engine", "ts_parity/lab"))]

    def test_it_stands_alone(self, digits: Path, tmp_path: Path) -> None:
        """A fresh interpreter, nothing but the zip of a wrapped archive and numpy: wire and codes work from it."""
        extract_archive(wrap_deployed(digits, tmp_path), tmp_path / "model")
        (tmp_path / "site").mkdir()
        for package in Path(np.__file__).parents[1].glob("numpy*"):
            (tmp_path / "site" / package.name).symlink_to(package)
        path = [str(tmp_path / "model" / "ts_parity_worker.zip"), str(tmp_path / "site")]
        program = (
            f"import sys; sys.path[:0] = {path!r}\n"
            "from ts_parity.wire import Frame, pack_frame, unpack_frame\n"
            "from ts_parity.codes import make_code\n"
            "import ts_parity.errors, ts_parity.worker\n"
            "assert unpack_frame(pack_frame(Frame((None,)))).k == 1 and make_code('sum', 2).k == 2\n"
            "print(ts_parity.__file__)"
        )
        ran = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "ts_parity_worker.zip" in ran.stdout

    @pytest.mark.parametrize("role", ["deployed", "parity"])
    def test_the_shim_is_the_handler_in_the_repository(self, role: str) -> None:
        assert (ROOT / "handlers" / f"{role}_handler.py").read_text() == shim(role)


class TestExclusions:
    def test_it_is_written_kept_and_replaced(self, digits: Path, tmp_path: Path) -> None:
        words = ["--never-code", "path", "--never-code", "text/uri-list"]
        assert run_cli(["package", "--archive", str(digits), "--out", str(tmp_path / "a.mar"), *words]) == 0
        section = read_archive(tmp_path / "a.mar").section
        assert section is not None
        assert section["never_code"] == {"content_types": ["text/uri-list"], "keys": ["path"]}
        again = read_archive(wrap_parity(tmp_path / "a.mar", tmp_path, "p", code="exact", k=2)).section
        assert again is not None
        assert again["never_code"] == section["never_code"]
        other = wrap_deployed(tmp_path / "a.mar", tmp_path, "b", never_code=Exclusions(keys=("url",)))
        changed = read_archive(other).section
        assert changed is not None
        assert changed["never_code"] == {"content_types": [], "keys": ["url"]}


@pytest.mark.slow
class TestPacking:
    def test_side_by_side_with_one_name(self, tmp_path: Path) -> None:
        """torch-model-archiver alone would mix their files up."""

        def packed(number: int) -> Path:
            source = tmp_path / str(number)
            source.mkdir()
            for name in ("handler.py", "weights.pt", "extra.txt", "settings.yaml"):
                (source / name).write_text(f"# {number}\n")
            return pack(
                source / "out",
                model_name="same",
                version="3",
                handler=source / "handler.py",
                serialized_file=source / "weights.pt",
                extra_files=[source / "extra.txt"],
                config_file=source / "settings.yaml",
            )

        with ThreadPoolExecutor(4) as pool:
            for number, path in enumerate(pool.map(packed, range(4))):
                archive = read_archive(path)
                assert (archive.model_name, archive.model_version, archive.config_file) == (
                    "same",
                    "3",
                    "settings.yaml",
                )
                for name in ("handler.py", "weights.pt", "extra.txt"):
                    assert archive.read(name) == f"# {number}\n".encode()

    def test_what_the_archiver_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match=r"could not pack x: .*nowhere\.py"):
            pack(tmp_path, model_name="x", handler=tmp_path / "nowhere.py")
        with pytest.raises(ArchiveError, match="split or expand the file name"):
            pack(tmp_path, model_name="x", handler="image_classifier", extra_files=["a,b"])


def run(*words: str) -> int:
    parser = Parser()
    commands.add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args(words)
    result = args.run(args)
    assert isinstance(result, int)
    return result


class TestPackageCommand:
    def test_both_roles(
        self, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(commands.SECRET_VARIABLE, "from the environment")
        common = ("package", "--archive", str(digits), "--out", str(tmp_path))
        assert run(*common, "--sample", str(ROOT / "LICENSE"), "--content-type", "text/plain") == 0
        assert run(*common, "--role", "parity", "--code", "exact", "--k", "2") == 0
        printed = capsys.readouterr().out.split()
        assert printed == [str(tmp_path / "digits.mar"), str(tmp_path / "digits-2.1-exact-k2.mar")]
        deployed, parity = (read_archive(path).section for path in printed)
        assert deployed is not None
        assert parity is not None
        assert deployed["samples"] == [{"file": "ts_parity_samples/0_LICENSE", "content_type": "text/plain"}]
        assert (parity["code"], parity["k"], parity["secret"]) == ("exact", 2, "from the environment")

    @pytest.mark.slow
    def test_no_two_protections_have_one_name(self, make_archive: MakeArchive, tmp_path: Path) -> None:
        """Of other versions, codes, k, r or rows: TorchServe and a model store tell them apart by nothing else."""
        (tmp_path / "model.pt").write_bytes(FORMS["script"])
        made = [("exact", "2"), ("exact", "3"), ("sum", "2"), ("sum", "3"), ("student", "2")]
        for version in ("1.0", "2.0", "a/b c"):
            archive = str(make_archive("fashion", serialized=b"", version=version))
            for code, k in made:
                for r, row in (("1", "0"), ("2", "0"), ("2", "1")):
                    words = ["--role", "parity", "--code", code, "--k", k, "--r", r, "--row", row]
                    model = ("--parity-model", str(tmp_path / "model.pt")) if code != "exact" else ()
                    assert run("package", "--archive", archive, "--out", str(tmp_path / "out"), *words, *model) == 0
        archives = [read_archive(path) for path in (tmp_path / "out").iterdir()]
        assert len(archives) == len({archive.model_name for archive in archives}) == 3 * 5 * 3
        assert {"fashion-2.0-sum-k3", "fashion-1.0-exact-k2-r2-row1"} < {archive.model_name for archive in archives}
        assert all(archive.path.stem == archive.model_name for archive in archives)

    @pytest.mark.parametrize(
        ("given", "protects", "name"),
        [
            ("prod-20260101", ("prod-20260101", "2.1"), "prod-20260101-2.1-exact-k2"),
            ("prod/3", ("prod", "3"), "prod-3-exact-k2"),
        ],
    )
    def test_what_is_registered_under_another_name(
        self, digits: Path, tmp_path: Path, given: str, protects: tuple[str, str], name: str
    ) -> None:
        words = ("--role", "parity", "--code", "exact", "--k", "2", "--protects", given)
        assert run("package", "--archive", str(digits), "--out", str(tmp_path), *words) == 0
        section = read_archive(tmp_path / f"{name}.mar").section
        assert section is not None
        weights = read_archive(digits).weights()
        assert section["protects"] == {"model": protects[0], "version": protects[1], "weights": weights}

    @pytest.mark.parametrize("given", ["/", "/1.0", "prod/", "prod/1/2"])
    def test_what_names_no_model_cannot_be_protected(self, digits: Path, tmp_path: Path, given: str) -> None:
        words = ("--role", "parity", "--code", "exact", "--k", "2", "--protects", given)
        with pytest.raises(ConfigError, match="is NAME or NAME/VERSION, not"):
            run("package", "--archive", str(digits), "--out", str(tmp_path), *words)

    def test_the_commands_module_is_cheap_to_import(self) -> None:
        heavy = "{'numpy', 'torch', 'requests', 'yaml', 'aiohttp', 'psutil'}"
        program = f"import sys, ts_parity.torchserve.commands; print({heavy} & set(sys.modules))"
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
        assert ran.stdout == "set()\n"

    def test_usage(self, digits: Path, tmp_path: Path) -> None:
        common = ("package", "--archive", str(digits), "--out", str(tmp_path))
        with pytest.raises(ConfigError, match="needs --code and --k"):
            run(*common, "--role", "parity")
        with pytest.raises(ConfigError, match="are for --role parity"):
            run(*common, "--code", "exact")
        with pytest.raises(ArchiveError, match="code sum needs a model of its own"):
            run(*common, "--role", "parity", "--code", "sum", "--k", "2")

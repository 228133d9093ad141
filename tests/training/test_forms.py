"""Bodies that are sent otherwise than the names of files tell: other types, forms of one part or several."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.conftest import write_archive
from ts_parity.errors import TrainingError
from ts_parity.torchserve.archive import extract_archive, read_archive
from ts_parity.training import TrainSettings, train
from ts_parity.training.bodies import list_bodies
from ts_parity.training.labels import read_labels
from ts_parity.wire import Part
from ts_parity.worker.requests import request_of

FORM = "multipart/form-data"


def seen(body):
    """What a handler gets of it."""
    return request_of(Part((("content-type", body.content_type),), body.read()), "0").data


def written(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return folder.with_suffix(".zip")


REQUESTS = {
    "cat/1/image.png": b"\x89PNG one",
    "cat/1/meta.json": b'{"tenant": 1}',
    "cat/1/scale": b"2.5",
    "dog/1/image.png": b"\x89PNG two\r\n--x\r\n",
    "dog/1/meta.json": b'{"tenant": 2}',
    "dog/1/scale": b"",
}


@pytest.mark.parametrize("source", [lambda folder: folder, zipped], ids=["folder", "zip"])
def test_each_folder_is_a_request_of_several_parts(tmp_path, source):
    bodies = list_bodies(source(written(tmp_path / "requests", REQUESTS)), None, FORM)
    assert [body.name for body in bodies] == ["cat/1", "dog/1"], "of the same name in two folders"
    one, two = map(seen, bodies)
    assert one == {"image": b"\x89PNG one", "meta": {"tenant": 1}, "scale": b"2.5"}
    assert two == {"image": b"\x89PNG two\r\n--x\r\n", "meta": {"tenant": 2}, "scale": b""}
    request = request_of(Part((("content-type", bodies[0].content_type),), bodies[0].read()), "0")
    assert request.headers["image"] == {"content-type": "image/png"}
    assert read_labels(Path("folders"), tmp_path, bodies).tolist() == [0, 1], "the class is the outer one"


def test_files_may_be_bodies_as_clients_have_sent_them(tmp_path):
    """Each with a boundary of its own, which a client's header would have said; its own first line does too."""
    raw = [
        f'--{mark}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{mark}!\r\n--{mark}--\r\n'.encode()
        for mark in ("xYz", "------WebKitFormBoundary7")
    ]
    folder = written(tmp_path / "logged", {"cat/0.bin": raw[0], "cat/1.bin": raw[1], "2.bin": raw[0]})
    bodies = list_bodies(folder, None, FORM)
    assert [body.name for body in bodies] == ["2.bin", "cat/0.bin", "cat/1.bin"]
    assert [seen(body) for body in bodies] == [{"a": b"xYz!"}, {"a": b"xYz!"}, {"a": b"------WebKitFormBoundary7!"}]
    assert [body.read() for body in bodies] == [raw[0], *raw]
    (folder / "3.bin").write_bytes(b"\x89PNG")
    with pytest.raises(TrainingError, match=r"3.bin is no multipart/form-data body: put the parts of each request"):
        list_bodies(folder, None, FORM)


@pytest.mark.parametrize("kind", [FORM, "application/x-www-form-urlencoded"])
def test_every_file_may_be_the_one_part_of_a_form(folder, arrays, kind):
    """As with `curl -F data=@b.jpg`, the commonest way of all."""
    how = f"{kind}; name=data"
    bodies = list_bodies(folder, None, how)
    assert [(body.name, seen(body)["data"]) for body in bodies][:2] == [
        ("cat/a.png", b"cat/a.png"),
        ("dog/b.jpg", b"dog/b.jpg"),
    ]
    rows = list_bodies(arrays / "x", "raw", how)
    assert bytes(seen(rows[2])["data"]) == bytes(range(40, 60))


def test_json_lines_are_the_fields_of_a_form(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps({"text": "größer & älter", "user.id": 7, "tags": ["a"]}) + "\n")
    for kind in (FORM, "application/x-www-form-urlencoded"):
        [body] = list_bodies(file, None, kind)
        assert seen(body) == {"text": "größer & älter".encode(), "user.id": b"7", "tags": b'["a"]'}
    file.write_text('"a text"\n')
    [body] = list_bodies(file, None, "text/plain; charset=utf-8")
    assert (seen(body), body.content_type) == ({"body": "a text"}, "text/plain; charset=utf-8")
    with pytest.raises(TrainingError, match="line 1 is no JSON object"):
        list_bodies(file, None, FORM)


def test_a_content_type_where_names_do_not_tell(folder):
    assert {body.content_type for body in list_bodies(folder, None, "application/octet-stream")} == {
        "application/octet-stream"
    }


@pytest.mark.parametrize("wrong", ["png", "image/", "a/b/c", "image/png\r\nx: y", "größe/png"])
def test_what_is_no_content_type(folder, wrong):
    with pytest.raises(TrainingError, match="--content-type"):
        list_bodies(folder, None, wrong)


def test_two_files_for_one_part(tmp_path):
    folder = written(tmp_path / "requests", {"1/image.png": b"a", "1/image.jpg": b"b"})
    with pytest.raises(
        TrainingError, match="the folder 1 is one request, and two of its files would be its part image"
    ):
        list_bodies(folder, None, FORM)


def test_a_zip_may_hold_one_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.bin", b"one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.bin", b"two")
    assert [body.read() for body in list_bodies(tmp_path / "x.zip")] == [b"one", b"two"]


def test_a_table_that_labels_one_name_twice(tmp_path):
    """By their last names alone, bodies in two folders cannot be told apart."""
    folder = written(tmp_path / "bodies", {"a/0.bin": b"0", "b/0.bin": b"1"})
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n0.bin,0\n0.bin,1\n")
    with pytest.raises(TrainingError, match=r"line 3: 0.bin had another label before; names include their folders"):
        read_labels(table, folder, list_bodies(folder))
    table.write_text("file,label\na/0.bin,0\nb/0.bin,1\nb/0.bin,1\n")
    assert read_labels(table, folder, list_bodies(folder)).tolist() == [0, 1]


HANDLER = """
import json
import torch

class Handler:
    def initialize(self, context):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2).eval()
    def handle(self, data, context):
        rows = [[*json.loads(bytes(row["numbers"])), float(bytes(row["scale"]))] for row in data]
        return self.model(torch.tensor(rows)).tolist()
"""


@pytest.mark.slow
def test_protections_are_trained_on_forms_and_test_themselves_with_them(tmp_path):
    """All bodies have files of the same names; the samples that are packed are two different ones."""
    files = {}
    for number in range(40):
        files[f"{number:02d}/numbers.bin"] = json.dumps([number / 40, 1 - number / 20]).encode()
        files[f"{number:02d}/scale"] = str(number % 7).encode()
    archive = write_archive(tmp_path / "vec.mar", HANDLER, name="vec")
    inputs, out = written(tmp_path / "requests", files), tmp_path / "out"
    report = train(
        TrainSettings(archive, inputs, out, codes=("student",), steps=20, content_type=FORM, budget=99, progress=False)
    )
    [made] = report["candidates"]
    packed = read_archive(out / made["archives"][0])
    samples = packed.section["samples"]
    assert len({packed.read(sample["file"]) for sample in samples}) == 2
    extract_archive(packed.path, tmp_path / "x")
    for sample in samples:
        part = Part((("content-type", sample["content_type"]),), (tmp_path / "x" / sample["file"]).read_bytes())
        assert request_of(part, "0").data.keys() == {"numbers", "scale"}

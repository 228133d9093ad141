"""Request bodies and labels, from everywhere they may come from, and what is said of those that do not fit."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from ts_parity.errors import ArchiveError, TrainingError
from ts_parity.training import bodies as bodies_module
from ts_parity.training.bodies import list_bodies


def contents(bodies):
    return [(body.name, body.content_type, body.read()) for body in bodies]


def test_a_folder_and_a_zip_of_it_are_the_same(folder, tmp_path):
    expected = [
        ("cat/a.png", "image/png", b"cat/a.png"),
        ("dog/b.jpg", "image/jpeg", b"dog/b.jpg"),
        ("dog/c.txt", "text/plain", b"dog/c.txt"),
    ]
    assert contents(list_bodies(folder)) == expected
    file = tmp_path / "bodies.zip"
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("train/", b"")
        for name, _, content in expected:
            written.writestr(f"train/{name}", content)
        written.writestr("test/x.png", b"other")
    assert contents(list_bodies(file / "train")) == expected
    assert [body.name for body in list_bodies(file)] == ["test/x.png", *(f"train/{name}" for name, _, _ in expected)]


def test_rows_of_an_array_become_bodies_in_a_named_way(arrays):
    images = np.load(arrays)["x"]
    png, npy, raw, text = (list_bodies(arrays / "x", each)[1] for each in ("png", "npy", "raw", "json"))
    assert (png.name, png.content_type) == ("1", "image/png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.read()))), images[1])
    assert np.array_equal(np.load(io.BytesIO(npy.read())), images[1])
    assert raw.read() == images[1].tobytes()
    assert json.loads(text.read()) == images[1].tolist()
    assert text.content_type == "application/json"


def test_json_lines(tmp_path):
    file = tmp_path / "bodies.jsonl"
    file.write_text('{"a": 1}\n\n[2]\n')
    assert contents(list_bodies(file)) == [
        ("1", "application/json", b'{"a": 1}'),
        ("3", "application/json", b"[2]"),
    ]
    file.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(TrainingError, match=r"line 2 is not JSON"):
        list_bodies(file)


def test_what_is_no_source_of_bodies_says_what_would_be(folder, arrays, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("hello")
    for source, body_format, why in (
        (tmp_path / "nowhere", None, "no folder and no file of bodies; give a folder"),
        (tmp_path / "words.txt", None, "no folder and no file of bodies"),
        (tmp_path / "empty", None, "holds no files"),
        (arrays / "x", None, "say how a row becomes a request body with --body png"),
        (arrays, "png", r"name one of its arrays, .*set\.npz/x"),
        (arrays / "z", "png", "name one of its arrays"),
        (folder, "png", "is for an .npz"),
    ):
        with pytest.raises(TrainingError, match=why):
            list_bodies(source, body_format)
    with pytest.raises(TrainingError, match="needs uint8 images"):
        list_bodies(arrays / "boxes", "png")[0].read()


@pytest.mark.parametrize(
    "left", [".ipynb_checkpoints/x.json", "__MACOSX/dog/._b.jpg", "dog/.git/x", "dog/Thumbs.db", "desktop.ini"]
)
def test_what_tools_leave_behind_is_no_body(folder, tmp_path, left):
    expected = [body.name for body in list_bodies(folder)]
    (folder / left).parent.mkdir(parents=True, exist_ok=True)
    (folder / left).write_bytes(b"x")
    assert [body.name for body in list_bodies(folder)] == expected
    with zipfile.ZipFile(tmp_path / "bodies.zip", "w") as written:
        for file in folder.rglob("*"):
            written.write(file, file.relative_to(tmp_path))
    assert [body.name for body in list_bodies(tmp_path / "bodies.zip" / "bodies")] == expected


def test_bodies_that_expand_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bodies_module, "LARGEST_FILE", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("large.bin", bytes(5000))
        written.writestr("small.bin", bytes(1000))
    large, small = list_bodies(tmp_path / "x.zip")
    assert small.read() == bytes(1000)
    with pytest.raises(ArchiveError, match="larger than"):
        large.read()

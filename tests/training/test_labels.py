"""Labels as people and Excel write them, and what is said of those that do not fit."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from ts_parity.errors import TrainingError
from ts_parity.training.bodies import RequestBody, list_bodies
from ts_parity.training.labels import classes_of_folders, doubts, read_labels
from ts_parity.training.semantics import CLASSES


def test_labels_by_folder_by_table_and_by_array(folder, arrays, tmp_path):
    bodies = list_bodies(folder)
    assert read_labels("folders", folder, bodies).tolist() == [0, 1, 1]
    table = tmp_path / "labels.csv"
    table.write_text("file,label\ncat/a.png,7\nbodies/dog/b.jpg,3\ndog/c.txt,4\nmore,1\n")
    assert read_labels(table, folder, bodies).tolist() == [7, 3, 4]
    table.write_text("file,x1,y1,x2,y2\ncat/a.png,0,0,1,1\ndog/b.jpg,0.5,0,1,1\ndog/c.txt,0,0,2,2\n")
    assert read_labels(table, folder, bodies).tolist() == [[0, 0, 1, 1], [0.5, 0, 1, 1], [0, 0, 2, 2]]
    rows = list_bodies(arrays / "x", "npy")
    assert read_labels(arrays / "y", arrays, [rows[2], rows[0]]).tolist() == [1, 2]
    assert read_labels(arrays / "boxes", arrays, rows).shape == (3, 4)


def test_an_array_of_labels_belongs_to_json_lines_in_their_order(arrays, tmp_path):
    """Lines are called by their number, from 1, and an empty one has no label."""
    lines = tmp_path / "bodies.jsonl"
    lines.write_text('"first"\n\n"second"\n"third"\n')
    labels = dict(zip(("first", "second", "third"), read_labels(arrays / "y", lines, list_bodies(lines)), strict=True))
    with np.load(arrays) as opened:
        assert [*labels.values()] == opened["y"].tolist()
    assert read_labels(arrays / "y", lines, list_bodies(lines)[2:]).tolist() == [labels["third"]]
    lines.write_text('"more"\n' * 4)
    with pytest.raises(TrainingError, match="do not belong to the bodies"):
        read_labels(arrays / "y", lines, list_bodies(lines))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,label\n", "expected the header file,label"),
        ("file,label\ncat/a.png,two\n", "line 2: expected file,label with a class index or numbers"),
        ("file,label\ncat/a.png\n", "line 2"),
        ("file,label\ncat/a.png,2\n", "no label for 2 of 3 bodies, such as dog/b.jpg"),
        ("file,label\ncat/a.png,1\ndog/b.jpg,1,2\ndog/c.txt,1\n", "equally many numbers"),
    ],
)
def test_labels_that_do_not_fit(folder, tmp_path, text, why):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(TrainingError, match=why):
        read_labels(table, folder, list_bodies(folder))


def test_labels_that_are_not_there(folder, arrays, tmp_path):
    with pytest.raises(TrainingError, match="cannot read the labels"):
        read_labels(tmp_path / "none.csv", folder, list_bodies(folder))
    with pytest.raises(TrainingError, match="do not belong to the bodies"):
        read_labels(arrays / "y", folder, list_bodies(folder))
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "a.png").write_bytes(b"")
    with pytest.raises(TrainingError, match="lies in no folder"):
        read_labels("folders", loose, list_bodies(loose))


def bodies_of(*names):
    return [RequestBody(name, None, bytes) for name in names]


def test_classes_come_from_all_inputs(folder):
    """A part that is scored may lack a class; its bodies' classes are the places among all of them."""
    inputs = bodies_of("ant/1", "bee/1", "cat/1")
    assert read_labels("folders", folder, bodies_of("cat/1", "bee/1"), inputs).tolist() == [2, 1]
    assert read_labels("folders", folder, bodies_of("cat/1", "bee/1"), bodies_of("1", "2")).tolist() == [1, 0]
    assert read_labels("folders", folder, bodies_of("cat/1", "bee/1"), bodies_of("new/1")).tolist() == [1, 0]
    with pytest.raises(TrainingError, match="--score has the folder dog, which --inputs has not"):
        read_labels("folders", folder, bodies_of("cat/1", "dog/1"), inputs)


TABLE = "file,label\ncat/a.png,7\ndog/b.jpg,3\ndog/c.txt,4\n"


@pytest.mark.parametrize(
    "data",
    [
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        b"\xfe\xff" + TABLE.encode("utf-16-be"),
        TABLE.replace(",", "\t").encode("utf-16"),
        TABLE.replace(",", ";").replace("\n", "\r\n").encode("cp1252"),
        (TABLE + "größen,1\n").encode("cp1252"),
        TABLE.replace("file,label", "File, Label ").replace(",7", ", 7 ").encode() + b"\n,,\n",
    ],
    ids=["utf-8 with a mark", "utf-16", "utf-16 the other way", "unicode text", "semicolons", "ansi", "spaces"],
)
def test_tables_as_excel_writes_them(folder, tmp_path, data):
    table = tmp_path / "labels.csv"
    table.write_bytes(data)
    assert read_labels(table, folder, list_bodies(folder)).tolist() == [7, 3, 4]


def test_a_comma_in_a_number_where_semicolons_separate(folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file;x1;x2\ncat/a.png;0,5;1\ndog/b.jpg;1;2\ndog/c.txt;0;1,25\n")
    assert read_labels(table, folder, list_bodies(folder)).tolist() == [[0.5, 1], [1, 2], [0, 1.25]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (TABLE.encode("utf-16-le"), "is not text in UTF-8 or Windows-1252; save it as CSV UTF-8"),
        (b"\xff\xfe" + b"a", "is not text in utf-16; save it as CSV UTF-8"),
        (b"PK\x03\x04\0\0", "is a workbook; save the sheet as CSV UTF-8"),
        (TABLE.replace(",7", ",nan").encode(), "line 2: expected file,label with a class index"),
        (TABLE.replace(",7", ",0.5,inf").encode(), "line 2"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(folder, tmp_path, data, why):
    table = tmp_path / "labels.csv"
    table.write_bytes(data)
    with pytest.raises(TrainingError, match=why) as refused:
        read_labels(table, folder, list_bodies(folder))
    assert "\n" not in str(refused.value)


def test_labels_of_numbers(folder, tmp_path):
    """A regressor's: fractions, and below 0."""
    table = tmp_path / "labels.csv"
    table.write_text("file,label\ncat/a.png,-7.5\ndog/b.jpg,3\ndog/c.txt,1e3\n")
    assert read_labels(table, folder, list_bodies(folder)).tolist() == [-7.5, 3, 1000]
    table.write_text("file,label\ncat/a.png,1.0\ndog/b.jpg,0.0\ndog/c.txt,2\n")
    assert read_labels(table, folder, list_bodies(folder)).dtype == np.int64, "class indices as pandas writes them"


def doubted(labels, outputs, folders=None):
    """Of a model with so many scores (n, classes) a body."""
    return doubts(labels, outputs[:, None], CLASSES.answers(outputs, 1), folders)


def test_labels_that_do_not_fit_the_model_are_doubted():
    answers = np.arange(300) % 3
    outputs = np.eye(3)[answers]
    assert doubted(answers, outputs) == []
    assert "the scored bodies have 2 classes, the model 3 outputs" in doubted(np.minimum(answers, 1), outputs)
    assert "the labels have class 3, the model 3 outputs" in doubted(answers + 1, outputs)[0]
    [renamed] = doubted((answers + 1) % 3, outputs)
    assert "right about 0.0% of the labels, and would be about 100.0% if its classes had other numbers" in renamed
    dice = np.random.default_rng(0)
    assert doubted(dice.integers(0, 3, 300), outputs) == []  # a bad model is no wrong label
    assert doubted(dice.random((300, 4)), outputs) == []


def test_a_lone_score_has_two_classes_and_they_may_be_the_wrong_way_round():
    yes = np.arange(100) % 2
    outputs = (2.0 * yes - 1.0)[:, None]
    assert doubted(yes, outputs) == []
    [renamed] = doubted(1 - yes, outputs)
    assert "right about 0.0% of the labels, and would be about 100.0%" in renamed
    assert "the labels have class 2, the model 2 outputs" in doubted(yes + 1, outputs)[0]


@pytest.mark.parametrize("folders", [2, 4])
def test_folders_that_are_not_as_many_as_outputs_are_doubted_however_few_bodies_there_are(folders):
    """A class without a body has no folder, and one that is no class has: all that follow have another number."""
    answers = np.array([0, 1, 2, 0, 1])
    [told] = doubted(np.minimum(answers, 1), np.eye(3)[answers], folders)
    assert told.startswith(f"{folders} folders name classes, and the model has 3 outputs")
    assert doubted(answers, np.eye(3)[answers], 3) == []


def test_how_many_classes_folders_name():
    inputs = bodies_of("ant/1", "bee/1", "cat/1")
    assert classes_of_folders(Path("folders"), bodies_of("cat/1"), inputs) == 3
    assert classes_of_folders(Path("labels.csv"), bodies_of("cat/1"), inputs) is None


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nfile;label\ncat/a.png;7\ndog/b.jpg;3\ndog/c.txt;4\n",
        TABLE.replace("/", "\\"),
        TABLE.replace("\ncat", "\n./cat"),
        TABLE.replace("\n", "\r"),
        TABLE.replace("\n", ";;\n").replace(",", ";"),
    ],
    ids=["what Excel is told", "from Windows", "from find", "old Macs", "emptied columns"],
)
def test_tables_that_went_through_other_hands(folder, tmp_path, text):
    table = tmp_path / "labels.csv"
    table.write_bytes(text.encode())
    assert read_labels(table, folder, list_bodies(folder)).tolist() == [7, 3, 4]


def test_accents_are_the_same_however_they_are_written(tmp_path):
    """A Mac's files are named with the accent apart, and Excel's table is not."""
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + unicodedata.normalize("NFC", "größe/é.png") + ",5\n")
    bodies = bodies_of(unicodedata.normalize("NFD", "größe/é.png"))
    assert read_labels(table, tmp_path, bodies).tolist() == [5]

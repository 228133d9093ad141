"""What recorded pairs are taken for: tensors of the protocol or arrays in JSON, one query a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.pairs import binary, classes, inputs, json_pair, of_rows, open_inference, written
from ts_parity.errors import TrainingError
from ts_parity.pairs import Pair
from ts_parity.training.recorded import JSON, OPEN_INFERENCE, RecordedPairs, Tensor, read_recorded


def read(tmp_path: Path, pairs: list[Pair], *rest: Any) -> RecordedPairs:
    return read_recorded([written(tmp_path / "pairs.jsonl", pairs)], *rest)


X, PROBS = Tensor("x", "FP32", (4,)), Tensor("probs", "FP32", (3,))


@pytest.mark.parametrize("make", [open_inference, binary])
def test_tensors_of_the_protocol_are_rows_of_queries(tmp_path: Path, make: Any) -> None:
    told = read(tmp_path, of_rows(make, 60, rows=(1, 3)))
    assert (told.kind, told.model, told.batched, told.most_rows) == (OPEN_INFERENCE, "big/1", True, 3)
    assert (told.inputs, told.outputs) == ((X,), (PROBS,))
    assert (told.pairs, len(told.given), told.left_out) == (60, 120, ())
    np.testing.assert_allclose(told.given[1:4], inputs(3, seed=1), atol=1e-6)
    np.testing.assert_allclose(told.said, classes(told.given.astype(float)), atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "batched", "shape", "queries"),
    [((1,), True, (4,), 60), ((2,), False, (2, 4), 60), ((2, 1), True, (4,), 90)],
)
def test_an_axis_whose_length_never_changes_may_be_anything(
    tmp_path: Path, rows: tuple[int, ...], batched: bool, shape: tuple[int, ...], queries: int
) -> None:
    told = read(tmp_path, of_rows(open_inference, 60, rows))
    assert (told.batched, told.inputs[0].shape, len(told.given)) == (batched, shape, queries)


def test_json_with_one_array_each_needs_no_word(tmp_path: Path) -> None:
    pairs = of_rows(lambda x, y: json_pair({"x": x[0].tolist(), "top": 3}, {"probs": y[0].tolist(), "n": 1}), 60)
    told = read(tmp_path, pairs)
    assert (told.kind, told.batched, told.path) == (JSON, False, "/predict")
    assert (told.inputs, told.outputs) == ((Tensor("/x", "FP64", (4,)),), (Tensor("/probs", "FP64", (3,)),))
    assert told.answers.example["n"] == 1
    assert (told.answers.follows, told.answers.largest, told.answers.unsaid) == ({}, (), ())


def test_a_body_may_be_an_array_and_hold_several_queries(tmp_path: Path) -> None:
    told = read(tmp_path, of_rows(lambda x, y: json_pair(x.tolist(), y.tolist()), 60, rows=(2, 1)))
    assert (told.batched, told.inputs, len(told.given)) == (True, (Tensor("", "FP64", (4,)),), 90)


def test_lone_numbers_that_vary_are_the_input_where_there_is_no_array(tmp_path: Path) -> None:
    pairs = [json_pair({"age": n, "size": n / 3, "unit": 1}, {"price": n * 2, "id_": "a"}) for n in range(60)]
    told = read(tmp_path, pairs)
    assert [each.name for each in told.inputs] == ["/age", "/size"]
    assert told.outputs == (Tensor("/price", "INT64", ()),)
    np.testing.assert_allclose(told.given[7], [7, 7 / 3], atol=1e-6)


def test_labels_that_follow_from_the_largest_output_are_learned(tmp_path: Path) -> None:
    """And what describes the run is not said at all."""

    def answer(x: Any, y: Any) -> Pair:
        told = {
            "probs": y[0].tolist(),
            "label": f"c{y[0].argmax()}",
            "sure": float(y.max()),
            "request_id": str(x[0, 0]),
        }
        return json_pair({"x": x[0].tolist()}, told)

    told = read(tmp_path, of_rows(answer, 100), None, (), ("/probs",)).answers
    assert told.follows == {"/label": {"0": "c0", "1": "c1", "2": "c2"}}
    assert (told.largest, told.unsaid) == (("/sure",), ("/request_id",))


def test_what_does_not_follow_is_refused(tmp_path: Path) -> None:
    pairs = [json_pair({"x": [n, 1]}, {"y": [n, 2], "word": f"w{n % 7}"}) for n in range(60)]
    with pytest.raises(TrainingError, match=r"/word differs from answer to answer and does not follow from /y"):
        read(tmp_path, pairs)


def test_a_few_of_another_form_are_left_out_and_named(tmp_path: Path) -> None:
    wide = open_inference(inputs(1, numbers=5), np.ones((1, 3)))
    broken = Pair("big/1", "/v2/models/big/infer", "", b"\xff{", "", b"{}")
    text = open_inference(inputs(1), np.ones((1, 3)))
    text = Pair(text.model, text.path, "", text.body.replace(b"FP32", b"BYTES"), "", text.answer)
    told = read(tmp_path, [*of_rows(open_inference, 60), wide, broken, text])
    assert (told.pairs, told.left_out_count, len(told.given)) == (63, 3, 60)
    assert sorted(told.left_out) == [
        "another form, x FP32 [5] -> probs FP32 [3] (1)", "input x is BYTES: a student learns numbers (1)",
        "the body is no JSON (1)",
    ]  # fmt: skip


def test_many_of_another_form_are_an_error(tmp_path: Path) -> None:
    others = [open_inference(inputs(1, seed, 5), np.ones((1, 3))) for seed in range(20)]
    with pytest.raises(TrainingError, match=r"20 of 80 pairs .* another form, x FP32 \[5\] -> probs FP32 \[3\] \(20\)"):
        read(tmp_path, [*of_rows(open_inference, 60), *others])


def _changed(old: bytes, new: bytes) -> list[Pair]:
    pairs = of_rows(open_inference, 60)
    return [Pair(p.model, p.path, p.content_type, p.body.replace(old, new), p.answer_type, p.answer) for p in pairs]


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([], "there are no pairs in .*pairs.jsonl; record some with ts-parity record"),
        (of_rows(open_inference, 10), "10 queries are too few"),
        (of_rows(open_inference, 30) * 3, "90 queries, 30 of them different, are too few"),
        (_changed(b"[1, 4]", b"[1, 5]"), r"input x has 4 numbers and the shape \[1, 5\] \(60\)"),
        (_changed(b'"inputs"', b'"other"'), "there are no inputs in it"),
        (_changed(b'"datatype"', b'"kind"'), "one of its inputs lacks a name, a datatype or a shape"),
        (_changed(b'"data": [', b'"data": [1e99, '), "not finite"),
        (_changed(b'"data": [', b'"data": ["a", '), "x holds no numbers"),
        ([Pair("m/1", "/p", "image/png", b"\x89PNG", "application/json", b"[1, 2]")] * 60, "no JSON .*image/png"),
        ([json_pair({"a": [1, n], "b": [2, n]}, [n, 1]) for n in range(60)], "parts of a request.*/a, /b.*--input"),
        ([json_pair([n, 1], {"a": [1, n], "b": [2, n]}) for n in range(60)], "parts of an answer.*/a, /b.*--output"),
        ([json_pair({"q": "text"}, [n, 1]) for n in range(60)], "no numbers that differ from request to request"),
        ([json_pair([n], [n], model=f"m{n % 2}/1") for n in range(60)], "pairs of m0/1, m1/1: say with --protects"),
        ([json_pair([n % 55, 1], [n, 1]) for n in range(110)], "55 of 55 requests that came again had another answer"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_says_why(tmp_path: Path, pairs: list[Pair], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        read(tmp_path, pairs)


def test_one_of_several_models_is_taken_by_name(tmp_path: Path) -> None:
    pairs = [json_pair([n, 1], [n, 1], model=f"m{n % 2}/1") for n in range(120)]
    assert len(read(tmp_path, pairs, "m1").given) == len(read(tmp_path, pairs, "m1/1").given) == 60
    with pytest.raises(TrainingError, match="has no pairs of m2; there are m0/1, m1/1"):
        read(tmp_path, pairs, "m2")


def test_pointers_may_be_named(tmp_path: Path) -> None:
    pairs = [json_pair({"a": [{"b/c": [1, n]}], "d": [n]}, [[n, 2], {"x": 1}]) for n in range(60)]
    told = read(tmp_path, pairs, None, ("/a/0/b~1c",), ("/0",))
    assert (told.inputs[0].shape, told.outputs[0].shape) == ((2,), (2,))
    with pytest.raises(TrainingError, match=r"none of the 60 pairs .* it has no /e \(60\)"):
        read(tmp_path, pairs, None, ("/e",), ("/0",))
    with pytest.raises(TrainingError, match="begins with /"):
        read(tmp_path, pairs, None, ("a",))
    with pytest.raises(TrainingError, match="name their tensors"):
        read(tmp_path, of_rows(open_inference, 60), None, ("/inputs",))


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    files = [written(tmp_path / str(seed), of_rows(open_inference, 30, seed=seed)) for seed in (1, 2)]
    assert len(read_recorded(files).given) == 60
    assert json.loads(files[0].read_text().splitlines()[1])["model"] == "big/1"

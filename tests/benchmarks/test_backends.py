"""The benchmark before other model servers: what it configures, how it knows a wrong answer, and its table."""

from __future__ import annotations

import json

import pytest

import backends
from backend_programs.emulated import scores
from backend_servers import DEPLOYED, KINDS, STUDENT, ModelServer
from ts_parity.lab.records import QueryRecord


def answer(kind: str, model: str, number: int) -> bytes:
    values = scores(model, backends._row(number))
    told = {"scores": values} if kind == "litserve" else {"outputs": [{"data": values}]}
    return json.dumps(told).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_known_by_its_input_whichever_model_gave_it(kind):
    read = backends.reader(KINDS[kind])
    for number in range(50):
        assert {read(answer(kind, model, number)) for model in (DEPLOYED, STUDENT)} == {str(number)}
    off = json.loads(answer(kind, DEPLOYED, 3))
    (off["scores"] if kind == "litserve" else off["outputs"][0]["data"])[0] += 0.01
    assert read(json.dumps(off).encode()) == backends.WRONG


def test_an_answer_to_another_query_is_wrong():
    right, other = (QueryRecord(0, 0.0, 0.0, 0.05, "deployed", 200, said, "1") for said in ("1", "2"))
    assert backends.wrong([right, other]) == 1


@pytest.mark.parametrize(
    ("kind", "model", "student"), [("triton", "deployed", "student"), ("litserve", "/predict", "/student")]
)
def test_the_proxy_is_told_addresses_places_and_the_student(kind, model, student, tmp_path):
    server = ModelServer(KINDS[kind], tmp_path)
    server.url = "http://127.0.0.1:1"
    plain, protected = (backends.configuration([server], student=wanted) for wanted in (False, True))
    assert plain.splitlines() == [
        "[[instance]]",
        'inference = "http://127.0.0.1:1"',
        f'kind = "{KINDS[kind].kind}"',
        "places = 1",
    ]
    assert f'name = "{model}"\nstudent = "{student}"\ncost = 0.25' in protected


def test_the_table_compares_seed_by_seed():
    row = {"server": "triton", "p50_ms": 50.0, "p999_ms": None, "errors": 0, "lost": 0, "wrong": 0, "rebuilt": 3,
           "queries": 100, "work": 1.02}  # fmt: skip
    p99 = {"plain": (200.0, 400.0), "copies": (100.0, 120.0), "student": (60.0, 90.0)}
    rows = [{**row, "arm": arm, "seed": seed, "p99_ms": each[seed]} for arm, each in p99.items() for seed in (0, 1)]
    assert backends.ratios(rows, "triton", "copies") == [0.6, 0.75]
    text = backends.sections({"rows": rows})["backends"]
    assert "| 0.60, 0.75 | 0.65 | missed |" in text
    assert "| 0.30, 0.23 | 0.4 | reached |" in text
    assert "| triton | 0 | a student late | 50 | 60 | - | 0 | 0 | 0 | 3.00% | 1.02 |" in text

"""The overload benchmark: one cell of each kind of client, and the table made of its rows."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    """A script beside its helpers, which it imports by their names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


overload = load("overload")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("clients", ["deadline 0.3 s", "deadline 1 s", "leave after 1 s"])
@pytest.mark.parametrize("fleet", ["cv 0.1", "cv 0.5", "batches"])
def test_at_twice_the_load_nine_tenths_of_capacity_are_answers_in_time(fleet, clients):
    run = overload.one_run(fleet, clients, 2.0, seed=1)
    assert run["goodput"] >= 0.9
    alone = overload.SERVICE_S * (1 + (1 - overload.SAVES) * (overload.FLEETS[fleet][1] - 1))
    assert run["after_p50_s"] < 1.3 * alone


def test_patient_clients_lose_nothing():
    assert overload.one_run("cv 0.1", "patient", 2.0, seed=1)["goodput"] >= 0.98


def test_the_table_has_a_line_for_each_kind_of_client_and_fleet():
    row = {"goodput": 0.5, "answered_p50_s": 0.1, "after_p50_s": 0.2, "seeds": 1}
    rows = [
        {"fleet": fleet, "clients": clients, "load": load, **row}
        for fleet in overload.FLEETS
        for clients in overload.CLIENTS
        for load in overload.LOADS
    ]
    assert overload.table(rows).count("50%, 100, 200") == len(rows)

"""The overload benchmark: one cell of each kind of client, and the table made of its rows."""

import asyncio

import overload
import overload_torchserve as real
import pytest

from tests.conftest import NO_TORCH

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


@pytest.mark.long
@pytest.mark.torchserve
def test_before_a_real_torchserve_every_query_gets_one_answer(torchserve_factory, tmp_path):
    """How many of them come in time is the benchmark's business: a busy machine changes it."""
    instance = torchserve_factory([real.archive(tmp_path)], workers=real.WORKERS, env=NO_TORCH)
    cases = [real.Case(knows, 1.0, 3.0, overloaded_s=1.5, quiet_s=0.5) for knows in (True, False)]
    outcomes = asyncio.run(real.run(instance, cases))
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome.statuses.keys() <= {"200", "503", "504", "left"}
        asked = round(3 * outcome.capacity * 1.5) + round(outcome.capacity / 2 * 0.5)
        assert sum(outcome.statuses.values()) == asked
        assert outcome.statuses["200"] > 0
        assert f"| {case.name} | 3 |" in real.table(outcomes)

"""What traces cost is measured of queries that are told of, and of queries that are not."""

import argparse

import pytest

import metrics


@pytest.mark.slow
def test_some_queries_are_told_of_where_some_tasks_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # so that it is restored
    calm, troubled = metrics.tracing(argparse.Namespace(queries=2000, runs=1))
    assert 0 <= calm["told"] < 0.02 < troubled["told"] < 0.5
    assert troubled["tracing_us"] > calm["tracing_us"] > 0

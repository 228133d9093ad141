"""What operators copy: the dashboard's queries and the alerts are about metrics that there are, and a real Prometheus
that scrapes a live proxy has data for each of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.conftest import free_ports
from tests.proxy.conftest import MakeFleet, make_fleet  # noqa: F401 (a fixture)
from ts_parity.config import Settings
from ts_parity.engine import Fleet, Policy, Scheduler
from ts_parity.proxy.operations.reloading import Reloader
from ts_parity.proxy.serving.metrics import Metrics
from ts_parity.testing import FakeModel, FakeTorchServe, protection

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "monitoring/grafana-dashboard.json").read_text())
RULES = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text())["groups"][0]["rules"]
PAGE = (ROOT / "docs/monitoring.md").read_text()
VARIABLES = {"$job": "ts-parity", "$instance": ".*", "$pool": ".*", "$__rate_interval": "10s"}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus on this machine"
)


async def no_one(settings: Settings) -> tuple[str, ...]:
    return ()


def known() -> set[str]:
    metrics = Metrics(Scheduler(Fleet((), (), ()), Policy()).snapshot, Policy())
    metrics.config = Reloader(Settings(), no_one).families
    text = metrics.exposition(openmetrics=True).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {name + end for name, kind in kinds.items() for end in ends.get(kind, [""])}


@pytest.mark.parametrize("expr", [*(expr for _, expr in QUERIES), *(rule["expr"] for rule in RULES)])
def test_each_query_is_about_metrics_that_there_are(expr: str) -> None:
    named = set(re.findall(r"\b(?:ts_parity|process)_[a-z_]+\b", expr))
    assert named
    assert named <= known()


def test_the_dashboard_fits_any_grafana() -> None:
    """A fixed data source is the commonest reason for a dashboard without data."""
    sources = [target["datasource"] for panel in PANELS for target in panel["targets"]]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance", "pool"]
    assert DASHBOARD["uid"] is None
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert "$__interval" not in json.dumps(panel)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_each_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{rule['alert'].lower()}"
    assert f"### {rule['alert']}\n" in PAGE
    assert rule["labels"]["severity"] in ("critical", "warning")


@needs_prometheus
@pytest.mark.parametrize("what", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_finds_nothing(what: tuple[str, ...]) -> None:
    ran = subprocess.run(["promtool", *what], cwd=ROOT / "monitoring", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


class Prometheus:
    """A real one, on loopback, that scrapes one target each second."""

    def __init__(self, folder: Path, target: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        job = {"job_name": "ts-parity", "static_configs": [{"targets": [target]}]}
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": [job]}
        config["rule_files"] = [str(ROOT / "monitoring/alerts.yml")]
        (folder / "prometheus.yml").write_text(json.dumps(config))
        flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        flags += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=error"]
        self._process = subprocess.Popen(["prometheus", *flags], stdout=sys.stderr)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    async def ask(self, http: aiohttp.ClientSession, path: str, **params: Any) -> Any:
        async with http.get(f"{self.url}/api/v1/{path}", params=params) as answer:
            told = await answer.json()
            assert told["status"] == "success", told
            return told["data"]


@pytest.fixture
def prometheus_of(tmp_path: Path) -> Iterator[Any]:
    started: list[Prometheus] = []

    def start(target: str) -> Prometheus:
        started.append(Prometheus(tmp_path, target))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.mark.slow
@needs_prometheus
async def test_a_real_prometheus_has_data_for_every_panel(make_fleet: MakeFleet, prometheus_of: Any) -> None:  # noqa: F811
    instances = [FakeTorchServe(FakeModel(latency_s=0.005)) for _ in range(3)]
    instances.append(FakeTorchServe(protection(code="student", k=1)))
    fleet = await make_fleet(*instances, deadline_s=5.0, differing=0.5, extra_work=0.5, proved=False)
    exposition = (await fleet.admin.get("/metrics")).body
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=exposition, capture_output=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    prometheus = prometheus_of(fleet.proxy.admin_url.removeprefix("http://"))
    ends_at = time.monotonic() + 90.0
    missing = {*QUERIES}

    loads = True

    async def load() -> None:
        for number in itertools.count():
            if not loads:
                return
            if number % 20 == 10:
                instances[0].freeze()
            elif number % 20 == 0:
                instances[0].thaw()
            await fleet.post(x_request_id=f"q{number}")
            await asyncio.sleep(0.01)

    loading = asyncio.create_task(load())
    try:
        async with aiohttp.ClientSession() as http:
            while missing and time.monotonic() < ends_at:
                await asyncio.sleep(1.0)
                for title, expr in [*missing]:
                    if await _has_data(prometheus, http, expr):
                        missing.remove((title, expr))
            assert missing == set()
            exemplars = "query_exemplars"
            now = time.time()
            query = "ts_parity_query_duration_seconds_bucket"
            found = await prometheus.ask(http, exemplars, query=query, start=now - 300, end=now)
            assert any("request_id" in one["labels"] for series in found for one in series["exemplars"])
    finally:
        loads = False
        instances[0].thaw()
        await asyncio.gather(loading, return_exceptions=True)


async def _has_data(prometheus: Prometheus, http: aiohttp.ClientSession, expr: str) -> bool:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    try:
        told = await prometheus.ask(http, "query", query=expr)
    except aiohttp.ClientError:  # it is only starting
        return False
    return any(sample["value"][1] not in ("NaN", "+Inf") for sample in told["result"])

"""Load and faults on a real TorchServe instance behind a gate: what clients see, and that all is well afterwards."""

import json
from contextlib import nullcontext

import psutil
import pytest

from tests.conftest import write_archive
from ts_parity.cli import main
from ts_parity.lab import live as lab_live
from ts_parity.lab.emulation import Emulation, emulate, make_spells
from ts_parity.lab.faults import CONTEND, FREEZE, FREEZE_SERVER, KILL, RESET, RESTART, Fault
from ts_parity.lab.live import (
    Trouble,
    behind_gates,
    carriers_of,
    machines,
    register,
    run_arm,
    started,
    unregister,
    wait_until_ready,
)
from ts_parity.lab.scenario import Spells
from ts_parity.lab.traffic import LabelledBody, poisson_load
from ts_parity.torchserve.archive import pack


class FakeInstance:
    """An instance that is its own management API, and knows which archives it has: each life anew."""

    def __init__(self, archives, options, name, ports=None):
        self.options, self.name, self.ports = options, name, ports
        self.has = [archive.stem for archive in archives]

    def start(self): ...

    def stop(self, orderly=True): ...

    def management(self):
        return nullcontext(self)

    def add_archive(self, archive):
        return archive.name

    def register(self, url):
        assert url.removesuffix(".mar") not in self.has, "TorchServe refuses what is there already"
        self.has.append(url.removesuffix(".mar"))

    def unregister(self, model):
        self.has.remove(model)


def test_an_instance_comes_back_with_what_stood_beside_its_model(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_live, "TorchServeInstance", FakeInstance)
    own, exact, student = (write_archive(tmp_path / f"{name}.mar") for name in ("own", "exact", "student"))
    fleet = machines([[own], [own]], tmp_path / "machines")
    restart = carriers_of(fleet)[RESTART]
    register(fleet, exact)
    restart(Fault(0.0, 0, RESTART))()
    restart(Fault(0.0, 0, RESTART))()
    assert [live.instance.has for live in fleet] == [["own", "exact"]] * 2
    unregister(fleet, "exact")
    register(fleet[:1], student)
    for index in (0, 1):
        restart(Fault(0.0, index, RESTART))()
    assert [live.instance.has for live in fleet] == [["own", "student"], ["own"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """-> one machine whose model answers 1 after 5 ms, and the process of its gate."""
    folder = tmp_path_factory.mktemp("live")
    handler = folder / "own.py"
    handler.write_text("def handle(data, context):\n    return None if data is None else [b'1'] * len(data)\n")
    archive = emulate(pack(folder, model_name="own", handler=handler), folder / "slow", Emulation(0.005, cv=0.0))
    fleet = machines([[archive]], folder / "machines")
    with started(fleet), behind_gates(fleet, seed=0) as process:
        yield fleet, process


@pytest.mark.long
@pytest.mark.torchserve
@pytest.mark.slow
def test_a_bench_of_a_real_instance_whose_worker_is_frozen(served, tmp_path, capsys):
    [live], _ = served
    bodies = tmp_path / "bodies"
    bodies.mkdir()
    (bodies / "one.json").write_text("7")
    [worker] = live.worker_pids()
    page = tmp_path / "bench.html"
    code = main(
        ["bench", "--target", f"{live.inference_url}/predictions/own", "--bodies", str(bodies),
         "--duration", "2s", "--rate", "30", "--freeze", str(worker), "--freeze-every", "400ms",
         "--freeze-for", "200ms", "--yes", "--json", "--html", str(page), "--fail-if", "lost>0",
         "--fail-if", "errors>0"]
    )  # fmt: skip
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    [row] = document["targets"]
    queries = row["queries"]
    assert document["inputs"]["load"].startswith(f"{queries} queries in 2.0 s")
    assert (row["answered"], row["sources"]) == (queries, {"deployed": queries})
    assert document["inputs"]["faults"].endswith("times freeze")
    assert psutil.Process(worker).status() != psutil.STATUS_STOPPED
    assert "<svg" in page.read_text()


@pytest.mark.long
@pytest.mark.torchserve
@pytest.mark.slow
def test_each_fault_strikes_a_real_instance_and_leaves_it_serving(served, tmp_path):
    fleet, process = served
    register(fleet, write_archive(tmp_path / "beside.mar"))
    faults = (
        Fault(0.2, 0, CONTEND, 1.0, 0.01),
        Fault(0.5, 0, RESET),
        Fault(1.5, 0, FREEZE, 0.3),
        Fault(2.5, 0, FREEZE_SERVER, 0.3),
        Fault(3.5, 0, KILL),
        Fault(4.0, 0, RESTART, 0.5),
    )
    bodies = [LabelledBody(b"x")]
    url = f"{fleet[0].inference_url}/predictions/own"
    before = fleet[0].instance.pid
    spells = make_spells(Spells(0.5, 0.5, 3.0), 1, 5.0, seed=0)
    load = poisson_load(150, 30.0, 1, seed=0)
    records, struck = run_arm(fleet, [url], load, bodies, json.loads, Trouble(spells, faults), seed=0, process=process)
    assert struck == {CONTEND: 1, RESET: 1, FREEZE: 1, FREEZE_SERVER: 1, KILL: 1, RESTART: 1}
    assert len(records) == 150
    assert any(not record.answered for record in records), "nobody stands in for a single instance"
    assert fleet[0].instance.pid != before
    wait_until_ready(fleet)
    with fleet[0].instance.management() as management:
        assert {model.name for model in management.models()} == {"own", "beside"}
    [one] = run_arm(fleet, [url], poisson_load(1, 10.0, 1, seed=1), bodies, json.loads, Trouble(), seed=0)[0]
    assert one.outcome == "deployed"
    assert one.predicted == 1
    unregister(fleet, "beside")

"""An emulated accelerator takes the time it is told to, and answers what the archive's own handler says."""

import itertools
import math
import sys
import threading
import time
import types
import zipfile

import pytest
import yaml

from ts_parity.describe import customized_of
from ts_parity.errors import ConfigError
from ts_parity.lab import emulated_handler
from ts_parity.lab.emulated_handler import MACHINE, SECTION, EmulatedMachine, batch_cost, costs_of, ends
from ts_parity.lab.emulation import HANDLER, Emulation, MachineFile, emulate, make_spells, of_machine
from ts_parity.lab.scenario import Outage, Spells
from ts_parity.torchserve.archive import pack, read_archive, wrap_deployed, wrap_parity
from ts_parity.wire import Frame, Part, pack_frame

SAYS = {"cost": 1.0, "combined": False, "body_bytes": 0}


@pytest.mark.parametrize(
    ("begins", "takes", "slow", "expected"),
    [
        (0.0, 1.0, [], 1.0),
        (0.0, 1.0, [(2.0, 3.0, 5.0)], 1.0),
        (5.0, 1.0, [(2.0, 3.0, 5.0)], 6.0),
        (2.0, 0.5, [(1.0, 9.0, 5.0)], 4.5),
        (0.0, 1.0, [(0.5, 1.5, 5.0)], 0.5 + 1.0 + 0.3),
        (0.0, 1.0, [(0.5, 3.0, math.inf)], 3.5),
        (1.0, 1.0, [(0.5, 3.0, math.inf)], 4.0),
        (0.0, 2.0, [(0.5, 1.0, math.inf), (1.5, 2.5, 2.0)], 3.0),
    ],
)
def test_what_is_slow_takes_longer_for_as_long_as_it_is_slow(begins, takes, slow, expected):
    assert ends(begins, takes, slow) == pytest.approx(expected)


@pytest.mark.parametrize(("saves", "expected"), [(0.0, 3.5), (1.0, 2.0), (0.5, 2.75)])
def test_a_batch_costs_the_largest_and_what_the_others_do_not_save(saves, expected):
    assert batch_cost([1.0, 2.0, 0.5], saves) == expected


def frame(*bodies):
    return pack_frame(Frame(tuple(None if body is None else Part((), body) for body in bodies)))


@pytest.mark.parametrize(
    ("headers", "body", "says", "costs"),
    [
        ({}, b"123", {}, [1.0]),
        ({"x-ts-parity-op": "raw"}, b"123", {"cost": 0.5}, [0.5]),
        ({}, b"1234", {"body_bytes": 2}, [2.0]),
        ({"Content-Length": "6"}, {"parsed": 1}, {"body_bytes": 2}, [3.0]),
        ({"describe": "True"}, b"", {}, []),
        ({"X-TS-Parity-Op": "finish"}, b"anything", {}, []),
        ({"x-ts-parity-op": "group"}, frame(b"12", b"1234"), {"cost": 0.25}, [0.25, 0.25]),
        ({"x-ts-parity-op": "group"}, frame(b"12", None), {}, [1.0]),
        ({"x-ts-parity-op": "group"}, frame(b"12", b"1234"), {"body_bytes": 2}, [1.0, 2.0]),
        ({"x-ts-parity-op": "group"}, frame(b"12", b"1234"), {"body_bytes": 2, "combined": True}, [2.0]),
    ],
)
def test_a_request_costs_the_inferences_that_it_asks_for(headers, body, says, costs):
    assert costs_of({"body": body}, headers, SAYS | says) == costs


@pytest.mark.parametrize(
    ("row", "headers", "cost"),
    [
        ({"image": bytearray(b"1234")}, {}, 2.0),
        ({"image": b"1234", "words": "12"}, {}, 3.0),
        ({"body": b"12", "data": b"12"}, {}, 2.0),
        ({"image": b"1234", "options": {"parsed": 1}}, {"content-length": "8"}, 4.0),
        (b"1234", {}, 2.0),
        ({}, {}, 0.0),
    ],
)
def test_a_form_is_as_large_as_its_fields(row, headers, cost):
    assert costs_of(row, headers, SAYS | {"body_bytes": 2}) == [cost]


def test_draws_have_mean_one_and_the_given_spread():
    import random
    import statistics

    rng = random.Random(0)
    drawn = [emulated_handler.draw(rng, 0.3) for _ in range(20_000)]
    assert statistics.mean(drawn) == pytest.approx(1.0, abs=0.01)
    assert statistics.stdev(drawn) == pytest.approx(0.3, abs=0.01)
    assert emulated_handler.draw(rng, 0.0) == 1.0


@pytest.mark.parametrize("wrong", [{"service_s": 0}, {"cv": -1}, {"saves": 1.5}, {"body_bytes": -1}])
def test_an_impossible_accelerator_is_refused(wrong):
    with pytest.raises(ConfigError, match="cannot be emulated"):
        Emulation(**wrong)


@pytest.mark.parametrize(
    ("emulation", "told"),
    [
        (Emulation(), "50 ms, cv 0.1; k in a batch take k times as long"),
        (Emulation(0.02, 0.0, saves=0.75), "20 ms, always; k in a batch take 1 + 0.25 (k - 1) times as long"),
    ],
)
def test_what_a_batch_costs_is_told(emulation, told):
    assert emulation.described() == f"emulated accelerators: an inference is a wait of {told}"


def test_spells_are_those_of_the_seed_and_never_overlap():
    spells = Spells(share=0.2, mean=1.0, factor=5.0)
    made = make_spells(spells, 30, 200.0, seed=3)
    assert made == make_spells(spells, 30, 200.0, seed=3) != make_spells(spells, 30, 200.0, seed=4)
    for machine in range(30):
        own = of_machine(made, machine)
        assert all(one.ends_at <= other.at for one, other in itertools.pairwise(own))
    slow_s = sum(min(outage.ends_at, 200.0) - outage.at for outage in made)
    assert slow_s / (30 * 200.0) == pytest.approx(0.2, abs=0.02)
    together = make_spells(Spells(0.2, 1.0, math.inf, by_domain=True), 2, 50.0, seed=3)
    assert [(o.at, o.kind) for o in of_machine(together, 0)] == [(o.at, o.kind) for o in of_machine(together, 1)]
    assert together[0].kind == "frozen"
    assert make_spells(Spells(0.0, 1.0, 5.0), 2, 50.0, seed=3) == ()


def test_a_machine_file_is_read_again_when_it_has_changed(tmp_path):
    file = MachineFile(tmp_path / "m.json")
    machine = EmulatedMachine(file.env[MACHINE])
    assert machine.state() == ({"seed": 0, "started_at": 0.0, "slow": []}, True)
    assert machine.state()[1] is False
    file.set([Outage("m0", 1.0, 2.0, "slow", 3.0), Outage("m0", 5.0, 1.0)], 7.0, seed=9, emulation=Emulation(0.02))
    state, new = machine.state()
    assert new
    assert state["slow"] == [[1.0, 3.0, 3.0], [5.0, 6.0, math.inf]]
    assert (state["started_at"], state["seed"], state["service"]["service_s"]) == (7.0, 9, 0.02)
    with pytest.raises(ConfigError, match="not dead"):
        file.set([Outage("m0", 1.0, 2.0, "dead")])


def test_all_models_of_a_machine_take_turns_at_it(tmp_path):
    one, other = (EmulatedMachine(MachineFile(tmp_path / "m.json").env[MACHINE]) for _ in range(2))
    order, has_it = [], threading.Event()

    def first():
        with one.turn():
            has_it.set()
            time.sleep(0.05)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    has_it.wait()
    with other.turn():
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


@pytest.fixture
def archive(tmp_path):
    handler = tmp_path / "own.py"
    handler.write_text("def handle(data, context):\n    return None if data is None else [b'own'] * len(data)\n")
    return pack(tmp_path / "made", model_name="own", handler=handler)


@pytest.mark.slow
def test_an_emulated_archive_keeps_all_that_it_had(archive, tmp_path):
    made = read_archive(emulate(archive, tmp_path / "slow", Emulation(0.02, saves=0.5)))
    assert (made.model_name, made.handler) == ("own", HANDLER)
    assert made.config[SECTION]["handler"] == "own.py"
    assert made.read("own.py") == read_archive(archive).read("own.py")
    again = read_archive(emulate(made.path, tmp_path / "slower", Emulation(0.04)))
    assert again.config[SECTION]["handler"] == "own.py"
    assert again.config[SECTION]["service_s"] == 0.04


@pytest.mark.slow
@pytest.mark.parametrize(("saves", "cost"), [(0.0, 0.5), (1.0, 0.25)])
def test_an_emulated_protection_declares_the_cost_that_is_emulated(archive, tmp_path, saves, cost):
    exact = wrap_parity(archive, tmp_path, code="exact", k=2, cost=7.0)
    made = read_archive(emulate(exact, tmp_path / "slow", Emulation(saves=saves), cost=0.25))
    assert made.section["cost"] == cost
    assert made.config[SECTION]["combined"] is False
    assert made.config[SECTION]["handler"] == "ts_parity_parity.py"
    deployed = read_archive(emulate(wrap_deployed(archive, tmp_path), tmp_path / "slow", Emulation()))
    assert "cost" not in deployed.section


HANDLERS = """
started = []

class Own:
    def initialize(self, context):
        started.append(context)

    def handle(self, data, context):
        return [b"of the class"]

def answers(data, context):
    started.append(context)
    return [b"of the function"]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "handler", "answer"),
    [
        ("emulated_own", "emulated_own.py", b"of the class"),
        ("emulated_own", "sub/emulated_own.py:answers", b"of the function"),
        ("ts.torch_handler.emulated_stock", "emulated_stock", b"of the class"),
    ],
)
def test_the_own_handler_is_found_as_torchserve_finds_it(module, handler, answer, monkeypatch):
    made = types.ModuleType(module)
    exec(HANDLERS, made.__dict__)
    monkeypatch.setitem(sys.modules, module, made)
    entry = emulated_handler._load(handler, "context")
    assert made.started == ["context"]
    assert entry([{}], None) == [answer]


def served(config, entry, monkeypatch, machine=None):
    """The handler inside an archive, with an entry point of the test's own."""
    monkeypatch.setattr(emulated_handler, "_load", lambda handler, context: entry)
    if machine is not None:
        monkeypatch.setenv(MACHINE, machine.env[MACHINE])
    context = types.SimpleNamespace(
        model_yaml_config={SECTION: config},
        manifest={"model": {"modelName": "m", "handler": HANDLER}},
        request_processor=[types.SimpleNamespace(get_request_properties=dict)],
    )
    emulated_handler.handle(None, context)
    return context


CONFIG = {"handler": "own.py", "service_s": 0.02, "cv": 0.0, "body_bytes": 0, "saves": 0.0, "cost": 1.0,
          "combined": False}  # fmt: skip


def test_an_answer_is_held_until_its_time_has_passed(monkeypatch, tmp_path):
    context = served(CONFIG, lambda data, context: [row["body"] for row in data], monkeypatch)
    assert context.manifest["model"]["handler"] == "own.py"
    began = time.monotonic()
    assert emulated_handler.handle([{"body": b"x"}], context) == [b"x"]
    assert time.monotonic() - began >= 0.02


def test_a_failure_takes_its_time_too(monkeypatch, tmp_path):
    def fails(data, context):
        raise RuntimeError("out of memory")

    context = served(CONFIG, fails, monkeypatch, MachineFile(tmp_path / "m.json"))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="out of memory"):
        emulated_handler.handle([{"body": b"x"}], context)
    assert time.monotonic() - began >= 0.02


def test_a_slow_machine_holds_it_longer(monkeypatch, tmp_path):
    machine = MachineFile(tmp_path / "m.json")
    context = served(CONFIG, lambda data, context: [b"y"], monkeypatch, machine)
    machine.set([Outage("m0", -1.0, 1e6, "slow", 4.0)], started_at=time.monotonic())
    began = time.monotonic()
    emulated_handler.handle([{"body": b"x"}], context)
    assert time.monotonic() - began >= 0.08


@pytest.mark.long
@pytest.mark.torchserve
@pytest.mark.slow
def test_a_real_worker_waits_and_answers_as_its_own_handler(archive, tmp_path):
    """A deployed model and its `exact` protection, on one emulated accelerator, in real TorchServe."""
    import requests

    from ts_parity.lab.live import machines
    from ts_parity.torchserve.launcher import start_fleet

    exact = wrap_parity(archive, tmp_path, "twin", code="exact", k=2)
    hosted = [emulate(each, tmp_path / "slow", Emulation(0.2, cv=0.0)) for each in (archive, exact)]
    [live] = machines([hosted], tmp_path / "machines")
    with start_fleet([live.instance]):
        url = f"{live.instance.inference_url}/predictions"
        requests.post(f"{url}/own", data=b"x", timeout=60)
        began = time.monotonic()
        assert requests.post(f"{url}/own", data=b"x", timeout=60).content == b"own"
        assert time.monotonic() - began >= 0.2
        headers = {"content-type": "application/x-ts-parity-group", "x-ts-parity-op": "group"}
        began = time.monotonic()
        answer = requests.post(f"{url}/twin", data=frame(b"x", b"y"), headers=headers, timeout=60)
        assert time.monotonic() - began >= 0.4, "two inferences, for saves is 0"
        assert answer.content.count(b"own") == 2
        [described] = requests.get(f"{live.instance.management_url}/models/twin?customized=true", timeout=60).json()
        assert customized_of(described)["ts_parity"]["cost"] == 2.0
        assert len(live.worker_pids()) == 2


def test_the_config_of_the_archive_is_kept(tmp_path):
    handler, config = tmp_path / "own.py", tmp_path / "own.yaml"
    handler.write_text("def handle(data, context): ...\n")
    config.write_text("responseTimeout: 7\nown: {a: 1}\n")
    made = emulate(
        pack(tmp_path, model_name="own", handler=handler, config_file=config), tmp_path / "slow", Emulation()
    )
    with zipfile.ZipFile(made) as opened:
        kept = yaml.safe_load(opened.read("own.yaml"))
    assert kept["responseTimeout"] == 7
    assert kept["own"] == {"a": 1}

"""Deployed models that compute in half precision or float64, or of which nothing can be learned but their answers."""

import io

import numpy as np
import pytest
import torch

from tests.conftest import write_archive
from ts_parity.errors import TrainingError
from ts_parity.torchserve.archive import extract_archive, read_archive
from ts_parity.training import TrainSettings, sizing, train
from ts_parity.training.architectures import DeployedModel, Shapes
from ts_parity.training.sizing import NARROWEST, affordable_width, multiplications, widest
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.watches import ModelCall

NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 32)
        self.b = torch.nn.Linear(32, 3)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))
"""
HANDLER = """
import json
import torch
from ts.torch_handler.base_handler import BaseHandler

class Handler(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.dtype = torch.{dtype}
        {cast}
    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data], dtype=self.dtype)
    def postprocess(self, scores):
        return [{{"best": int(row.argmax()), "scores": row.tolist()}} for row in scores]
"""
KINDS = ("bfloat16", "float16", "float64", "scripted half", "frozen", "frozen half", "quantized")


def network():
    scope = {}
    exec(NET, scope)
    torch.manual_seed(3)
    return scope["Net"]().eval()


def scripted(net, dtype=torch.float32):
    return torch.jit.trace(net, torch.zeros(1, 8, dtype=dtype))


def saved(kind):
    """-> the serialised file, whether a model file belongs to it, the dtype of inputs, and a cast after loading."""
    net, buffer = network(), io.BytesIO()
    if kind in ("bfloat16", "float16", "float64"):
        torch.save(net.state_dict(), buffer)
        return buffer.getvalue(), True, kind, "self.model = self.model.to(self.dtype)"
    if kind == "quantized":
        net = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, dtype=torch.qint8)
    if "half" in kind:
        net = net.half()
    script = scripted(net, torch.float16 if "half" in kind else torch.float32)
    torch.jit.save(torch.jit.freeze(script) if "frozen" in kind else script, buffer)
    return buffer.getvalue(), False, "float16" if "half" in kind else "float32", "pass"


@pytest.fixture
def archive(tmp_path):
    def make(kind):
        weights, eager, dtype, cast = saved(kind)
        path = write_archive(
            tmp_path / "vec.mar",
            HANDLER.format(dtype=dtype, cast=cast),
            name="vec",
            serialized=weights,
            files={"net.py": NET},
            model_file="net.py" if eager else None,
        )
        return path

    return make


def records(packed, bodies, tmp_path):
    """What a packed archive's own handler does with the first bodies."""
    extract_archive(packed, tmp_path / packed.stem)
    with OfflineHandler(tmp_path / packed.stem) as handler:
        lines = bodies.read_bytes().splitlines()[:2]
        return [handler.record(handler.request(line, "application/json"))[0] for line in lines]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_code_is_made_whatever_the_model_computes_in(archive, json_bodies, tmp_path, kind, monkeypatch):
    if kind == "quantized":  # of which no multiplications are counted: a network would be as wide as the clock allows
        monkeypatch.setattr("ts_parity.training.architecture_choice.affordable_width", lambda *_: 1.0)
    source, out = archive(kind), tmp_path / "out"
    codes = ("sum", "student", "exact")
    settings = TrainSettings(source, json_bodies, out, codes=codes, steps=150, score=json_bodies, progress=False)
    report = train(settings)
    by_code = {candidate["code"]: candidate for candidate in report["candidates"]}
    assert by_code["exact"]["agreement"] == 1.0
    assert by_code["exact"]["multiplications"] == 2.0
    assert by_code["sum"]["agreement"] > 0.5
    assert by_code["student"]["agreement"] > 0.5
    opaque = kind in ("frozen", "frozen half", "quantized")
    assert by_code["sum"]["architecture"] == ("mlp" if opaque else "deployed")
    assert any("cannot learn" in warning for warning in report["warnings"]) == opaque
    # The parity model of a copy is loaded by the handler itself and computes in the deployed model's dtype.
    packed = read_archive(out / by_code["sum"]["archives"][0])
    assert "parity_model" not in packed.section
    if not opaque:
        computed_in = {"float64": "", "scripted half": "float16"}.get(kind, kind)
        assert {record.computed_in for record in records(packed.path, json_bodies, tmp_path)} == {computed_in}


def called(model, dtype=torch.float32, size=8):
    return DeployedModel(model, ModelCall("self.model", "__call__", (torch.zeros(1, size, dtype=dtype),), {}), SHAPES)


SHAPES = Shapes((1, 8), (1, 3))


def test_multiplications_are_counted_in_the_models_own_dtype_or_not_at_all():
    net = network()
    assert multiplications(called(net), SHAPES) == 8 * 32 + 32 * 3
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert multiplications(called(network().to(dtype), dtype), SHAPES) == 8 * 32 + 32 * 3
    assert multiplications(called(torch.jit.freeze(scripted(net))), SHAPES) == 8 * 32 + 32 * 3
    quantized = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, dtype=torch.qint8)
    assert multiplications(called(quantized), SHAPES) is None
    assert multiplications(called(scripted(quantized)), SHAPES) is None
    assert multiplications(called(lambda x: torch.from_numpy(x.numpy()[:, :3])), SHAPES) is None
    assert multiplications(called(lambda x: x[:, :3]), SHAPES) is None, "nothing to measure by"


@pytest.mark.parametrize("layer", ["lstm", "encoder"])
def test_layers_that_run_fused_are_not_counted_as_free(layer):
    """Most of their work is done in one operator, which torch's counter does not know."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(8, 64, batch_first=True)
            self.encoder = torch.nn.TransformerEncoderLayer(8, 2, 64, batch_first=True)
            self.head = torch.nn.LazyLinear(3)

        def forward(self, x):
            x = x[:, None]
            return self.head((self.lstm(x)[0] if layer == "lstm" else self.encoder(x))[:, 0])

    net = Net().eval()
    net(torch.zeros(1, 8))
    counted = multiplications(called(net), SHAPES)
    assert counted is None or counted > 8 * 64


def test_the_widest_network_within_a_limit():
    assert widest(lambda width: width, 0.5) == pytest.approx(0.5, rel=1e-3)
    assert widest(lambda width: width, NARROWEST / 2) is None
    assert widest(lambda width: 1.0, 1.0) == pytest.approx(16.0, rel=1e-3)


@pytest.mark.usefixtures("the_clock")
@pytest.mark.parametrize(
    ("one", "budget", "width"),
    [
        (1.0, None, 1.0),  # as much as one deployed inference
        (1.0, 0.5, 0.5),
        (0.25, 8.0, 2.0),
    ],
)
def test_what_cannot_be_counted_is_sized_by_the_clock(monkeypatch, one, budget, width):
    """Here a group takes as many seconds as its network is wide."""
    assert sized_by_clock(monkeypatch, one, budget) == pytest.approx(width, rel=0.05)


def sized_by_clock(monkeypatch, one, budget, overhead=0.0):
    timed = []

    def in_turn(runs, device, rounds):
        seconds = [*(run() for run in runs[:-1]), one]
        timed.append(max(seconds))
        return np.array([seconds] * rounds)

    monkeypatch.setattr(sizing, "in_turn", in_turn)
    uncounted = called(lambda x: x[:, :3])
    cpu = torch.device("cpu")
    width = affordable_width(lambda width: lambda x: max(width, overhead), uncounted, SHAPES, 2, budget, cpu)
    assert max(timed) <= 2 * sizing.FAR * max(overhead, one * (budget or 1.0)), "much wider networks are not even tried"
    return width


@pytest.mark.parametrize("waited", [[1, 1, 1, 1, 1], [3, 1, 1, 1, 1], [1, 3, 1, 1, 1], [3, 3, 1, 1, 1]])
def test_a_network_that_was_kept_waiting_costs_no_more_than_a_wider_one(waited):
    """Else a busy machine would choose the narrowest."""
    widths, costs = [0.5, 1.0, 2.0, 4.0, 8.0], np.array([1.0, 1.0, 1.0, 2.0, 4.0])
    assert sizing.widest_of(widths, costs * waited, 2.0) == pytest.approx(4.0)
    assert sizing.widest_of(widths, costs * waited, 1.0) == pytest.approx(2.0)
    assert 2.0 < sizing.widest_of(widths, costs * waited, 1.1) < 2.5
    assert sizing.widest_of(widths, costs * waited, 9.0) == pytest.approx(8.0)


@pytest.mark.usefixtures("the_clock")
def test_a_network_that_is_all_overhead_is_as_wide_as_costs_no_more_time(monkeypatch):
    """Of a model that answers at once no network is as cheap: asked for nothing, the protection is one all the same."""
    assert sized_by_clock(monkeypatch, 0.1, None, overhead=0.5) == pytest.approx(0.55, rel=0.05)
    with pytest.raises(TrainingError, match=r"--budget 1 is too small: .* costs 5 .* in time. Give --budget 5 or more"):
        sized_by_clock(monkeypatch, 0.1, 1.0, overhead=0.5)
    assert sized_by_clock(monkeypatch, 0.1, 5.0, overhead=0.5) == pytest.approx(0.5, rel=0.05)

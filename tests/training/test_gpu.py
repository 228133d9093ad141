"""Training on GPUs and for them, as far as it shows without one; the rest is in tests/gpu."""

import io
import json

import numpy as np
import pytest
import torch

from tests.conftest import write_archive
from tests.training.test_texts import CALLS, seen
from ts_parity.errors import Exhausted, TrainingError
from ts_parity.torchserve.archive import read_archive
from ts_parity.training import TrainSettings, devices, fit, train
from ts_parity.training.architectures import BAG, DeployedModel, Shapes, make_model
from ts_parity.training.data import given_to
from ts_parity.training.devices import device_told, make_fabric, serving_device
from ts_parity.training.inputs import Calls
from ts_parity.training.workshop import workshop
from ts_parity.worker.watches import ModelCall

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Handler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row["body"] for row in data])
    def postprocess(self, scores):
        return [{"best": int(row.argmax())} for row in scores]
"""


def settings(tmp_path, **more):
    return TrainSettings(tmp_path / "a.mar", tmp_path / "in", tmp_path / "out", progress=False, **more)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bf16-mixed"), ((8, 0), "bf16-mixed"), ((7, 5), "16-mixed"), ((6, 1), "32-true")],
)
def test_half_precision_is_the_one_that_the_gpu_multiplies(monkeypatch, capability, precision):
    """A T4 would emulate bfloat16, in more time than float32 takes."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices._usual_precision(CUDA) == precision
    assert devices._usual_precision(CPU) == "32-true"


def test_costs_are_measured_on_the_device_that_will_serve(tmp_path):
    """Which need not be the one that learns."""
    fabric = make_fabric(settings(tmp_path, device="cpu"))
    assert serving_device(settings(tmp_path), fabric.device) == fabric.device
    assert serving_device(settings(tmp_path, serve_on="cpu"), CUDA) == CPU
    with pytest.raises(TrainingError, match="--serve-on cuda:7 cannot be used here"):
        serving_device(settings(tmp_path, serve_on="cuda:7"), CPU)


def test_the_report_names_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert device_told(CUDA).startswith("cuda:0, NVIDIA H200, CUDA")
    assert device_told(CPU) == "cpu"


@pytest.mark.slow
def test_another_device_gets_a_handler_of_its_own(tmp_path, monkeypatch):
    """Which is measured in place of the one that has been learned from."""
    net, buffer = torch.nn.Linear(4, 3), io.BytesIO()
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 4)), buffer)
    archive = write_archive(tmp_path / "lin.mar", HANDLER, serialized=buffer.getvalue())
    (tmp_path / "in").mkdir()
    for n, row in enumerate(np.random.default_rng(0).random((60, 4)).tolist()):
        (tmp_path / "in" / f"{n}.json").write_text(json.dumps(row))
    measured = []
    from ts_parity.training import candidates

    real = candidates.measure
    monkeypatch.setattr(candidates, "measure", lambda handler, *rest: measured.append(handler) or real(handler, *rest))
    learned = []
    monkeypatch.setattr(candidates.CandidateTrainer, "_learns_there", lambda self: bool(learned.append(self)))
    report = train(
        TrainSettings(
            archive,
            tmp_path / "in",
            tmp_path / "out",
            ("student",),
            serve_on="cpu",
            device="cpu",
            steps=2,
            progress=False,
        )
    )
    assert report["serve_on"] == report["device"] == "cpu"
    assert report["candidates"][0]["cost"] > 0
    assert measured[0] is not learned[0].handler
    assert read_archive(tmp_path / "out" / report["candidates"][0]["archives"][0]).section["cost_on"] == "cpu"


def test_inputs_lie_on_the_gpu_if_there_is_room(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    small, large = torch.zeros(10, 25), torch.zeros(10, 26)
    for inputs in (small, large):
        assert fit._near(inputs, CUDA) is inputs
    assert moved == [CUDA], "1000 bytes of 4000 that are free; 1040 are too many"
    assert fit._near(small, CPU) is small
    assert moved == [CUDA]


def test_a_gpu_out_of_memory_is_told_and_what_is_finished_stays(tmp_path):
    (tmp_path / "a.mar").write_bytes(b"an archive")

    def job():
        with workshop(settings(tmp_path), []) as work:
            (work / "seen").mkdir()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total ...")

    with pytest.raises(Exhausted, match=r"the GPU is out of memory .*name another --device"):
        job()
    assert (tmp_path / "out.unfinished" / "seen").exists()


def test_a_deployed_model_is_asked_in_the_precision_of_its_call():
    """Weights of bfloat16, float inputs: without the handler's autocast the two do not go together."""
    net = torch.nn.Linear(8, 3).bfloat16()
    call = ModelCall("self.model", "__call__", (torch.zeros(1, 8),), {}, autocast=(("cpu", torch.bfloat16),))
    said = DeployedModel(net, call, Shapes((1, 8), (1, 3)))(torch.ones(5, 1, 8))
    assert (said.shape, said.dtype) == ((5, 1, 3), torch.float32)


@pytest.mark.parametrize("name", ["numbers beside ids", "a user and an item", "ids and a mask"])
def test_texts_are_joined_where_they_lie_and_moved_once(tmp_path, name):
    """The calls lie on the CPU, the network elsewhere: `meta` is a second device that every machine has."""
    columns = seen(tmp_path, CALLS[name][0])
    calls = Calls(columns, np.arange(5))
    shapes = Shapes((), (1, 3), calls=calls)
    model = make_model(f"{BAG}:0.5", None, ModelCall("m", "__call__", (), {}), shapes).eval()
    assert model.to("meta")(calls).device.type == "meta"


def test_half_precision_on_a_gpu_is_kept_as_float32():
    call = ModelCall("m", "__call__", (torch.ones(1, 3, dtype=torch.bfloat16),), {})
    assert given_to(call)[0][1].dtype == torch.float32

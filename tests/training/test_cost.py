"""What a group costs is what the clock says of the packed archive, by pairs, with the threads that a worker has."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import write_archive
from tests.training.test_training import EAGER, HANDLER, NET, SCORES, net, run, serialised
from ts_parity.errors import NotCodable
from ts_parity.torchserve.archive import read_archive
from ts_parity.training import cost, sizing
from ts_parity.training.bodies import RequestBody
from ts_parity.training.commands import report_text
from ts_parity.wire import Frame, Part, unpack_frame
from ts_parity.worker.entry import OfflineProtection

CPU = torch.device("cpu")


@pytest.fixture
def archive(tmp_path):
    handler = HANDLER.replace("{load}", EAGER).replace("{finish}", SCORES)
    weights = serialised("eager", net())
    return write_archive(tmp_path / "vec.mar", handler, name="vec", serialized=weights, files={"net.py": NET})


class Clock:
    """Time passes only where somebody works."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        """Nobody works meanwhile."""


def measured(monkeypatch, answered, group_s, one_s, k=4):
    clock = Clock()
    threads = []

    class Fake:
        def __init__(self, folder, gpu_id):
            pass

        def answer(self, frame):
            return answered

        def prediction(self, frame):
            return self.predict

        def predict(self):
            clock.now += group_s
            threads.append(torch.get_num_threads())

    class Handler:
        request = staticmethod(lambda body, content_type: body)
        folder = Path()

        def prediction(self, request):
            return lambda: self.predict(request)

        def predict(self, request):
            clock.now += one_s[request]

    monkeypatch.setattr(sizing, "time", clock)
    monkeypatch.setattr(cost, "OfflineProtection", Fake)
    monkeypatch.setattr(cost, "extract_archive", lambda packed, folder: None)
    bodies = [RequestBody(str(n), None, lambda n=n: bytes([n])) for n in range(k)]
    return cost.measure(Handler(), "packed.mar", bodies, 0.97, CPU), threads


def answers(*statuses):
    return Frame(tuple(Part((), b"why", status) for status in statuses))


def test_a_group_is_compared_with_plain_requests_of_its_own_members(monkeypatch):
    """Some bodies take longer than others, and in the group they do so too."""
    one_s = {b"\0": 1.0, b"\1": 3.0, b"\2": 1.0, b"\3": 3.0}
    found, _ = measured(monkeypatch, answers(200, 200, 200, 200), 5.0, one_s)
    assert found == cost.Cost(2.5, 5000.0, 2000.0, 0.97)


def test_on_a_busy_machine_waiting_for_a_turn_is_no_work(monkeypatch):
    """Half of the groups, and none of the short runs, are stopped for others."""
    seconds = sizing.usual(np.array([(2.0, 1.0), (9.0, 1.0)] * 50))
    assert seconds.tolist() == [2.0, 1.0]


def test_the_clock_runs_with_the_threads_of_a_worker(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, threads = measured(monkeypatch, answers(200), 1.0, {b"\0": 1.0}, k=1)
        assert (set(threads), torch.get_num_threads()) == ({1}, 2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        _, threads = measured(monkeypatch, answers(200), 1.0, {b"\0": 1.0}, k=1)
        assert set(threads) == {2}
    finally:
        torch.set_num_threads(before)


def test_what_does_not_answer_its_group_has_no_cost(monkeypatch):
    with pytest.raises(NotCodable, match="its group is answered by status 503: why"):
        measured(monkeypatch, answers(200, 503), 1.0, {b"\0": 1.0, b"\1": 1.0}, k=2)


@pytest.mark.slow
def test_what_no_worker_would_serve_is_said_when_it_is_packed(archive, bodies, tmp_path, monkeypatch):
    """The report stands, without a cost, and recommends nothing of which it is not known."""

    def refuse(self, frame):
        raise NotCodable("not as a group")

    monkeypatch.setattr(OfflineProtection, "answer", refuse)
    report = run(archive, bodies, tmp_path, codes=("student",), ks=(2,), architecture="mlp", steps=5)
    [made] = report["candidates"]
    assert made["cost"] is None
    text = report_text(report, tmp_path / "out")
    assert (
        f"warning: {made['archives'][0]} does not answer a group here, and perhaps on no worker: not as a group" in text
    )
    assert "Take student" not in text


@pytest.mark.slow
@pytest.mark.parametrize("code", ["sum", "student", "exact"])
def test_the_archive_says_what_was_measured_of_it(archive, bodies, tmp_path, monkeypatch, code):
    asked, made_of_it = [], []
    prediction = OfflineProtection.prediction

    def watched(self, frame):
        asked.append((frame, self.answer(frame)))
        predict = prediction(self, frame)
        return lambda: made_of_it.append(predict())

    monkeypatch.setattr(OfflineProtection, "prediction", watched)
    report = run(archive, bodies, tmp_path, codes=(code,), ks=(2,), architecture="mlp", steps=5, score=bodies)
    [made] = report["candidates"]
    [(frame, answer)] = asked
    assert frame.k == 2
    assert len(made_of_it) == cost.ROUNDS + sizing.WARM
    for [body] in made_of_it:
        told = unpack_frame(body)
        assert [part and part.body for part in told.slots] == [part and part.body for part in answer.slots]
        assert answer.raw is None or np.allclose(told.raw, answer.raw)
    assert read_archive(tmp_path / "out" / made["archives"][0]).section["cost"] == made["cost"] > 0
    assert made["multiplications"] is not None

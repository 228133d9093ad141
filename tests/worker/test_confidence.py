"""A backup's worker says of each answer how sure it is, in a header beside it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.serving import Ask, vector
from tests.worker.test_operations import NAN, Serve, _proven, _student, _vectors
from ts_parity.confidence import CLASSES, Confidence, ConfidenceScorer, Curve, in_header
from ts_parity.errors import ConfigError
from ts_parity.worker.confidence import confidence_headers

NAME = "x-ts-parity-confidence"
KNOWN = Confidence(ConfidenceScorer(CLASSES), {"1": Curve((0.0, 1.0, 8.0), (0.5, 0.8, 0.975))})


def section(own_form: bool, code: str = "student", k: int = 3) -> dict[str, Any]:
    told = {"role": "parity", "code": code, "k": k, "confidence": KNOWN.as_json()}
    return told if own_form else {**told, "parity_model": "student.pt"}


def packed(own_form: bool) -> dict[str, Any]:
    state, files = _student()
    return {"weights": state} if own_form else {"files": files}


def expected(state: dict[str, torch.Tensor], *bodies: bytes) -> list[str]:
    """From the student's own raw outputs."""
    x = torch.from_numpy(np.stack([np.frombuffer(body, np.float32) for body in bodies]).copy())
    raw = torch.nn.functional.linear(x, state["head.weight"], state["head.bias"]).numpy()
    told = KNOWN.expected(raw)
    assert told is not None
    return [in_header(float(each)) for each in told]


def close(told: list[str | None], wanted: list[str]) -> bool:
    """A batch rounds otherwise."""
    pairs = zip(told, wanted, strict=True)
    return all(one is not None and abs(float(one) - float(other)) < 1e-5 for one, other in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("own_form", [True, False])
@pytest.mark.parametrize("handler", ["plain_class", "overrides_steps"])
def test_each_answer_of_a_student_carries_its_confidence(serve: Serve, handler: str, own_form: bool) -> None:
    """Whether the handler loads the student as its own or it lies beside; in groups, full or not, and in plain ones."""
    state, _ = _student()
    bodies = [vector(seed) for seed in range(3)]
    worker = serve(handler, section(own_form), **packed(own_form))
    wanted = expected(state, *bodies)
    for _ in range(4):  # the first few runs are looked at
        slots = worker.group(*bodies).frame.slots
        assert close([dict(slot.headers).get(NAME) for slot in slots if slot is not None], wanted)
    [alone] = [slot for slot in worker.group(None, bodies[1], None).frame.slots if slot is not None]
    assert close([dict(alone.headers).get(NAME)], wanted[1:2])
    assert close([worker.ask(body).headers.get(NAME) for body in bodies], wanted)


@pytest.mark.parametrize("own_form", [True, False])
def test_a_batch_tells_each_of_its_answers(serve: Serve, own_form: bool) -> None:
    """Where samples have shown that slots may run together, the rows of one raw output belong to requests."""
    state, _ = _student()
    worker = _proven(serve, "overrides_steps", _vectors, section(own_form), **packed(own_form))
    assert worker.describe()["ts_parity"]["batched"] is True, "another confidence is no other answer"
    bodies = [vector(seed) for seed in range(3)]
    slots = worker.group(*bodies).frame.slots
    assert close([dict(slot.headers).get(NAME) for slot in slots if slot is not None], expected(state, *bodies))
    plain = worker.batch([Ask(body) for body in bodies])
    assert close([reply.headers.get(NAME) for reply in plain], expected(state, *bodies))


@pytest.mark.parametrize(("shape", "requests", "told"), [((3, 5), 3, 3), ((5,), 1, 1), ((6, 5), 3, 0), ((), 2, 0)])
def test_rows_that_are_no_requests_say_nothing(shape: tuple[int, ...], requests: int, told: int) -> None:
    assert len(confidence_headers(KNOWN, np.ones(shape, np.float32), requests)) == told


def test_a_bad_neighbour_changes_nobodys_confidence(serve: Serve) -> None:
    state, _ = _student()
    worker = serve("plain_class", section(False), **packed(False))
    slots = worker.group(vector(1), NAN, vector(3)).frame.slots
    told = [dict(slot.headers).get(NAME) for slot in slots if slot is not None]
    assert told[1] is None
    assert close([told[0], told[2]], expected(state, vector(1), vector(3)))


def test_an_exact_copy_is_certain(serve: Serve) -> None:
    worker = serve("plain_class", {"role": "parity", "code": "exact", "k": 2})
    for _ in range(3):
        slots = worker.group(vector(1), vector(2)).frame.slots
        assert [dict(slot.headers)[NAME] for slot in slots if slot is not None] == ["1", "1"]
    assert worker.ask(vector(1)).headers[NAME] == "1"


def test_an_archive_without_it_says_nothing(serve: Serve) -> None:
    told = section(False)
    del told["confidence"]
    worker = serve("plain_class", told, **packed(False))
    for _ in range(3):
        slots = worker.group(vector(1), None, vector(3)).frame.slots
        assert all(NAME not in dict(slot.headers) for slot in slots if slot is not None)
    assert worker.describe()["ts_parity"]["confidence"] is None


def test_describe_publishes_it(serve: Serve) -> None:
    worker = serve("plain_class", section(False), **packed(False))
    assert worker.describe()["ts_parity"]["confidence"] == json.loads(json.dumps(KNOWN.as_json()))


def test_one_that_cannot_be_read_stops_the_worker(serve: Serve) -> None:
    with pytest.raises(ConfigError, match="ts_parity: confidence is not what training writes"):
        serve("plain_class", {**section(False), "confidence": {"score": "luck"}}, **packed(False))

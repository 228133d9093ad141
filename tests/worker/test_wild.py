"""Handlers as people write them: coded without a declaration, or refused with the line to write, which then works."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from tests.worker.serving import network, onnx_file, vector
from tests.worker.wild import BASE, CODED, DECLARED, GRAPH, LIBRARY, LOOKS_AT_ITS_MODEL, NET, REFUSED, SERVICE
from ts_parity.errors import NotCodable
from ts_parity.training.bodies import RequestBody
from ts_parity.training.data import observe_few
from ts_parity.worker.entry import self_test
from ts_parity.worker.offline import OfflineHandler
from ts_parity.worker.operations import DeployedOperations
from ts_parity.worker.selftest import MAX_MISSES
from ts_parity.worker.verdict import HandlerVerdict, VerdictState

SAMPLES = ("first.bin", "second.bin")
LINE = re.compile(r"`(\w+: [^`]+)`")


def classifier() -> bytes:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(300, 8))
    return pickle.dumps(LogisticRegression().fit(inputs, inputs[:, :3].argmax(1)))


def judged(folder: Path, handler: str, **section: Any) -> HandlerVerdict:
    """What a worker of this handler's archive says when it has tested two samples."""
    files = {**files_of(handler), **{name: vector(number) for number, name in enumerate(SAMPLES)}}
    role = section.setdefault("role", "deployed")
    section |= {"handler": "wild.py", "samples": list(SAMPLES)}
    files["model-config.yaml"] = yaml.safe_dump({"ts_parity": section}).encode()
    manifest = {"model": {"modelName": "wild", "handler": "wild.py", "configFile": "model-config.yaml"}}
    files["MAR-INF/MANIFEST.json"] = json.dumps(manifest).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return self_test(folder, role)


def files_of(handler: str) -> dict[str, bytes]:
    """TorchServe wants one class in a handler's file, or a function `handle`: other classes lie in a file beside it."""
    start = handler.rfind("\nclass ") if "\ndef handle(" not in handler and "\nhandle = " not in handler else 0
    texts = {
        "net.py": NET,
        "base.py": BASE,
        "library.py": LIBRARY,
        "service.py": SERVICE,
        "beside.py": "from base import *\n" + handler[:start],
        "wild.py": "from base import *\nfrom beside import *\n" + handler[start:],
    }
    files = {name: text.encode() for name, text in texts.items()}
    if "model.onnx" in handler:
        files["model.onnx"] = onnx_file(network().state_dict())
    if "model.pkl" in handler:
        files["model.pkl"] = classifier()
    return files


def other(folder: Path, outputs: tuple[int, ...]) -> str:
    """A network of another kind that answers in the deployed model's shape."""
    torch.manual_seed(1)
    rows = (1, 8) if len(outputs) > 1 else (8,)
    folder.mkdir(exist_ok=True)
    traced = torch.jit.trace(torch.nn.Linear(8, outputs[-1]), torch.zeros(rows))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(folder / "other.pt"))
    return "other.pt"


@pytest.mark.slow
@pytest.mark.parametrize("name", CODED)
def test_coded_without_a_declaration(tmp_path: Path, name: str) -> None:
    """Raw and finish, and both families: a parity model for `sum`, a student in the model's place."""
    verdict = judged(tmp_path / "deployed", CODED[name])
    assert verdict.state is VerdictState.CODABLE, verdict.reason
    assert verdict.output is not None
    for code in ("sum", "student"):
        model = other(tmp_path / code, tuple(verdict.output["shape"]))
        protected = judged(tmp_path / code, CODED[name], role="parity", code=code, k=2, parity_model=model)
        assert protected.state is VerdictState.CODABLE, f"{code}: {protected.reason}"


@pytest.mark.slow
@pytest.mark.parametrize("name", DECLARED)
def test_the_reason_names_the_line_to_write(tmp_path: Path, name: str) -> None:
    """The lines stand in backquotes; written down, they are all that was missing."""
    handler, line = DECLARED[name]
    refused = judged(tmp_path / "refused", handler)
    assert refused.state is VerdictState.REFUSED
    told = yaml.safe_load("\n".join(LINE.findall(refused.reason)))
    assert told == line, refused.reason
    accepted = judged(tmp_path / "accepted", handler, **told)
    assert accepted.state is VerdictState.CODABLE, accepted.reason


@pytest.mark.parametrize("name", REFUSED)
def test_where_no_line_helps_the_reason_says_why(tmp_path: Path, name: str) -> None:
    handler, why = REFUSED[name]
    refused = judged(tmp_path, handler)
    assert refused.state is VerdictState.REFUSED
    assert why in refused.reason
    assert not LINE.findall(refused.reason)


def test_code_that_does_not_bear_a_stand_in_costs_no_client_an_answer(tmp_path: Path) -> None:
    """Live, without samples: what fails while it is watched is run as always, and is not watched for ever."""
    judged(tmp_path, LOOKS_AT_ITS_MODEL)
    verdict = HandlerVerdict()
    with OfflineHandler(tmp_path) as handler:
        operations = DeployedOperations(handler.boundary, verdict)
        request = handler.request(vector(0))
        for _ in range(MAX_MISSES):
            assert not verdict.refused
            answer = operations.raw(handler._context, request, None)
            assert (answer.status, len(json.loads(answer.body))) == (200, 5)
        with pytest.raises(ValueError, match="buffer size"):  # its own error is its client's
            operations.raw(handler._context, handler.request(b"odd"), None)
    assert "fails while its model is watched, and not otherwise: AssertionError" in verdict.reason


def test_training_says_that_code_does_not_bear_a_stand_in(tmp_path: Path) -> None:
    """And not that the handler refuses its bodies, as it does an odd one."""
    judged(tmp_path, LOOKS_AT_ITS_MODEL)
    with OfflineHandler(tmp_path) as handler:
        assert observe_few(handler, [RequestBody("odd", None, lambda: b"odd")], 1) is None
        with pytest.raises(NotCodable, match=r"fails while its model is watched, .* \(AssertionError.*use code exact"):
            observe_few(handler, [RequestBody("fine", None, lambda: vector(0))], 1)


@pytest.mark.slow
def test_a_live_worker_names_the_line_as_well(tmp_path: Path) -> None:
    """Without samples nothing but the model is looked at, which is enough for its methods, parts and outputs."""
    lines = {
        "a method of another name": "call: select_action",
        "a part of the model is called": "model: model.layers",
        "logits beside hidden states": "output: logits",
        "two models in a row": "model: classifiers.en.0",
    }
    for number, (name, line) in enumerate(lines.items()):
        judged(tmp_path / str(number), DECLARED[name][0])
        with OfflineHandler(tmp_path / str(number)) as handler:
            record, _ = handler.record(handler.request(vector(0)))
        assert LINE.findall(record.refusal or "") == [line], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "initialised in handle if a flag is unset",
        "functions of an adapter: input, prediction, output",
        "a singleton behind a function, errors answered with 200",
    ],
)
def test_training_finds_a_model_that_the_first_request_makes(tmp_path: Path, name: str) -> None:
    """It asks the handler as a worker would, again after the first request has made the model."""
    judged(tmp_path, CODED[name])
    with OfflineHandler(tmp_path) as handler:
        record, _ = handler.record(handler.request(vector(0)))
        assert record.raw is not None, record.refusal
        assert isinstance(handler.model_of(record.calls[0]), torch.nn.Module)


class Graph(torch.nn.Module):
    """Given both tensors of the call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 5)

    def forward(self, given: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = self.linear(given) @ adjacency
        return said


def test_an_input_that_is_the_same_for_all_is_declared(tmp_path: Path) -> None:
    """One call cannot tell which of two floating inputs is combined, and a group of one member is one call."""
    for folder in ("refused", "accepted"):
        (tmp_path / folder).mkdir()
        traced = torch.jit.trace(Graph(), (torch.zeros(1, 8), torch.eye(5)))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(tmp_path / folder / "other.pt"))
    section = {"role": "parity", "code": "sum", "k": 2, "parity_model": "other.pt"}
    refused = judged(tmp_path / "refused", GRAPH, **section)
    assert LINE.findall(refused.reason) == ["input: args.0"]
    accepted = judged(tmp_path / "accepted", GRAPH, input="args.0", **section)
    assert accepted.state is VerdictState.CODABLE, accepted.reason


def test_a_declaration_that_does_not_fit_costs_no_client_an_answer(tmp_path: Path) -> None:
    """The handler answers as it would without us, and the reason says what is wrong."""
    judged(tmp_path, CODED["a mapping of one tensor, moved, called with **"], model="modle")
    with OfflineHandler(tmp_path) as handler:
        record, answer = handler.record(handler.request(vector(0)))
    assert len(json.loads(answer.body)) == 5
    assert "'modle' is declared, but neither" in (record.refusal or "")


def test_what_is_looked_at_beside_the_coded_part_is_refused_and_named(tmp_path: Path) -> None:
    """The class that the model found itself is not in its scores: an answer from the scores alone would have none."""
    handler = CODED["the model answers with integers beside its scores, which are not looked at"]
    uses = handler.replace("scores, _, _ = self.model(data)", "scores, best, _ = self.model(data)").replace(
        "return scores\n", "return scores + best\n"
    )
    assert uses.count("best") == 2
    refused = judged(tmp_path, uses)
    assert refused.state is VerdictState.REFUSED
    assert "output 1 of its model beside the part that is coded" in refused.reason

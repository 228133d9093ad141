"""Protections of models that are no torch modules: learned, packed, loaded and judged as those of torch are."""

import pickle

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.conftest import write_archive
from tests.worker.serving import HANDLERS, network, onnx_file
from ts_parity.errors import NotCodable
from ts_parity.torchserve.archive import extract_archive, read_archive
from ts_parity.training import TrainSettings, train
from ts_parity.training.data import given_to
from ts_parity.worker.entry import self_test
from ts_parity.worker.watches import ModelCall

PROBABILITIES = """
import os, pickle
import numpy as np

class Handler:
    def initialize(self, context):
        with open(os.path.join(context.system_properties["model_dir"], "model.pkl"), "rb") as file:
            self.model = pickle.load(file)
    def handle(self, data, context):
        rows = np.stack([np.frombuffer(bytes(row["body"]), np.float32) for row in data])
        return [scores.tolist() for scores in self.model.predict_proba(rows)]
"""


def fitted():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(400, 8))
    return LogisticRegression().fit(inputs, inputs[:, :3].argmax(1))


@pytest.fixture
def archive(tmp_path):
    """`archive("onnx")`."""

    def make(kind):
        if kind == "onnx":
            files = {"model.onnx": onnx_file(network().state_dict())}
            return write_archive(tmp_path / "vec.mar", (HANDLERS / "onnx_session.py").read_text(), files=files)
        return write_archive(tmp_path / "vec.mar", PROBABILITIES, files={"model.pkl": pickle.dumps(fitted())})

    return make


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "sklearn"])
def test_every_code_is_made_for_it(archive, bodies, tmp_path, kind):
    """`sum` and `student` are networks of ours beside the archive's own files; `exact` is the model itself."""
    asked = {"codes": ("sum", "student", "exact"), "steps": 300, "progress": False, "out": tmp_path / "out"}
    report = train(TrainSettings(archive=archive(kind), inputs=bodies, **asked))
    by_code = {candidate["code"]: candidate for candidate in report["candidates"]}
    assert [made["architecture"] for made in by_code.values()] == ["mlp", "mlp", "the deployed model itself"]
    assert by_code["exact"]["agreement"] == 1.0
    assert by_code["student"]["agreement"] > 0.8
    assert by_code["sum"]["agreement"] > 0.3
    assert all(made["cost"] > 0 for made in by_code.values())
    assert [made["multiplications"] for made in by_code.values()] == [None, None, 2.0], "of itself it costs k"
    for code, made in by_code.items():
        packed = read_archive(tmp_path / "out" / made["archives"][0])
        assert ("parity_model" in packed.section) == (code != "exact")
        extract_archive(packed.path, tmp_path / code)
        verdict = self_test(tmp_path / code, "parity")
        assert verdict.state.value == "codable", verdict.reason
    extract_archive(tmp_path / "out" / report["archives"]["deployed"], tmp_path / "deployed")
    assert self_test(tmp_path / "deployed", "deployed").state.value == "codable"


def test_texts_are_nothing_to_learn_from():
    """An encoder of texts can be served with raw outputs, and protected by itself alone."""
    call = ModelCall("self.embedder", "encode", (["a text", "another"],), {})
    with pytest.raises(NotCodable, match=r"self.embedder.encode\) is given no tensor.*\(list\); use code exact"):
        given_to(call)


@pytest.mark.slow
def test_no_copy_of_it_can_learn(archive, bodies, tmp_path):
    settings = TrainSettings(archive("onnx"), bodies, tmp_path / "out", architecture="deployed", progress=False)
    with pytest.raises(NotCodable, match="InferenceSession, not a torch module, so no copy"):
        train(settings)


@pytest.mark.slow
def test_numbers_of_classes_are_protected_by_the_model_itself_alone(bodies, tmp_path):
    """In the manner of XGBoost's multi:softmax: a network would answer with 1.4, and the handler's index be another."""
    handler = PROBABILITIES.replace("self.model.predict_proba(rows)]", "self.model.predict(rows)]")
    numbered = fitted()
    numbered.classes_ = numbered.classes_.astype(np.float32)
    archive = write_archive(tmp_path / "vec.mar", handler, files={"model.pkl": pickle.dumps(numbered)})
    settings = TrainSettings(archive, bodies, tmp_path / "out", codes=("student",), steps=2, progress=False)
    with pytest.raises(NotCodable, match=r"with 0, 1, 2, as classes .*multi:softprob.*code exact.*--metric mae"):
        train(settings)

"""A handler in process, as training uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worker.serving import linear, make_folder, vector
from ts_parity.errors import ArchiveError
from ts_parity.worker.encoders import model_input
from ts_parity.worker.offline import OfflineHandler


def test_inputs_outputs_and_answers(tmp_path: Path) -> None:
    with OfflineHandler(make_folder(tmp_path / "a", "overrides_steps")) as handler:
        request = handler.request(vector(1), "application/octet-stream")
        record, answer = handler.record(request)
        np.testing.assert_allclose(record.raw, linear(vector(1)), rtol=1e-5, atol=1e-6)
        inputs = model_input(record.calls[0])
        assert inputs.tolist() == [np.frombuffer(vector(1), np.float32).tolist()]
        assert torch.equal(model_input(handler.capture(request)), inputs)
        assert record.raw is not None
        assert handler.answer(request) == answer == handler.finish(request, record.raw)
        np.testing.assert_allclose(handler.model_of(record.calls[0])(inputs).detach(), record.raw)
        verdict = handler.judge([request, handler.request(vector(2))])
        assert (verdict.state.value, verdict.batched) == ("codable", True)
        batch, answers = handler.record_batch([request, handler.request(vector(2))])
        assert batch.raw is not None
        assert batch.raw.shape == (2, 5)
        assert len(answers) == 2


def test_another_model_in_its_place(tmp_path: Path) -> None:
    with OfflineHandler(make_folder(tmp_path / "a", "plain_class", {})) as handler:
        request = handler.request(vector(1))
        ordinary = handler.answer(request)
        with handler.replaced(torch.nn.Linear(8, 2)):
            assert len(json.loads(handler.answer(request).body)) == 2
        assert handler.answer(request) == ordinary


def test_archives_do_not_meet(tmp_path: Path) -> None:
    """Two archives may have handler files of one name."""
    before = dict(sys.modules), list(sys.path)
    for state in (None, {"head.weight": torch.ones(5, 8), "head.bias": torch.zeros(5)}):
        folder = make_folder(tmp_path / f"{state is None}", "overrides_steps", weights=state)
        with OfflineHandler(folder) as handler:
            record, _ = handler.record(handler.request(vector(1)))
            np.testing.assert_allclose(record.raw, linear(vector(1), state), rtol=1e-4, atol=1e-5)
    assert "overrides_steps" not in sys.modules
    assert sys.path == before[1]


def test_a_folder_that_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not an extracted model archive"):
        OfflineHandler(tmp_path)

"""From archive to header on real TorchServe: the curve that was packed, at the output that an answer was made of."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.conftest import TorchServeFactory
from tests.proxy.conftest import MakeFleet, nothing_left, until
from tests.proxy.serving.test_coded_on_torchserve import SETTINGS, _samples, ask, frozen, given
from tests.worker.serving import make_folder, network, pack, vector
from ts_parity.confidence import CLASSES, Confidence, ConfidenceScorer, Curve, from_header
from ts_parity.torchserve.launcher import TorchServeInstance
from ts_parity.torchserve.wrapping import wrap_deployed, wrap_parity

pytestmark = [pytest.mark.torchserve, pytest.mark.slow, pytest.mark.long]

NAME = "x-ts-parity-confidence"
KNOWN = Confidence(
    ConfidenceScorer(CLASSES), {"1": Curve((0.0, 1.0, 8.0), (0.5, 0.8, 0.975)), "2": Curve((0.0, 8.0), (0.25, 0.75))}
)


@pytest.fixture(scope="module")
def instances(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> list[TorchServeInstance]:
    """Linear without a bias, so a model whose parity model and student are itself."""
    folder = tmp_path_factory.mktemp("archives")
    state = network().state_dict()
    state["head.bias"] = state["head.bias"] * 0
    bare = pack(make_folder(folder / "linear", "overrides_steps", weights=state), "linear")
    deployed = wrap_deployed(bare, folder / "out", "linear", samples=_samples(folder))
    protections = [
        wrap_parity(
            bare,
            folder / "out",
            f"linear_{code}",
            code=code,
            k=2,
            partial=True,
            parity_model=folder / "linear" / "script.pt",
            confidence=KNOWN.as_json(),
            samples=_samples(folder),
        )
        for code in ("sum", "student")
    ]
    return torchserve_factory.fleet([[deployed], [deployed], protections])


def raw(seed: int) -> np.ndarray:
    weight: np.ndarray = network().state_dict()["head.weight"].numpy()
    return weight @ np.frombuffer(vector(seed), np.float32)


@pytest.mark.parametrize(("code", "pattern"), [("sum", "2"), ("student", "1")])
async def test_a_rebuilt_answer_has_the_confidence_of_its_raw_output(
    make_fleet: MakeFleet, instances: list[TorchServeInstance], code: str, pattern: str
) -> None:
    patient = await make_fleet(given=given(instances), **{**SETTINGS, "protect": code, "reconstruct_after_s": 20.0})
    in_time = await asyncio.gather(ask(patient, 1), ask(patient, 2))
    assert [answer.get(NAME) for answer in in_time] == [None, None]
    fleet = await make_fleet(given=given(instances), **{**SETTINGS, "protect": code, "reconstruct_after_s": 2.0})
    with frozen(instances[0]):
        answers = await asyncio.gather(ask(fleet, 1), ask(fleet, 2))
    told = {answer.get("x-ts-parity"): (n, from_header(answer.get(NAME))) for n, answer in enumerate(answers, start=1)}
    assert told["deployed"][1] is None
    n, confidence = told["reconstructed"]
    assert confidence == pytest.approx(KNOWN.of(raw(n), pattern), abs=1e-4)
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")

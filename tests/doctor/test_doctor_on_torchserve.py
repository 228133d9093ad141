"""What the doctor finds out of an instance without a prediction is what real TorchServe says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_TORCH, TorchServeFactory, write_archive
from ts_parity.config import InstanceSettings, Settings
from ts_parity.doctor.gather import _takes, gather
from ts_parity.doctor.places import measure_places
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = pytest.mark.torchserve

LIMIT = 100_000


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> TorchServeInstance:
    archive = write_archive(tmp_path_factory.mktemp("archives") / "tiny.mar")
    return torchserve_factory(
        [archive], batch_size=4, max_batch_delay_ms=30, max_request_size=LIMIT, token_auth=True, env=NO_TORCH
    )


@pytest.fixture
def given(instance: TorchServeInstance) -> InstanceSettings:
    keys = str(instance.folder / "key_file.json")
    return InstanceSettings(
        instance.inference_url, instance.management_url, token_file=keys, management_token_file=keys
    )


async def test_a_request_that_is_too_large_is_refused_before_it_is_sent(given: InstanceSettings) -> None:
    assert await _takes(given, LIMIT, {}, 60.0) is True
    assert await _takes(given, LIMIT + 1, {}, 60.0) is False
    assert await _takes(replace(given, token_file=""), LIMIT + 1, {}, 60.0) is False


def test_what_it_was_registered_with_and_whether_keys_are_right(given: InstanceSettings) -> None:
    seen = gather(Settings(instances=(given,)))
    (model,) = seen.reports[0].models
    assert (model.batch_size, model.batch_delay_ms, model.response_timeout_s) == (4, 30, 120)
    assert not seen.refused_keys
    assert not seen.reports[0].unauthorized
    wrong = gather(Settings(instances=(replace(given, token_file="", token="wrong"),)))
    assert list(wrong.refused_keys) == [given.name]
    wrong = gather(Settings(instances=(replace(given, management_token_file="", management_token="wrong"),)))
    assert wrong.reports[0].unauthorized


SLEEPY = """
import time


class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep(0.25)
        return ["done"] * len(data)
"""


@pytest.mark.slow
def test_two_workers_that_wait_have_two_places(torchserve_factory: TorchServeFactory, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "sleepy.mar", SLEEPY)
    instance = torchserve_factory([archive], workers=2, env=NO_TORCH)
    settings = Settings(instances=(InstanceSettings(instance.inference_url, instance.management_url),))
    plan = gather(settings).plan
    (found,) = measure_places(settings, plan, "sleepy/1.0", b"anything", "text/plain", lambda _: None)
    assert (found.places, found.declared, found.problem) == (2, 2, ""), found

"""A handler that takes describe for a request and needs seconds for it, on real TorchServe."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NO_TORCH, TorchServeFactory, write_archive
from tests.proxy.conftest import PROMPT, Client
from ts_parity.config import InstanceSettings, settings_of
from ts_parity.proxy.app import Proxy

pytestmark = pytest.mark.torchserve

SLOW = '''\
"""Writes a line for each run; needs 8 s for what is no request."""

import time


def handle(data, context):
    if data is None:
        return None
    described = context.get_request_header(0, "describe") == "True"
    with open(LOG, "a") as log:
        log.write("describe\\n" if described else "request\\n")
    if described:
        time.sleep(8)
    return ["OK"] * len(data)
'''


async def test_it_runs_once_and_the_first_clients_do_not_wait(
    torchserve_factory: TorchServeFactory, tmp_path_factory: Any
) -> None:
    folder: Path = tmp_path_factory.mktemp("slow")
    runs = folder / "runs"
    archive = write_archive(folder / "slow.mar", SLOW.replace("LOG", repr(str(runs))))
    served = [torchserve_factory([archive], env=NO_TORCH) for _ in range(2)]
    instances = tuple(InstanceSettings(each.inference_url, each.management_url) for each in served)
    proxy = Proxy(
        settings_of({**PROMPT, "instances": instances, "describe_timeout_s": 0.5, "discovery_interval_s": 0.1})
    )
    try:
        await proxy.start()
        client = Client(proxy.url)
        answers = [await client.post("/predictions/slow", b"x") for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        # They were answered although the one that was asked is still busy with it.
        assert "describe" in runs.read_text()
        assert proxy._discovery.probers["torchserve"]._descriptions._pending
        while proxy._discovery.probers["torchserve"]._descriptions._pending:
            await asyncio.sleep(0.05)
        for _ in range(3):
            await proxy.discover()
        assert len(proxy.plan.fleet.endpoints) == 2
        assert runs.read_text().count("describe") == 1
    finally:
        await proxy.close()

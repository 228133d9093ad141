"""The relay forwards everything as it is, and holds back predictions only."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from relay import LateRelay


@pytest.fixture
async def target():
    async def answer(request):
        said = f"{request.method} {request.raw_path} {request.headers.get('X-Own')} ".encode() + await request.read()
        return web.Response(status=418, reason="Odd", body=said, headers={"X-Answer": "a"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_everything_passes_as_it_is(target):
    async with (
        LateRelay(target, late=0.0, by_s=10, seed=0).serving() as url,
        aiohttp.ClientSession() as session,
        session.put(f"{url}/a%20b?c=d", data=b"body", headers={"X-Own": "o"}) as answer,
    ):
        assert (answer.status, answer.reason, answer.headers["X-Answer"]) == (418, "Odd", "a")
        assert await answer.read() == b"PUT /a%20b?c=d o body"


async def test_only_predictions_are_held_back(target):
    relay = LateRelay(target, late=1.0, by_s=60, seed=0)
    async with relay.serving() as url, aiohttp.ClientSession() as session:
        for operation in ("group", "finish"):
            async with session.post(url, headers={"x-ts-parity-op": operation}) as answer:
                assert answer.status == 418
        async with session.get(url) as answer:
            assert answer.status == 418
        late = asyncio.create_task(session.post(url, headers={"x-ts-parity-op": "raw"}))
        while not relay.held_back:
            await asyncio.sleep(0.01)
        assert not late.done()
        late.cancel()
    assert (relay.predictions, relay.held_back) == (1, 1)


async def test_the_share_is_kept_to_and_repeatable(target):
    counts = []
    for _ in range(2):
        relay = LateRelay(target, late=0.1, by_s=0, seed=3)
        async with relay.serving() as url, aiohttp.ClientSession() as session:
            for _ in range(200):
                async with session.post(url) as answer:
                    await answer.read()
        counts.append(relay.held_back)
    assert counts[0] == counts[1]
    assert 8 <= counts[0] <= 35


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        LateRelay("http://127.0.0.1:1", late=1.5, by_s=1, seed=0)

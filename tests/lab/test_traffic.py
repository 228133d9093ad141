"""The load is open-loop: it does not wait for answers, and counts from when a query was due."""

import asyncio
import gc
import json
import time

import pytest
from aiohttp import web

from ts_parity.lab.traffic import LabelledBody, Load, drive, new_session, poisson_load


def read_digit(body):
    return json.loads(body)["digit"]


@pytest.fixture
async def serve():
    """Starts little servers on free ports; -> their addresses."""
    runners = []

    async def start(handler):
        app = web.Application()
        app.router.add_post("/predictions/digits", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/predictions/digits"

    yield start
    for runner in runners:
        await runner.cleanup()


def answer(digit, **headers):
    return web.json_response({"digit": digit}, headers=headers)


def test_a_load_is_poisson_and_repeatable():
    load = poisson_load(20_000, rate=50.0, bodies=7, seed=3)
    assert load == poisson_load(20_000, rate=50.0, bodies=7, seed=3)
    assert load.duration_s == pytest.approx(400, rel=0.03)
    assert {load.picks.count(body) for body in range(7)} <= {20_000 // 7, 20_000 // 7 + 1}
    assert load.picks[:14] != (*range(7), *range(7))
    gaps = [after - before for before, after in zip(load.due_at, load.due_at[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


def test_a_load_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a load needs"):
        poisson_load(0, 10.0, 1, seed=0)


async def test_the_source_header_tells_the_outcome(serve):
    async def handler(request):
        source = (await request.read()).decode()
        return answer(5, **({"x-ts-parity": source} if source else {}))

    url = await serve(handler)
    bodies = [LabelledBody(source, label=5) for source in (b"deployed", b"reconstructed", b"", b"hedged")]
    records = await drive(Load((0.0, 0.03, 0.06, 0.09), (0, 1, 2, 3)), bodies, [url], read_digit, 60.0)
    assert [record.outcome for record in records] == ["deployed", "reconstructed", "deployed", "hedged"]
    assert all(record.predicted == record.label == 5 for record in records)
    assert [record.seq for record in records] == [0, 1, 2, 3]


async def test_several_targets_are_taken_in_turn(serve):
    seen = []

    def target(name):
        async def handler(request):
            seen.append((name, await request.read(), request.headers["Content-Type"]))
            return answer(0)

        return handler

    urls = [await serve(target(name)) for name in "ab"]
    bodies = [LabelledBody(b"zero", "image/png"), LabelledBody(b"one")]
    await drive(Load((0.0, 0.02, 0.04), (0, 1, 0)), bodies, urls, read_digit, 60.0)
    octets = "application/octet-stream"
    assert sorted(seen) == [("a", b"zero", "image/png"), ("a", b"zero", "image/png"), ("b", b"one", octets)]


async def test_a_cookie_does_not_come_back(serve):
    """Each query is a client of its own."""
    cookies = []

    async def handler(request):
        cookies.append(dict(request.cookies))
        response = answer(1)
        response.set_cookie("instance", "3")
        return response

    url = (await serve(handler)).replace("127.0.0.1", "localhost")  # addresses that are numbers have no cookies
    async with new_session() as session:
        for _ in range(2):
            await drive(Load((0.0,), (0,)), [LabelledBody(b"x")], [url], read_digit, 60.0, session=session)
            assert not session.closed
    assert cookies == [{}, {}]


async def test_a_stuck_query_holds_no_other_up(serve):
    stuck = asyncio.Event()

    async def handler(request):
        if await request.read() == b"stuck":
            await stuck.wait()
        return answer(1)

    url = await serve(handler)
    due_at = tuple(0.01 * n for n in range(20))
    load, bodies, collect = Load(due_at, (0, *[1] * 19)), [LabelledBody(b"stuck"), LabelledBody(b"x")], _Collect()
    run = asyncio.create_task(drive(load, bodies, [url], read_digit, 60.0, collect))
    await collect.until(19)
    stuck.set()
    records = await run
    assert records[0].latency_s > 0.19


class _Collect:
    def __init__(self):
        self.records = []

    def __call__(self, record):
        self.records.append(record)

    async def until(self, count):
        while len(self.records) < count:
            await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_silence_is_lost_and_a_refusal_is_an_error(serve):
    async def handler(request):
        match await request.read():
            case b"silence":
                await asyncio.sleep(60)
            case b"busy":
                return web.json_response({"code": 503, "message": "no worker"}, status=503)
            case b"garbage":
                return web.Response(body=b"<html>")
        return answer(1)

    url = await serve(handler)
    bodies = [LabelledBody(b"silence"), LabelledBody(b"busy"), LabelledBody(b"garbage")]
    lost, busy, garbage = await drive(Load((0.0, 0.0, 0.0), (0, 1, 2)), bodies, [url], read_digit, 2.0)
    assert (lost.outcome, lost.latency_s, lost.status) == ("lost", None, None)
    assert (busy.outcome, busy.status) == ("error", 503)
    assert "no worker" in busy.reason
    assert garbage.outcome == "error"
    assert "unreadable answer" in garbage.reason


async def test_latency_counts_from_when_a_query_was_due(serve):
    """The load should have begun 2 s ago."""

    async def handler(request):
        return answer(1)

    load, begun_at = Load((0.0,), (0,)), time.monotonic() - 2.0
    url = await serve(handler)
    [record] = await drive(load, [LabelledBody(b"x")], [url], read_digit, 60.0, started_at=begun_at)
    assert record.sent_at >= 2.0
    assert record.latency_s > record.sent_at - record.due_at


async def test_patience_counts_from_when_a_query_was_due(serve):
    """It was over before the query could be sent; counted from then, this would take two minutes."""

    async def handler(request):
        await asyncio.sleep(600)

    load, begun_at = Load((0.0,), (0,)), time.monotonic() - 120.0
    run = drive(load, [LabelledBody(b"x")], [await serve(handler)], read_digit, 119.0, started_at=begun_at)
    [record] = await asyncio.wait_for(run, 60.0)
    assert record.outcome == "lost"


async def test_no_collector_walks_through_what_was_there(serve):
    async def handler(request):
        return answer(5)

    frozen = []

    def read(body):
        frozen.append(gc.get_freeze_count())
        return read_digit(body)

    await drive(Load((0.0,), (0,)), [LabelledBody(b"x")], [await serve(handler)], read, 60.0)
    assert frozen[0] > 10_000
    assert gc.get_freeze_count() == 0


async def test_nobody_there_is_an_error():
    (record,) = await drive(Load((0.0,), (0,)), [LabelledBody(b"x")], ["http://127.0.0.1:1/"], read_digit, 60.0)
    assert record.outcome == "error"
    assert record.status is None
    assert "ClientConnector" in record.reason


async def test_a_cancelled_run_leaves_no_flight(serve):
    async def handler(request):
        await asyncio.sleep(60)

    url = await serve(handler)
    before = len(asyncio.all_tasks())
    run = asyncio.create_task(drive(Load((0.0,) * 5, (0,) * 5), [LabelledBody(b"x")], [url], read_digit, 60.0))
    while len(asyncio.all_tasks()) < before + 6:
        await asyncio.sleep(0.005)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not [task for task in asyncio.all_tasks() if "_Client.ask" in repr(task)]


async def test_at_the_end_only_what_is_out_is_waited_for(monkeypatch):
    """To wait for thousands that have ended stops the client while the last are under way."""
    waited, gather, sleep = [], asyncio.gather, asyncio.sleep

    async def turns(delay):
        for _ in range(50):
            await sleep(0)

    async def at_once(seq, body):
        return 200, "deployed", b"1"

    monkeypatch.setattr(asyncio, "gather", lambda *given, **more: waited.append(len(given)) or gather(*given, **more))
    monkeypatch.setattr(asyncio, "sleep", turns)
    load = Load((0.0,) * 200 + (60.0,), (0,) * 201)
    records = await drive(load, [LabelledBody(b"x")], ["http://127.0.0.1:1"], int, 60.0, through=lambda post: at_once)
    assert [record.seq for record in records] == [*range(201)]
    assert waited[0] == 1


async def test_what_the_client_itself_does_wrong_is_an_error_when_it_has_ended_and_when_not():
    def client(error):
        async def wrong(seq, body):
            if seq == 0:
                raise error
            return 200, "deployed", b"1"

        return lambda post: wrong

    for due_at in ((0.0,), (0.0, 0.1)):
        for error in (AssertionError("wrong"), asyncio.CancelledError()):
            load = Load(due_at, (0,) * len(due_at))
            with pytest.raises(type(error)):
                await drive(load, [LabelledBody(b"x")], ["http://127.0.0.1:1"], int, 60.0, through=client(error))

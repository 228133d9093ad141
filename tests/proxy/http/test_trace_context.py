"""W3C trace context: what a client sends goes on to the instances as it came, and is read as the standard says."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.conftest import Fleet, MakeFleet, nothing_left, until
from ts_parity.proxy.http.trace_context import TraceContext, may_be_sampled, trace_context
from ts_parity.testing import FakeModel, FakeTorchServe, protection
from ts_parity.testing.fakes import Received
from ts_parity.wire import OP, OP_FINISH, OP_GROUP, Headers, unpack_frame

TRACE: Headers = (
    ("TraceParent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    ("tracestate", "second=1"),
    ("Baggage", "userId=alice,serverNode=DF%2028"),
)
NAMES = {name.lower() for name, _ in TRACE}


async def post(fleet: Fleet, path: str = "/predictions/linear", trace: Headers = TRACE) -> None:
    answer = await fleet.client.post(path, b"[1, 2]", (*trace, ("Content-Type", "application/json")))
    assert answer.status == 200


def trace_of(headers: Headers) -> Headers:
    return tuple(pair for pair in headers if pair[0].lower() in NAMES)


def received(fleet: Fleet, operation: str | None = None) -> list[Received]:
    all_of_them = [request for instance in fleet.instances for request in instance.received]
    return [request for request in all_of_them if operation is None or request.header(OP) == operation]


async def test_a_query_and_what_is_passed_through_bear_what_the_client_sent(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel(role=None)))
    await post(fleet)
    await fleet.client.ask("GET", "/ping", headers=TRACE)
    assert [trace_of(request.headers) for request in received(fleet)] == [TRACE, TRACE]


async def test_none_is_made_where_the_client_sent_none(make_fleet: MakeFleet) -> None:
    fleet = await make_fleet(FakeTorchServe(FakeModel()))
    await post(fleet, trace=())
    assert [trace_of(request.headers) for request in received(fleet)] == [()]


async def test_second_copies_bear_it_too(make_fleet: MakeFleet) -> None:
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel())]
    fleet = await make_fleet(*instances, copies=True, extra_work=1.0, hedge_after_s=0.0)
    await post(fleet)
    await until(lambda: nothing_left(fleet.proxy), "both to have ended")
    assert [trace_of(request.headers) for request in received(fleet)] == [TRACE, TRACE]


@pytest.mark.parametrize("code", ["sum", "student"])
async def test_group_requests_bear_nobodys_and_each_member_its_own(make_fleet: MakeFleet, code: str) -> None:
    """The handlers behind a protection see the headers of the query that they answer, in the frame. The request that
    carries k of them belongs to no single trace.
    """
    instances = [FakeTorchServe(FakeModel()), FakeTorchServe(FakeModel()), FakeTorchServe(protection(code=code))]
    fleet = await make_fleet(*instances)
    instances[0].freeze()
    both = [TRACE, (("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),)]
    await asyncio.gather(*(post(fleet, trace=trace) for trace in both))
    (group,) = received(fleet, OP_GROUP)
    finishes = received(fleet, OP_FINISH)
    assert bool(finishes) == (code == "sum")
    for request in (group, *finishes):
        assert trace_of(request.headers) == ()
        members = [trace_of(member.headers) for member in unpack_frame(request.body).slots if member is not None]
        assert members in ([both] if request is group else [[trace] for trace in both])
    instances[0].thaw()
    await until(lambda: nothing_left(fleet.proxy), "everything to be let go")


# ---- what it says --------------------------------------------------------------------------------------------------

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE_ID}-{SPAN_ID}-01"


def parsed(*values: str) -> TraceContext | None:
    headers = (("x-other", "01"), *(("Traceparent", value) for value in values), ("Baggage", GIVEN))
    found = trace_context(headers)
    assert may_be_sampled(headers) or found is None or not found.sampled, "whoever is told no need not ask"
    return found


def test_ids_flag_and_state_are_read() -> None:
    assert trace_context(TRACE) == (TRACE_ID, SPAN_ID, True, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,second=1")
    assert trace_context(()) is None


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_the_lowest_flag_means_sampled(flags: str, sampled: bool) -> None:
    assert parsed(GIVEN[:-2] + flags) == (TRACE_ID, SPAN_ID, sampled, "")
    assert may_be_sampled((("traceparent", GIVEN[:-2] + flags),)) == sampled


@pytest.mark.parametrize("value", [f"cc{GIVEN[2:]}", f"cc{GIVEN[2:]}-what-will-come", f" {GIVEN} "])
def test_later_versions_are_read_as_far_as_they_are_known(value: str) -> None:
    assert parsed(value) == (TRACE_ID, SPAN_ID, True, "")


@pytest.mark.parametrize(
    "value",
    ["", "00", GIVEN[:-1], GIVEN + "0", GIVEN + "-more", GIVEN.upper(), GIVEN.replace("-", "_"), f"ff{GIVEN[2:]}",
     GIVEN.replace(TRACE_ID, "0" * 32), GIVEN.replace(SPAN_ID, "0" * 16), f"{GIVEN},{GIVEN}", f"cc{GIVEN[2:]}.",
     GIVEN.replace("b7", "b\u0667")],
)  # fmt: skip
def test_what_is_malformed_is_no_trace(value: str) -> None:
    assert parsed(value) is None


def test_two_of_them_are_none() -> None:
    assert parsed(GIVEN, GIVEN) is None

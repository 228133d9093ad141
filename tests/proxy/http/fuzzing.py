"""Hostile bytes at both edges of a running proxy, with well-behaved neighbours beside them.

    python -m tests.proxy.http.fuzzing --cases 100000 --seed 0         every other case at the clients' edge
    python -m tests.proxy.http.fuzzing --seed 0 --only 4711            one case again, told in full
    python -m tests.proxy.http.fuzzing --client "b'GET / ...'"         these bytes (to shrink one); --instance alike

Everything runs in one loop on real loopback sockets: a proxy, instances that tell what reached them, and clients. What
must hold in each case is in `_judge_client` and `_judge_instance`, by the readings of `strict`: whatever an instance is
handed was in the client's bytes at that place, whatever a client is handed is the answer to its own request, neighbours
notice nothing, and afterwards nothing is left: no request, task, connection or descriptor, no error logged or escaped.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import gc
import json
import logging
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any, cast

from tqdm import tqdm

from tests.proxy.conftest import PATIENCE_S, PROMPT, nothing_left
from tests.proxy.http.mutations import answer, mutated, requests, split
from tests.proxy.http.strict import End, Message, read_answer, read_requests
from ts_parity.config import parse_endpoint, settings_of
from ts_parity.proxy.app import Proxy
from ts_parity.proxy.fleet.torchserve.routes import prediction_route, prediction_target
from ts_parity.testing import FakeModel, FakeTorchServe

MAX_BODY_BYTES = 100_000
NEIGHBOURS = 2
CLEAN = 0.15
"""The share of cases that are as they should be: these must be served."""
GRACE_S = 0.002
"""How long a client that has sent nonsense waits for a word about it."""
HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"proxy-authenticate", b"proxy-authorization", b"expect", b"http2-settings", b"sec-websocket-key1",
    b"sec-websocket-key2",
}  # fmt: skip


class Fault(Exception):
    """Something that must not happen did."""


class Machine:
    """The proxy under test and everything around it. `async with machine() as it: await it.client(number)`"""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.heard: list[Message] = []
        """Requests that reached an instance, in order."""
        self.open: set[Instance] = set()
        self.script: Script | None = None
        self.tally: Counter[str] = Counter()
        self.troubles: list[str] = []
        """What must never be: exceptions that escaped, errors logged, instances that were handed nonsense."""
        self._asked = 0

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.troubles.append(f"escaped: {context}"))
        listed = []
        for _ in range(2):
            fake = await stack.enter_async_context(FakeTorchServe(FakeModel(role=None, workers=64)))
            server = await loop.create_server(lambda: Instance(self), "127.0.0.1", 0)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
            listed.append(parse_endpoint(f"http://127.0.0.1:{port},management={fake.management}"))
        never = {"discovery_interval_s": 1e6, "failures_until_out": 10**9, "reject_pause_s": 0.0}
        retries = {"retry_ratio": 1.0, "retry_burst": 1000.0}
        settings = {**PROMPT, **never, **retries, "max_body_bytes": MAX_BODY_BYTES, "instances": tuple(listed)}
        self.proxy = Proxy(settings_of(settings))
        stack.push_async_callback(self.proxy.close)
        await self.proxy.start()
        self._port = int(self.proxy.url.rpartition(":")[2])
        self._neighbours = [await self._connected() for _ in range(NEIGHBOURS)]
        for neighbour in self._neighbours:
            stack.callback(neighbour.leave)
        self._tasks = len(asyncio.all_tasks())
        self._descriptors = descriptors() - 2 * len(self.open)

    # ---- cases -----------------------------------------------------------------------------------------------------

    async def case(self, number: int) -> None:
        """Raise Fault."""
        chance = Random(f"{self.seed} {number}")
        clean = chance.random() < CLEAN
        if number % 2:
            body = b"to victim %d " % number * chance.choice([0, 1, 1, 3, 20])
            data = answer(chance, body)
            data = data if clean else mutated(chance, data)
            deal = self.at_instance
        else:
            data = requests(chance, chance.randint(1, 4))
            data = data if clean else mutated(chance, data)
            deal = self.at_client
        await deal(split(chance, data), chance, clean)

    async def at_client(self, pieces: list[bytes], chance: Random, clean: bool = False, answers_due: int = 0) -> None:
        """A client sends these pieces, and waits for so many answers at least. Raise Fault."""
        expected, end = read_requests(b"".join(pieces))
        begin = len(self.heard)
        client = await self._connected()
        asked = self._ask_neighbours()
        await client.send(pieces)
        await self._neighbours_served(asked)
        if answers_due:
            await _until(lambda: len(client.answers(expected)) >= answers_due, f"{answers_due} answers")
        enough = len(expected)
        if end in (End.WHOLE, End.CLOSED):
            await _until(lambda: client.ended or len(client.answers(expected)) >= enough, "an answer or a refusal")
        else:
            await _within(lambda: client.ended or len(client.answers(expected)) >= enough, PATIENCE_S)
            await _within(lambda: client.ended, GRACE_S)
        heard = [(at, self.heard[at]) for at in range(begin, len(self.heard)) if not _is_neighbours(self.heard[at])]
        answers = client.answers(expected)
        await client.go(chance)
        self._judge_client(expected, heard, answers, clean)
        await self._calm()

    async def at_instance(self, pieces: list[bytes], chance: Random, clean: bool = False) -> None:
        """An instance answers with these pieces. Raise Fault."""
        said = b"".join(pieces)
        self._asked += 1
        method = chance.choice([b"GET", b"POST", b"POST", b"HEAD"])
        engine = chance.random() < 0.5
        target = b"/predictions/linear/1.0/victim/%d" if engine else b"/victim/%d"
        target %= self._asked
        client = await self._connected()
        self.script = Script(target, pieces, chance)
        asked = self._ask_neighbours()
        request = b"%b %b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi" % (method, target)
        await client.send([request])
        expected, _ = read_requests(request)
        await self._neighbours_served(asked)
        await _until(lambda s=self.script: s.played, "the instance to have said it all")
        done = await _within(lambda: client.ended or bool(client.answers(expected)), 0.02)
        self.script.end()
        if not done:
            await _until(lambda: client.ended or bool(client.answers(expected)), "the victim's answer")
        answers = client.answers(expected, partly=True)
        script, self.script = self.script, None
        # Whatever came behind the answer must not be waiting for somebody else.
        await self._neighbours_served(self._ask_neighbours())
        await client.go(chance)
        closed = read_answer(said, method, script.ended == "close")
        self._judge_instance(expected[0], closed, answers, clean and script.ended == "close")
        await self._calm()

    # ---- what must hold --------------------------------------------------------------------------------------------

    def _judge_client(
        self, expected: list[Message], heard: list[tuple[int, Message]], answers: list[tuple[Message, End]], clean: bool
    ) -> None:
        place = -1
        for _, request in heard:
            place = next((n for n in range(place + 1, len(expected)) if not _differs(request, expected[n])), -1)
            if place < 0:
                why = [_differs(request, other) for other in expected]
                raise Fault(f"an instance was handed what the client did not send there: {request}; {why}")
        positions = [at for at, _ in heard]
        for n, (given, end) in enumerate(answers):
            echoed = given.values(b"x-heard")
            if n >= len(expected) and echoed:
                raise Fault(f"an answer to nothing: {given}")
            if echoed:
                at = int(echoed[0])
                if at not in positions or _differs(self.heard[at], expected[n]):
                    raise Fault(f"answer {n} is not to request {n}: {given}")
            elif given.first[0] not in (b"400", b"408", b"413", b"417", b"431", b"501", b"505"):
                raise Fault(f"request {n} was answered with {given} ({end})")
            self.tally["answered" if echoed else f"refused {given.first[0].decode()}"] += 1
        if clean and (len(answers) != len(expected) or any(not given.values(b"x-heard") for given, _ in answers)):
            raise Fault(f"{len(expected)} good requests, and these answers: {answers}")
        self.tally["silence"] += not answers

    def _judge_instance(
        self, request: Message, said: tuple[Message | None, End, bytes], answers: list[tuple[Message, End]], clean: bool
    ) -> None:
        message, how, _ = said
        if not answers:
            if clean:
                raise Fault(f"no answer where the instance gave {message}")
            self.tally["nothing given"] += 1
            return
        (given, end), *more = answers
        if more:
            raise Fault(f"two answers: {answers}")
        if given.values(b"x-heard"):  # asked again, which the engine may do
            again = self.heard[int(given.values(b"x-heard")[0])]
            if again.first != request.first:
                raise Fault(f"the answer to {again} went to {request}")
            self.tally["asked again"] += 1
        elif _is_proxys(given) and (message is None or message.first[0] != given.first[0]):
            if clean:
                raise Fault(f"a good answer {message} became {given}")
            self.tally["refused"] += 1
        elif message is None:
            if end in (End.WHOLE, End.CLOSED):
                raise Fault(f"an answer was read out of what is none: {given}")
            self.tally["broken off"] += 1
        elif given.first[0] != message.first[0]:
            raise Fault(f"status {message.first} became {given.first}")
        elif end in (End.WHOLE, End.CLOSED) and how in (End.WHOLE, End.CLOSED) and given.body == message.body:
            self.tally["passed on"] += 1
        elif end is End.INSIDE and message.body.startswith(given.body):
            if clean:
                raise Fault(f"a good answer {message} broke off: {given}")
            self.tally["broken off"] += 1
        else:
            raise Fault(f"{message} ({how}) became {given} ({end})")

    async def _calm(self) -> None:
        """Nothing of the case is left. Raise Fault."""
        await _until(self._nothing_left, "everything to be let go", self._left)
        if self.troubles:
            troubles, self.troubles = self.troubles, []
            raise Fault("; ".join(troubles))
        if len(self.heard) > 10_000:
            self.heard.clear()

    def _nothing_left(self) -> bool:
        return (
            nothing_left(self.proxy)
            and self.proxy.status()["requests_in_flight"] == 0
            and len(asyncio.all_tasks()) <= self._tasks
            and descriptors() <= self._descriptors + 2 * len(self.open)
        )

    def _left(self) -> str:
        status = self.proxy.status()
        return (
            f"requests in flight {status['requests_in_flight']}, held {status['held']}, tasks "
            f"{len(asyncio.all_tasks()) - self._tasks} too many, descriptors "
            f"{descriptors() - self._descriptors - 2 * len(self.open)} too many, engine {status['engine']}"
        )

    # ---- the neighbours --------------------------------------------------------------------------------------------

    def _ask_neighbours(self) -> list[tuple[Client, Message]]:
        asked = []
        for client in self._neighbours:
            self._asked += 1
            path = b"/predictions/linear/1.0/neighbour/%d" if self._asked % 3 == 0 else b"/neighbour/%d"
            target = path % self._asked
            data = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (target, len(target), target[::-1])
            client.received = b""
            client.write(data)
            asked.append((client, read_requests(data)[0][0]))
        return asked

    async def _neighbours_served(self, asked: list[tuple[Client, Message]]) -> None:
        for client, request in asked:
            await _until(lambda c=client, r=request: c.ended or bool(c.answers([r])), "a neighbour's answer")
            answers = client.answers([request])
            if client.ended or len(answers) != 1 or answers[0][0].body != echo_of(request):
                raise Fault(f"a neighbour asked {request.first} and got {answers}, {client.received[:500]!r}")

    async def _connected(self) -> Client:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Client, "127.0.0.1", self._port))[1]


class Client(asyncio.Protocol):
    """Sends what it is given and keeps what it gets."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def send(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.write(piece)
            for _ in range(2):  # it leaves, it arrives
                await asyncio.sleep(0)

    def leave(self) -> None:
        self._transport.abort()

    async def go(self, chance: Random) -> None:
        """In one of three ways: a reset, a close, or an end to which the proxy must answer with its own."""
        how = chance.randrange(3)
        if not self.ended and how == 0:
            self._transport.write_eof()
            await _until(lambda: self.ended, "the proxy to end the connection as well")
        if how == 1:
            reset(self._transport)
        else:
            self._transport.close()

    def answers(self, to: list[Message], partly: bool = False) -> list[tuple[Message, End]]:
        """The whole answers so far; `partly`: a last one that is not whole as well. Raise Fault if they are no HTTP."""
        found, rest = [], self.received
        while rest:
            method = to[len(found)].first[0] if len(found) < len(to) else b"GET"
            message, end, after = read_answer(rest, method, self.ended)
            if end is End.BAD:
                raise Fault(f"what came is not HTTP: {rest[:500]!r}")
            if message is None or (end is End.INSIDE and not partly):
                break
            if method == b"HEAD" and after.startswith(b"{"):  # a refusal of what was not read to its end
                after = b""
            found.append((message, end))
            rest = after
        return found


class Script:
    """What the next victim is answered with, and how its connection ends."""

    def __init__(self, target: bytes, pieces: list[bytes], chance: Random) -> None:
        self.target = target
        self.ended = chance.choice(["close", "close", "reset"])
        self.played = False
        self._pieces = pieces
        self._stays = chance.random() < 0.3
        self._transport: asyncio.Transport | None = None

    def play(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.target = b""  # once
        asyncio.get_running_loop().create_task(self._play())

    async def _play(self) -> None:
        assert self._transport is not None
        for piece in self._pieces:
            if not self._transport.is_closing():
                self._transport.write(piece)
            for _ in range(2):
                await asyncio.sleep(0)
        self.played = True
        if not self._stays:
            self.end()

    def end(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self.ended == "close":
            self._transport.close()
        else:
            reset(self._transport)


class Instance(asyncio.Protocol):
    """Takes requests, strictly, and says what it was handed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._machine.open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._machine.open.discard(self)

    def data_received(self, data: bytes) -> None:
        machine = self._machine
        self._buffer += data
        found, end = read_requests(self._buffer)
        if end is End.BAD or len(found) > 1 or (found and end is not End.WHOLE):
            machine.troubles.append(f"an instance was handed {end.value} bytes: {self._buffer!r}")
            self._transport.abort()
            return
        if not found:
            return
        self._buffer = b""
        machine.heard.append(found[0])
        if machine.script is not None and machine.script.target == found[0].first[1]:
            machine.script.play(self._transport)
            return
        body = echo_of(found[0])
        head = b"HTTP/1.1 200 OK\r\nX-Heard: %d\r\nContent-Length: %d\r\n\r\n" % (len(machine.heard) - 1, len(body))
        self._transport.write(head if found[0].first[0] == b"HEAD" else head + body)


def echo_of(request: Message) -> bytes:
    return b" ".join([*request.first, request.body])


def _differs(heard: Message, sent: Message) -> str:
    """What is different between a request as it was sent and as an instance was handed it, or an empty text."""
    if heard.first != (sent.first[0], _target(sent)):
        return f"{sent.first} became {heard.first}"
    if heard.body != sent.body:
        return f"body {sent.body!r} became {heard.body!r}"
    own = Counter((name.lower(), value) for name, value in sent.headers)
    hosts, given = heard.values(b"host"), sent.values(b"host")
    if len(hosts) != 1 or (given and hosts != given):  # one is added where there is none
        return f"hosts {given} became {hosts}"
    for name, value in heard.headers:
        key = name.lower(), value
        if name.lower() in (b"content-length", b"host"):
            continue
        if name.lower() in HOP_BY_HOP or name.lower().startswith(b"x-ts-parity"):
            return f"{name!r} was passed on"
        if not own[key]:
            return f"{name!r}: {value!r} was not sent"
        own[key] -= 1
    lengths = [int(length) for length in heard.values(b"content-length")]
    return "" if lengths == [len(heard.body)] else f"lengths {lengths} of a body of {len(heard.body)}"


def _target(sent: Message) -> bytes:
    """Predictions are sent to the version that was meant; everything else as it stands."""
    method, target = sent.first[0].decode(), sent.first[1].decode("latin-1")
    path, _, query = target.partition("?")
    asked = prediction_route(method, path)
    if asked is None or asked.model != "linear" or asked.version not in (None, "", "1.0"):
        return sent.first[1]
    version = "" if asked.version is None else "1.0"  # nothing is coded here, so the instance's own default will do
    return prediction_target(asked.model, version, asked.extra, query).encode()


def _is_neighbours(request: Message) -> bool:
    return b"/neighbour/" in request.first[1]


def _is_proxys(given: Message) -> bool:
    """Whether the proxy made this error: its body is TorchServe's JSON, or there is none since HEAD asked."""
    if given.first[0] not in (b"500", b"502", b"503", b"504"):
        return False
    try:
        said = json.loads(given.body or b"{}")
    except ValueError:
        return False
    return not given.body or (isinstance(said, dict) and "type" in said)


async def _within(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll, at first at each turn of the loop; -> whether it came true in time."""
    loop = asyncio.get_running_loop()
    until, turns = loop.time() + timeout_s, 0
    while not condition():
        turns += 1
        await asyncio.sleep(0 if turns < 40 else 0.0005)
        if loop.time() > until:
            return condition()
    return True


async def _until(condition: Callable[[], bool], what: str, why: Callable[[], str] | None = None) -> None:
    if not await _within(condition, PATIENCE_S):
        raise Fault(f"waited {PATIENCE_S} s for {what}{': ' + why() if why is not None else ''}")


def reset(transport: asyncio.Transport) -> None:
    """End the connection with a reset."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def descriptors() -> int:
    """Open ones of this process, where that can be told."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


class _Errors(logging.Handler):
    def __init__(self, troubles: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._troubles = troubles

    def emit(self, record: logging.LogRecord) -> None:
        self._troubles.append(f"logged: {self.format(record)}")


@contextlib.asynccontextmanager
async def machine(seed: int) -> AsyncIterator[Machine]:
    it = Machine(seed)
    errors = _Errors(it.troubles)
    logging.getLogger().addHandler(errors)
    try:
        async with contextlib.AsyncExitStack() as stack:
            await it.start(stack)
            yield it
    finally:
        logging.getLogger().removeHandler(errors)
        asyncio.get_running_loop().set_exception_handler(None)


async def fuzz(seed: int, numbers: range, quiet: bool = True, most: int = 20) -> tuple[list[str], Counter[str]]:
    """-> the faults, told so that they can be had again, and how the cases went."""
    faults: list[str] = []
    tally: Counter[str] = Counter()
    left = iter(tqdm(numbers, unit="case", disable=quiet))
    done = False
    while not done and len(faults) < most:
        # A machine in which something went wrong says nothing about the cases after it.
        async with machine(seed) as it:
            done = True
            for number in left:
                try:
                    await it.case(number)
                except Fault as fault:
                    faults.append(f"case {number} of seed {seed}: {fault}\n  {_told(seed, number)}")
                    if not quiet:
                        print(f"\n{faults[-1][:3000]}", file=sys.stderr)
                    done = False
                    break
            tally += it.tally
    gc.collect()
    return faults, tally


def _told(seed: int, number: int) -> str:
    """The flag that gives these bytes again."""
    pieces: list[list[bytes]] = []

    class Recorder(Machine):
        async def at_client(self, said: list[bytes], chance: Random, clean: bool = False, answers_due: int = 0) -> None:
            pieces.append(said)

        at_instance = at_client

    coroutine: Any = Recorder(seed).case(number)
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
    return f"{'--instance' if number % 2 else '--client'} {pieces[0]!r}"


async def _given(side: str, text: str) -> list[str]:
    data = ast.literal_eval(text)
    pieces = [data] if isinstance(data, bytes) else list(data)
    faults = []
    for n in range(10):  # for each way to leave, and each path
        async with machine(0) as it:
            try:
                await (it.at_client if side == "client" else it.at_instance)(pieces, Random(n))
            except Fault as fault:
                faults.append(str(fault))
            print({**it.tally})
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="CASE")
    parser.add_argument("--client", metavar="BYTES", help="bytes or a list of them, as Python writes them")
    parser.add_argument("--instance", metavar="BYTES")
    args = parser.parse_args()
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if args.client or args.instance:
        faults = asyncio.run(_given("client" if args.client else "instance", args.client or args.instance))
    else:
        numbers = range(args.cases) if args.only is None else range(args.only, args.only + 1)
        faults, tally = asyncio.run(fuzz(args.seed, numbers, quiet=args.only is not None))
        for what, count in sorted(tally.items()):
            print(f"{count:>8,} {what}")
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

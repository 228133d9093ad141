"""Overload before a real TorchServe: what share of its capacity goes into answers that somebody still waits for.

    python benchmarks/overload_torchserve.py [--runs N] [--json]    a minute for each run

Four workers whose handler sleeps 0.1 s, so no core is needed for it. Capacity is measured just before each case, with
four clients that ask again at once. Then six seconds of `load` times that, and four of half of it. Clients send their
deadline with each request, or leave after that long without having said so. `goodput`: answers in time, as a share of
capacity; `after`: the median of those who come more than two seconds after the overload's end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from ts_parity.arguments import count
from ts_parity.config import InstanceSettings, settings_of
from ts_parity.proxy.app import Proxy
from ts_parity.tables import markdown
from ts_parity.torchserve.archive import pack
from ts_parity.torchserve.configuration import InstanceOptions
from ts_parity.torchserve.launcher import TorchServeInstance

WORKERS, SERVICE_S = 4, 0.1
HANDLER = f"""\
import time


def handle(data, context):
    if data is None:
        return None
    time.sleep({SERVICE_S})
    return [b"done"] * len(data)
"""


@dataclass(frozen=True)
class Case:
    """What clients do, and how much of it."""

    knows: bool
    """The proxy knows by when they want their answer; else they leave without a word."""
    limit_s: float
    load: float
    overloaded_s: float = 6.0
    quiet_s: float = 4.0

    @property
    def name(self) -> str:
        return f"{'deadline' if self.knows else 'leave after'} {self.limit_s:g} s"


CASES = (Case(True, 0.3, 2), Case(True, 1, 3), Case(False, 0.3, 3), Case(False, 1, 2), Case(False, 1, 1.5))


@dataclass(frozen=True)
class Outcome:
    clients: str
    load: float
    capacity: float
    """Queries a second."""
    statuses: dict[str, int]
    """Of all answers that came; `left`: their clients did not wait for them."""
    goodput: float
    after_p50_s: float


class Clients:
    """Each asks once, on a connection of its own."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = f"{url}/predictions/sleeps", session
        self.statuses: dict[str, int] = {}

    async def ask(self, case: Case | None = None) -> float | None:
        """-> seconds until the answer, if it was a prediction that came in time."""
        limit_s = case.limit_s if case else 60.0
        headers = {"x-ts-parity-deadline-ms": str(round(limit_s * 1000))} if case and case.knows else {}
        began = time.monotonic()
        try:
            sent = self._session.post(self._url, data=b"x", headers=headers, timeout=aiohttp.ClientTimeout(limit_s))
            async with sent as answer:
                await answer.read()
                status = str(answer.status)
        except (asyncio.TimeoutError, aiohttp.ClientError):
            status = "left"
        self.statuses[status] = self.statuses.get(status, 0) + 1
        return time.monotonic() - began if status == "200" else None

    async def capacity(self, seconds: float = 2.0) -> float:
        """Queries a second with as many clients as there are workers."""
        ends_at, answers = time.monotonic() + seconds, 0

        async def asks_on() -> None:
            nonlocal answers
            while time.monotonic() < ends_at:
                answers += await self.ask() is not None

        await asyncio.gather(*(asks_on() for _ in range(WORKERS)))
        self.statuses.clear()
        return answers / seconds


async def one_case(url: str, case: Case) -> Outcome:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        clients = Clients(url, session)
        capacity = await clients.capacity()
        begins = time.monotonic()

        async def one(due: float) -> float | None:
            await asyncio.sleep(due - time.monotonic())
            return await clients.ask(case)

        crowd = [begins + n / (case.load * capacity) for n in range(round(case.load * capacity * case.overloaded_s))]
        ends = begins + case.overloaded_s
        few = [ends + 2 * n / capacity for n in range(round(capacity / 2 * case.quiet_s))]
        took = await asyncio.gather(*map(one, crowd + few))
    in_time = [each for each in took[: len(crowd)] if each is not None]
    late = [each for due, each in zip(few, took[len(crowd) :], strict=True) if due > ends + 2 and each is not None]
    return Outcome(
        case.name,
        case.load,
        capacity,
        clients.statuses,
        len(in_time) / (capacity * case.overloaded_s),
        statistics.median(late) if late else float("nan"),
    )


async def run(instance: TorchServeInstance, cases: Sequence[Case] = CASES, runs: int = 1) -> list[Outcome]:
    one = InstanceSettings(instance.inference_url, instance.management_url, "here")
    proxy = Proxy(settings_of({"instances": (one,), "port": 0, "admin_port": 0, "deadline_s": 20.0}))
    try:
        await proxy.start()
        return [await one_case(proxy.url, case) for _ in range(runs) for case in cases]
    finally:
        await proxy.close()


def archive(folder: Path) -> Path:
    handler = folder / "sleeps_handler.py"
    handler.write_text(HANDLER)
    return pack(folder, model_name="sleeps", handler=handler)


def table(outcomes: list[Outcome]) -> str:
    rows = [
        [
            each.clients,
            f"{each.load:g}",
            f"{each.capacity:.0f}",
            f"{each.goodput:.0%}",
            f"{each.after_p50_s * 1000:.0f}",
        ]
        for each in outcomes
    ]
    return markdown(("clients", "load", "capacity, queries/s", "goodput", "p50 after, ms"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=count(), default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        TorchServeInstance([archive(Path(scratch))], InstanceOptions(workers=WORKERS)) as instance,
    ):
        outcomes = asyncio.run(run(instance, runs=args.runs))
    if args.json:
        print(json.dumps([asdict(each) for each in outcomes], indent=1))
        return
    print(table(outcomes))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()

"""Sending: a task is made, takes its place and goes out."""

from __future__ import annotations

from collections import defaultdict
from typing import final

from ts_parity.engine.capacity import EndpointState
from ts_parity.engine.events import Kind
from ts_parity.engine.query import Action, CodingGroup, Query, Send, Task


@final
class Sender:
    """Numbers tasks and groups in the order in which they are made, and counts what is sent."""

    __slots__ = ("_serial", "in_flight", "sent")

    def __init__(self) -> None:
        self._serial = 0
        self.in_flight = 0
        self.sent: defaultdict[str, int] = defaultdict(int)

    def next_id(self) -> int:
        self._serial += 1
        return self._serial

    def send(
        self,
        kind: Kind,
        place: EndpointState,
        query: Query | None,
        group: CodingGroup | None,
        slot: int | None,
        row: int | None,
        now: float,
        actions: list[Action],
        hedge: bool = False,
    ) -> None:
        self._serial += 1
        task = Task(self._serial, kind, query, group, slot, row, place, now, hedge)
        place.take_place(task, now)
        self.in_flight += 1
        self.sent[kind._value_] += 1
        actions.append(Send(task))

    def ended(self, task: Task) -> None:
        task.done = True
        task.place.free_place(task)
        self.in_flight -= 1

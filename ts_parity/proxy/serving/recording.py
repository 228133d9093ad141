"""What clients asked and the deployed model answered, sampled for a student to learn from. Off until somebody asks.

A recording waits in bounded memory until its reader takes it; what comes meanwhile and has no room is left out and
counted. So no reader delays a query, however slow it is, and nothing of a recording is kept here. Of headers only the
content type is recorded, and of the target only the path. Knows requests and answers. Knows nothing of who reads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ts_parity.errors import BadClientRequest, TsParityError
from ts_parity.pairs import Pair, framed
from ts_parity.proxy.http.messages import Request, Response

TAKEN_EVERY_S: Final = 0.1
"""With the two limits below, a recording takes at most 40 MB and 10,000 pairs a second of the proxy's time."""
MOST_WAITING: Final = 1000
MOST_WAITING_BYTES: Final = 4 << 20
LONGEST_S: Final = 24 * 3600.0
COUNTED: Final = ("seen", "unfit", "left_out")
UNDER_WAY: Final = "a recording is under way already; wait for its end, or end it"


class NotRecorded(TsParityError):
    """A recording cannot begin. The message says why and what to do."""

    status = 409


@dataclass(frozen=True)
class Wanted:
    """What to record: `share` of the answers of a model (NAME or NAME/VERSION; empty: of all), for `seconds`."""

    share: float
    seconds: float
    model: str = ""

    @classmethod
    def read(cls, told: Any) -> Wanted:
        """From JSON. Raise BadClientRequest."""
        if not isinstance(told, dict) or (unknown := told.keys() - {"share", "seconds", "model"}):
            what = "no object" if not isinstance(told, dict) else f"unknown: {', '.join(sorted(unknown))}"
            raise BadClientRequest(f"a recording is asked for by an object of share, seconds and model; {what}")
        share, seconds = _number(told, "share", 1.0), _number(told, "seconds", LONGEST_S)
        model = told.get("model", "")
        if not isinstance(model, str):
            raise BadClientRequest(f"model must be NAME or NAME/VERSION, not {model!r}")
        return cls(share, seconds, model)

    def __str__(self) -> str:
        return f"{self.share:.2%} of {self.model or 'every model'}, for {self.seconds:g} s at most"

    def as_json(self) -> dict[str, Any]:
        return {"share": self.share, "seconds": self.seconds, "model": self.model}

    def covers(self, pool: str) -> bool:
        return self.model in ("", pool, pool.rpartition("/")[0])

    def check(self, pools: Iterable[str]) -> None:
        """Raise NotRecorded if none of the pools is meant."""
        known = sorted(pools)
        if not any(self.covers(pool) for pool in known):
            there = f"there are {', '.join(known)}" if known else _NONE_YET
            raise NotRecorded(f"the proxy serves no model {self.model}: {there}" if self.model else there)


_NONE_YET: Final = (
    "it has found no model yet; where servers list none, a model is known once a client's request has named it: "
    "send one"
)


def _number(told: Mapping[str, Any], name: str, most: float) -> float:
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise BadClientRequest(f"{name} must be a number above 0 and at most {most:g}, not {value!r}")
    return float(value)


class Recording:
    """What was sampled and waits for its reader. `close` is called once, by whoever ends it; later calls do nothing."""

    def __init__(
        self,
        wanted: Wanted,
        on_close: Callable[[], None] = lambda: None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.wanted = wanted
        self.counts = dict.fromkeys(COUNTED, 0)
        """`seen`: answers of the deployed model. Of those that were sampled, `unfit`: no good whole answer to a body,
        or compressed; `left_out`: the reader had not made room.
        """
        self.ended = ""
        """Why it is over; empty: it is not."""
        self._on_close = on_close
        self._dice = dice
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def offer(self, pool: str, request: Request, answer: object) -> None:
        """The deployed model's own answer. Anything but a whole response is unfit: a stream is not kept."""
        if not self.wanted.covers(pool):
            return
        self.counts["seen"] += 1
        if self._dice() >= self.wanted.share:
            return
        if not isinstance(answer, Response) or not _is_fit(request, answer):
            self.counts["unfit"] += 1
            return
        if self._has_room(len(request.body) + len(answer.body)):
            kind, answer_kind = request.header("content-type") or "", answer.header("content-type") or ""
            self.add(framed(Pair(pool, request.path, kind, request.body, answer_kind, answer.body)))
        else:
            self.counts["left_out"] += 1

    def add(self, frame: bytes) -> None:
        """A pair that another process has sampled."""
        if not self._has_room(len(frame)):
            self.counts["left_out"] += 1
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)

    def _has_room(self, size: int) -> bool:
        """A pair that is larger than all the room has it to itself."""
        full = len(self._waiting) >= MOST_WAITING or self._waiting_bytes + size > MOST_WAITING_BYTES
        return not full or not self._waiting

    def take(self) -> list[bytes]:
        """The frames that wait."""
        taken, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return taken

    def count(self, counts: Mapping[str, int]) -> None:
        """What another process has counted."""
        for name in COUNTED:
            self.counts[name] += counts.get(name, 0)

    def take_counts(self) -> dict[str, int]:
        counts, self.counts = self.counts, dict.fromkeys(COUNTED, 0)
        return counts

    def close(self, why: str) -> None:
        if not self.ended:
            self.ended = why
            self._on_close()


def _is_fit(request: Request, answer: Response) -> bool:
    return (
        200 <= answer.status < 300
        and request.method in ("POST", "PUT")
        and bool(request.body and answer.body)
        and request.header("content-encoding") is None
        and answer.header("content-encoding") is None
    )

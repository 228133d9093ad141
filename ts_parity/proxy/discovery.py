"""Asks the instances' management APIs what they host.

Knows TorchServe's management API, timeouts and what was said before. Decides nothing: `plan` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

from ts_parity.config import UNIX, InstanceSettings
from ts_parity.errors import ConfigError, TsParityError
from ts_parity.proxy.messages import BrokenStream, Reply, Request
from ts_parity.proxy.reports import (
    UNREADABLE,
    UNTESTED,
    BadDescribe,
    Described,
    InstanceReport,
    ModelReport,
    read_customized,
    read_model,
    read_name,
)
from ts_parity.proxy.streams import Stream
from ts_parity.proxy.upstream import Address, Unreachable, Upstream, classify, error_fields, excerpt, from_gateway

log = logging.getLogger(__name__)

_PAGE = 100
_MAX_PAGES = 100
# An instance with hundreds of models is asked about so many at a time, or the questions would time out in its queue.
_AT_ONCE = 8
_UNTESTED_S = 30.0
# Each unanswered describe stays in TorchServe's queue until its worker thaws, so the pauses between them grow.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# A worker that was READY is back by itself after two seconds or so; if not, it is like one that never was.
_COLD_AFTER_S = 10.0
_LONGEST_TOKEN = 512
# Bytes of an answer: a hundred models, or a thousand workers, take a tenth of it.
_AT_MOST = 4 << 20
# A gateway's words for a refused connection.
_GONE = frozenset({502, 503, 504})


class _Silence(TsParityError):
    """No usable answer. `refused`: nobody is listening. `answered`: somebody is, but said something else. `fronted`: a
    gateway says that nobody is.
    """

    def __init__(self, message: str, refused: bool = False, answered: bool = False, fronted: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        self.answered = answered
        self.fronted = fronted


class _WrongPort(TsParityError):
    """Another API is at this address. The message says so whole."""


@dataclass(frozen=True)
class _Said:
    """What an archive said of itself. A describe costs a worker's turn, so each set of worker processes is asked once;
    but one that has not been tested yet may come to another verdict while it serves.
    """

    pids: tuple[str, ...]
    described: Described | None
    problem: str
    at: float

    def still_true(self, pids: tuple[str, ...], now: float) -> bool:
        untested = self.described is not None and self.described.verdict == UNTESTED
        return pids == self.pids and not (untested and now - self.at >= _UNTESTED_S)


class Discovery:
    """Remembers, per instance, the last report and what wrapped archives said of themselves."""

    def __init__(self, instances: Sequence[InstanceSettings], upstream: Upstream, timeout_s: float) -> None:
        self._instances = instances
        self._upstream = upstream
        self._timeout_s = timeout_s
        self._last: dict[str, InstanceReport] = {}
        self._knows_ping: set[str] = set()
        self._ready_at: dict[tuple[str, str, str], float] = {}
        self._said: dict[tuple[str, str, str], _Said] = {}
        # Who gave no answer -> until when it is left alone, and the pause after that.
        self._silences: dict[tuple[str, str, str], tuple[float, float]] = {}

    async def look(self) -> list[InstanceReport]:
        """One report per instance, in the order of the configuration."""
        return list(await asyncio.gather(*(self._report(instance) for instance in self._instances)))

    async def _report(self, instance: InstanceSettings) -> InstanceReport:
        """Whatever this instance says or does is its own problem: it must not keep the others from being seen."""
        name = instance.name
        problems: list[str] = []
        undescribed: list[str] = []
        try:
            address = Address(instance.management, instance.management_key())
            models = await self._models(name, address, problems, undescribed)
            if models:  # else nothing will be sent there
                await self._check_inference(instance)
        except (ConfigError, _WrongPort) as error:
            report = InstanceReport(name, False, problem=str(error), lost=self._hosted(name))
        except _Silence as error:
            report = self._unheard(name, instance, error)
        except Exception as error:
            log.exception("%s: its description could not be read", name)
            report = self._unheard(name, instance, _Silence(f"{type(error).__name__}: it cannot be read"))
        else:
            report = InstanceReport(name, True, models, "; ".join(problems), tuple(undescribed))
            self._forget(name, models)
        self._last[name] = report
        return report

    def _hosted(self, name: str) -> tuple[ModelReport, ...]:
        """When it was last up."""
        last = self._last.get(name)
        return () if last is None else last.models if last.up else last.lost

    def _forget(self, name: str, models: Sequence[ModelReport]) -> None:
        """What was said of models that it has no more."""
        keys = {(name, model.model, model.version) for model in models}
        for memory in (self._said, self._silences, self._ready_at):
            for key in [key for key in memory if key[0] == name and key not in keys]:
                del memory[key]

    def _unheard(self, name: str, instance: InstanceSettings, error: _Silence) -> InstanceReport:
        """Nobody listening: it is down. No answer in time: frozen or slow, so what it said last still stands."""
        last = self._last.get(name)
        what = str(error) if error.answered else f"gave no answer ({error})"
        problem = f"its management API at {instance.management} {what}"
        if error.refused or last is None or not last.up:
            problem += "; not used, asked again regularly"
            return InstanceReport(name, False, problem=problem, lost=self._hosted(name), fronted=error.fronted)
        return replace(last, problem=f"{problem}; used as last seen")

    async def _check_inference(self, instance: InstanceSettings) -> None:
        """Raise _WrongPort if predictions would go to another of TorchServe's APIs, which knows no ping either.

        Asked until there is any other answer: a ping without a key, or of a sick instance, says all that is wanted.
        """
        if instance.name in self._knows_ping:
            return
        try:
            address = Address(instance.inference, instance.inference_token())
        except ConfigError:  # said where the key is needed
            return
        result = await self._upstream.exchange(
            address, Request("GET", "/ping?from=ts_parity", (), b""), self._timeout_s, _AT_MOST
        )
        if isinstance(result, Unreachable):
            return
        if isinstance(result, Stream):
            result.leave()
        elif result.status == 404 and error_fields(result)[0] == "ResourceNotFoundException":
            where, question = _whether(instance.inference, "inference", 8080)
            raise _WrongPort(f"{where} answered 404 to GET /ping.{question}")
        self._knows_ping.add(instance.name)

    async def _models(
        self, instance: str, address: Address, problems: list[str], undescribed: list[str]
    ) -> tuple[ModelReport, ...]:
        """`problems` and `undescribed` are added to."""
        names = await self._names(address, problems)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def in_turn(name: str) -> list[ModelReport]:
            async with turns:
                return await self._versions(instance, address, name, problems, undescribed)

        reports = await asyncio.gather(*(in_turn(name) for name in names))
        return tuple(model for models in reports for model in models)

    async def _names(self, address: Address, problems: list[str]) -> list[str]:
        names: dict[str, None] = {}
        page = ""
        for _ in range(_MAX_PAGES):
            more = f"&next_page_token={quote(page, safe='')}" if page else ""
            try:
                listing = await self._get(address, f"/models?limit={_PAGE}{more}")
                given = [entry["modelName"] for entry in listing["models"]]
                page = str(listing.get("nextPageToken") or "")[:_LONGEST_TOKEN]
            except _Silence as error:
                if error.answered:
                    raise _WrongPort(f"{_no_list(address, str(error))}; not used, asked again regularly") from None
                raise
            except UNREADABLE:
                raise _WrongPort(f"{_no_list(address, 'answered')}; not used, asked again regularly") from None
            for name in given:
                try:
                    names[read_name(name)] = None
                except ValueError as error:
                    problems.append(f"a model in its list is not used: {error}")
            if not page or len(names) >= _PAGE * _MAX_PAGES:
                break
        return [*names][: _PAGE * _MAX_PAGES]

    async def _versions(
        self, instance: str, address: Address, model: str, problems: list[str], undescribed: list[str]
    ) -> list[ModelReport]:
        path = f"/models/{quote(model, safe='')}"
        try:
            entries = await self._get(address, f"{path}/all")
            default = entries if len(entries) == 1 else await self._get(address, path)
            models = [read_model(entry, str(default[0]["modelVersion"])) for entry in entries]
        except UNREADABLE as error:
            problems.append(f"its describe of {model} cannot be read ({type(error).__name__}); not used")
            return []
        except BadDescribe as error:
            problems.append(f"{model} is not used: {error}")
            return []
        except _Silence as error:
            if not error.answered and not error.fronted:
                raise
            undescribed.append(model)
            # Unregistered between the two questions, or one model in trouble: the others need not suffer.
            log.info("%s: no describe of %s: it %s", instance, model, error)
            return []
        models = [self._with_warmth(instance, model) for model in models]
        return list(await asyncio.gather(*(self._with_described(instance, address, m) for m in models)))

    def _with_warmth(self, instance: str, model: ModelReport) -> ModelReport:
        key = (instance, model.model, model.version)
        now = asyncio.get_running_loop().time()
        if model.ready:
            self._ready_at[key] = now
            return model
        cold = bool(model.pids) and now - self._ready_at.get(key, -math.inf) >= _COLD_AFTER_S
        return replace(model, cold=cold)

    async def _with_described(self, instance: str, address: Address, model: ModelReport) -> ModelReport:
        key = (instance, model.model, model.version)
        said = self._said.get(key)
        now = asyncio.get_running_loop().time()
        if said is not None and said.still_true(model.pids, now):
            return replace(model, described=said.described, problem=said.problem)
        quiet_until, pause = self._silences.get(key, (0.0, _FIRST_PAUSE_S))
        if not model.ready or now < quiet_until:
            # Nobody there to answer. A worker that is being restarted, or is frozen, will be what it was.
            return _as_before(model, said)
        path = f"/models/{quote(model.model, safe='')}/{quote(model.version, safe='')}?customized=true"
        try:
            entries = await self._get(address, path, meant_for_worker=True)
            described, problem = read_customized(entries[0] if entries else None), ""
        except BadDescribe as error:
            described, problem = None, f"{error}; treated as if it were not wrapped"
        except _Silence as error:
            log.info("%s: %s did not answer describe: %s", instance, key[1], error)
            self._silences[key] = (now + pause, min(2 * pause, _LONGEST_PAUSE_S))
            return _as_before(model, said)
        self._silences.pop(key, None)
        self._said[key] = _Said(model.pids, described, problem, now)
        return replace(model, described=described, problem=problem)

    async def _get(self, address: Address, target: str, meant_for_worker: bool = False) -> Any:
        """The JSON of a 200. Raise _Silence; but an error from a handler that knows no describe is an empty answer."""
        result = await self._upstream.exchange(address, Request("GET", target, (), b""), self._timeout_s, _AT_MOST)
        if isinstance(result, Unreachable):
            raise _Silence(result.reason, result.refused)
        if isinstance(result, Stream):
            result = await self._whole(result)
        if result.status in _GONE and from_gateway(result):
            raise _Silence(f"a gateway answered {result.status}: {excerpt(result.body)}", refused=True, fronted=True)
        if meant_for_worker and result.status != 200 and classify(result) is None:
            return []
        return _json(result)

    async def _whole(self, stream: Stream) -> Reply:
        """A gateway may pass on in chunks what TorchServe sends whole. Raise _Silence."""

        async def read() -> bytes:
            return b"".join([piece async for piece in stream])

        try:
            body = await asyncio.wait_for(read(), self._timeout_s)
        except (BrokenStream, asyncio.TimeoutError) as error:
            raise _Silence(str(error) or "no whole answer in time") from None
        finally:
            stream.leave()
        return Reply(stream.status, stream.phrase, stream.headers, body)


def _as_before(model: ModelReport, said: _Said | None) -> ModelReport:
    if said is None:
        return replace(model, silent=model.ready > 0)
    return replace(model, described=said.described, problem=said.problem)


def _json(reply: Reply) -> Any:
    if reply.status != 200:
        kind, message = error_fields(reply)
        said = f": {excerpt(message.encode())}" if kind not in ("", "ResourceNotFoundException") else ""
        raise _Silence(f"answered {reply.status}{said}", answered=True)
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        raise _Silence("answered with something that is no JSON", answered=True) from None


def _no_list(address: Address, answered: str) -> str:
    """In one line: what came, and what is probably wrong. `answered` may hold what TorchServe itself said."""
    verb, colon, said = answered.partition(": ")
    where, question = _whether(address.url, "management", 8081)
    if colon:  # TorchServe's own words say it better than a guess
        return f"{where} {verb} to GET /models: {said}"
    return f"{where} {verb} to GET /models{'' if verb != 'answered' else ' with no list of models'}.{question}"


def _whether(url: str, api: str, usual: int) -> tuple[str, str]:
    """-> host and port, and the question whether that is the right port."""
    where = url if url.startswith(UNIX) else urlsplit(url).netloc.rpartition("@")[2]
    port = where.rpartition(":")[2]
    if not port.isdigit():
        return where, f" Is it the {api} address?"
    return where, f" Is {port} the {api} port? (TorchServe's default is {usual}.)"

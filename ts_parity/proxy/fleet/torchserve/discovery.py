"""Asks the management APIs of TorchServe instances what they host.

Knows TorchServe's management API, timeouts, and each instance's last report: when an instance does not answer, that
report may still hold. Decides nothing about the fleet; `plan` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urlsplit

from ts_parity.config import UNIX, InstanceSettings
from ts_parity.describe import UNREADABLE, read_name
from ts_parity.errors import ConfigError, TsParityError
from ts_parity.proxy.fleet.reports import InstanceReport, ModelReport, prefixed
from ts_parity.proxy.fleet.torchserve.answers import classify, error_fields, from_gateway
from ts_parity.proxy.fleet.torchserve.describe_cache import DescribeCache, DescribeFailed, DescribeResult, ModelKey
from ts_parity.proxy.fleet.torchserve.describes import BadDescribe, read_customized, read_model
from ts_parity.proxy.http.messages import BrokenStream, Request, Response
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Upstream, excerpt

log = logging.getLogger(__name__)

_PAGE = 100
_MAX_PAGES = 100
# Of an instance with hundreds of models, only this many are described at a time; more would time out in its queue.
_MODELS_AT_ONCE = 8
# A worker that was READY is back by itself after about two seconds; after this long it counts as never READY.
_COLD_AFTER_S = 10.0
_LONGEST_TOKEN = 512
# Of a response: a hundred models, or a thousand workers, take a tenth of it.
_MAX_BYTES = 4 << 20
# A worker may be busy or frozen; TorchServe itself gives a request 120 s.
_DESCRIBE_TIMEOUT_S = 130.0
# A refresh waits this long for archives to answer describe; the first one, before which nothing is served, longer.
_DESCRIBE_WAIT_S = 1.0
# What a gateway answers when its connection to the instance is refused.
_GATEWAY_ERRORS = frozenset({502, 503, 504})
_WRONG_KEY = "InvalidKeyException"


_OTHER_KIND: Final = "another server than TorchServe needs its kind, as in --endpoint URL,kind=rest"


class _ManagementFailure(TsParityError):
    """No usable response. `refused`: nothing listens. `answered`: there was one, but not what was asked for;
    `unauthorized`: it asks for another key. `down_by_gateway`: a gateway says that the instance is down.
    """

    def __init__(
        self,
        message: str,
        refused: bool = False,
        answered: bool = False,
        down_by_gateway: bool = False,
        unauthorized: bool = False,
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.answered = answered
        self.down_by_gateway = down_by_gateway
        self.unauthorized = unauthorized


class _WrongPort(TsParityError):
    """Another API is at this address. The message is complete."""


class _KeyRejected(TsParityError):
    """The management API asks for a key that we do not have. The message is complete."""


class TorchServeProber:
    """Remembers each instance's last report; `describe_cache` remembers what wrapped archives publish."""

    def __init__(
        self, instances: Sequence[InstanceSettings], upstream: Upstream, timeout_s: float, prefix: str = ""
    ) -> None:
        """`prefix`: before the names of models in reports, where kinds are mixed."""
        self._prefix = prefix
        self._instances = instances
        self._upstream = upstream
        self._timeout_s = timeout_s
        self._last: dict[str, InstanceReport] = {}
        self._inference_checked: set[str] = set()
        self._keys: dict[str, str] = {}
        self._ready_at: dict[tuple[str, str, str], float] = {}
        self._descriptions = DescribeCache(self._describe, self._is_idle)

    def adopt(self, instances: Sequence[InstanceSettings], timeout_s: float, prefix: str) -> None:
        """Ask these from the next refresh on. What is known of one stays as long as its addresses do."""
        kept = {(given.inference, given.management) for given in instances}
        for given in self._instances:
            if (given.inference, given.management) not in kept:
                self._last.pop(given.name, None)
                self._keys.pop(given.name, None)
                self._inference_checked.discard(given.name)
                self._forget_removed(given.name, ())
        self._instances, self._timeout_s, self._prefix = instances, timeout_s, prefix

    async def refresh(self, may_describe: bool = True) -> list[InstanceReport]:
        """One report per instance, in the order of the configuration. Without `may_describe` no worker is asked for
        describe: a request waits for this refresh, and perhaps for that very worker.
        """
        wait_s = min(self._timeout_s, _DESCRIBE_WAIT_S) if self._last else self._timeout_s
        reports = await asyncio.gather(*(self._report(instance) for instance in self._instances))
        complete = await self._descriptions.complete(reports, wait_s, may_describe)
        return [prefixed(report, self._prefix) for report in complete] if self._prefix else complete

    def want(self, name: str) -> None:
        """Instances list all that they have."""

    def doubt(self, instance: str, why: str, sample: Request | None) -> InstanceReport | None:
        return None

    def in_use(self, names: Collection[str]) -> None:
        """None of them is known by being asked for."""

    async def close(self) -> None:
        """Stop waiting for describes."""
        await self._descriptions.close()

    def _is_idle(self, name: str) -> bool:
        given = next(each for each in self._instances if each.name == name)
        return not self._upstream.outstanding(Address(given.inference))

    async def _report(self, instance: InstanceSettings) -> InstanceReport:
        """Whatever goes wrong with this instance ends up in its report and does not disturb the others."""
        name = instance.name
        problems: list[str] = []
        undescribed: list[str] = []
        began_at = time.monotonic()
        try:
            address = Address(instance.management, self._key(instance, problems))
            models = await self._models(name, address, problems, undescribed)
            if models:  # otherwise nothing will be sent there
                await self._check_inference(instance)
        except _WrongPort as error:
            problem = "; ".join([*problems, str(error)])
            report = self._as_last_seen(name, problem) or InstanceReport(
                name, False, problem=f"{problem}; not used, asked again regularly", last_hosted=self._last_hosted(name)
            )
            report = replace(report, wrong_port=True)
        except _KeyRejected as error:
            problem = "; ".join([*problems, str(error)])
            report = self._as_last_seen(name, problem) or InstanceReport(
                name, True, problem=f"{problem}; requests are only passed through to it"
            )
            report = replace(report, unauthorized=True)  # a client's own key may be accepted where ours is not
        except _ManagementFailure as error:
            report = self._report_of_failure(name, instance, error)
            report = replace(report, problem="; ".join([*problems, report.problem]))
        except Exception as error:
            log.exception("%s: its description could not be read", name)
            report = self._report_of_failure(
                name, instance, _ManagementFailure(f"{type(error).__name__}: it cannot be read")
            )
        else:
            report = InstanceReport(name, True, models, "; ".join(problems), tuple(undescribed))
            self._forget_removed(name, models)
        if math.isnan(report.seen_at):  # it is not the previous report again
            report = replace(report, seen_at=began_at)
        self._last[name] = report
        return report

    def _key(self, instance: InstanceSettings, problems: list[str]) -> str:
        """TorchServe rewrites and removes its key file, so the last key may still be right, or none may be needed."""
        try:
            self._keys[instance.name] = instance.management_key()
        except ConfigError as error:
            problems.append(str(error))
        return self._keys.get(instance.name, "")

    def _as_last_seen(self, name: str, problem: str) -> InstanceReport | None:
        """The last report: an instance that served a moment ago is not ill just because its management API is."""
        last = self._last.get(name)
        if last is None or not last.up or not last.models:
            return None
        return replace(last, problem=f"{problem}; used as last seen", unauthorized=False, wrong_port=False)

    def _last_hosted(self, name: str) -> tuple[ModelReport, ...]:
        """What the instance hosted when it was last up."""
        last = self._last.get(name)
        return () if last is None else last.models if last.up else last.last_hosted

    def _forget_removed(self, name: str, models: Sequence[ModelReport]) -> None:
        """Forget models that the instance no longer has."""
        keys = {(name, model.model, model.version) for model in models}
        for key in [key for key in self._ready_at if key[0] == name and key not in keys]:
            del self._ready_at[key]

    def _report_of_failure(self, name: str, instance: InstanceSettings, error: _ManagementFailure) -> InstanceReport:
        """Nothing listens: it is down. No response in time: it is frozen or slow, so its last report still holds."""
        last = self._last.get(name)
        what = str(error) if error.answered else f"gave no answer ({error})"
        problem = f"its management API at {instance.management} {what}"
        if error.refused or last is None or not last.up:
            problem += "; not used, asked again regularly"
            hosted = self._last_hosted(name)
            if not error.answered and not hosted:
                problem += f"; {_OTHER_KIND}"
            return InstanceReport(
                name, False, problem=problem, last_hosted=hosted, down_by_gateway=error.down_by_gateway
            )
        return replace(last, problem=f"{problem}; used as last seen", wrong_port=False)

    async def _check_inference(self, instance: InstanceSettings) -> None:
        """Raise _WrongPort if predictions would go to another of TorchServe's APIs, which has no ping.

        Any response but 404 will do, even one to a ping without a key or from a sick instance; then it is not checked
        again.
        """
        if instance.name in self._inference_checked:
            return
        try:
            address = Address(instance.inference, instance.inference_token())
        except ConfigError:  # reported where the key is needed
            return
        result = await self._upstream.exchange(
            address, Request("GET", "/ping?from=ts_parity", (), b""), self._timeout_s, _MAX_BYTES
        )
        if isinstance(result, NoResponse):
            return
        if isinstance(result, Stream):
            result.close()
        elif result.status == 404 and error_fields(result)[0] == "ResourceNotFoundException":
            where, question = _where_and_hint(instance.inference, "inference", "TorchServe's default is 8080")
            raise _WrongPort(f"{where} answered 404 to GET /ping.{question}")
        self._inference_checked.add(instance.name)

    async def _models(
        self, instance: str, address: Address, problems: list[str], undescribed: list[str]
    ) -> tuple[ModelReport, ...]:
        """`problems` and `undescribed` are added to."""
        names = await self._names(address, problems)
        turns = asyncio.Semaphore(_MODELS_AT_ONCE)

        async def versions_of(name: str) -> list[ModelReport]:
            async with turns:
                return await self._versions(instance, address, name, problems, undescribed)

        reports = await asyncio.gather(*(versions_of(name) for name in names))
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
            except _ManagementFailure as error:
                if error.unauthorized:
                    raise _KeyRejected(_no_model_list(address, str(error))) from None
                if error.answered:
                    raise _WrongPort(_no_model_list(address, str(error))) from None
                raise
            except UNREADABLE:
                raise _WrongPort(_no_model_list(address, "answered")) from None
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
        except _ManagementFailure as error:
            if not error.answered and not error.down_by_gateway:
                raise
            if error.unauthorized:
                raise _KeyRejected(_no_model_list(address, str(error))) from None
            undescribed.append(model)
            # Unregistered between the two requests, or one model is in trouble; the others are not affected.
            log.info("%s: no describe of %s: it %s", instance, model, error)
            return []
        own: dict[str, ModelReport] = {}
        for report in models:
            if report.model == model:
                own.setdefault(report.version, report)
        if len(own) < len(models):
            problems.append(f"its describe of {model} holds another model, or a version twice; that is not used")
        return [self._with_warmth(instance, report) for report in own.values()]

    def _with_warmth(self, instance: str, model: ModelReport) -> ModelReport:
        key = (instance, model.model, model.version)
        now = asyncio.get_running_loop().time()
        if model.ready:
            self._ready_at[key] = now
            return model
        cold = bool(model.pids) and now - self._ready_at.get(key, -math.inf) >= _COLD_AFTER_S
        return replace(model, cold=cold)

    async def _describe(self, key: ModelKey) -> DescribeResult:
        """What the archive publishes, whenever a worker is free to tell. Raise DescribeFailed."""
        instance, model, version = key
        path = f"/models/{quote(model, safe='')}/{quote(version, safe='')}?customized=true"
        try:
            given = next(each for each in self._instances if each.name == instance)
            address = Address(given.management, self._key(given, []))
            entries = await self._get(address, path, meant_for_worker=True)
            return DescribeResult(read_customized(entries[0] if entries else None))
        except BadDescribe as error:
            return DescribeResult(None, f"{error}; treated as if it were not wrapped")
        except UNREADABLE as error:
            return DescribeResult(None, f"{type(error).__name__} in its describe; treated as if it were not wrapped")
        except _ManagementFailure as error:
            raise DescribeFailed(str(error)) from None

    async def _get(self, address: Address, target: str, meant_for_worker: bool = False) -> Any:
        """The JSON of a 200. Raise _ManagementFailure; but an error of a handler without describe counts as []."""
        timeout_s = _DESCRIBE_TIMEOUT_S if meant_for_worker else self._timeout_s
        result = await self._upstream.exchange(address, Request("GET", target, (), b""), timeout_s, _MAX_BYTES)
        if isinstance(result, NoResponse):
            raise _ManagementFailure(result.reason, result.refused)
        if isinstance(result, Stream):
            result = await self._read_whole(result)
        if result.status in _GATEWAY_ERRORS and from_gateway(result):
            raise _ManagementFailure(
                f"a gateway answered {result.status}: {excerpt(result.body)}", refused=True, down_by_gateway=True
            )
        if meant_for_worker and result.status != 200 and classify(result) is None:
            return []
        return _json(result)

    async def _read_whole(self, stream: Stream) -> Response:
        """Read a response that a gateway has chunked. Raise _ManagementFailure."""

        async def read() -> bytes:
            return b"".join([piece async for piece in stream])

        try:
            body = await asyncio.wait_for(read(), self._timeout_s)
        except (BrokenStream, asyncio.TimeoutError) as error:
            raise _ManagementFailure(str(error) or "no whole answer in time") from None
        finally:
            stream.close()
        return Response(stream.status, stream.phrase, stream.headers, body)


def _json(response: Response) -> Any:
    if response.status != 200:
        kind, message = error_fields(response)
        message = f": {excerpt(message.encode())}" if kind not in ("", "ResourceNotFoundException") else ""
        raise _ManagementFailure(f"answered {response.status}{message}", answered=True, unauthorized=kind == _WRONG_KEY)
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        raise _ManagementFailure("answered with something that is no JSON", answered=True) from None


def _no_model_list(address: Address, answered: str) -> str:
    """In one line: what came, and what is probably wrong. `answered` may hold TorchServe's own message."""
    verb, colon, message = answered.partition(": ")
    where, question = _where_and_hint(address.url, "management", f"TorchServe's default is 8081; {_OTHER_KIND}")
    if colon:  # TorchServe's own message says more than a guess
        return f"{where} {verb} to GET /models: {message}"
    return f"{where} {verb} to GET /models{'' if verb != 'answered' else ' with no list of models'}.{question}"


def _where_and_hint(url: str, api: str, hint: str) -> tuple[str, str]:
    """-> host and port, and the question whether that port is the right one."""
    where = url if url.startswith(UNIX) else urlsplit(url).netloc.rpartition("@")[2]
    port = where.rpartition(":")[2]
    if not port.isdigit():
        return where, f" Is it the {api} address?"
    return where, f" Is {port} the {api} port? ({hint}.)"

"""The edge: asks instances and proxy, reads certificates and limits, and makes one `Gathered` of it.

Looks at the fleet with the proxy's own discovery, so that it finds what a proxy would find. Sends no prediction and
changes nothing. Whatever fails on the way is left out of what was gathered; the checks say what that means.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ts_parity.admin_client import ask
from ts_parity.config import MANAGED, UNIX, InstanceSettings, Settings
from ts_parity.doctor.gathered import CertificateEnd, Gathered, SizeProbe
from ts_parity.doctor.validity import first_end, pem_blocks
from ts_parity.engine import scheduler
from ts_parity.errors import ConfigError, Unreachable
from ts_parity.proxy.fleet.backends.kinds import backends_of
from ts_parity.proxy.fleet.discovery import Discovery
from ts_parity.proxy.fleet.plan import Plan, PlanOptions, make_plan
from ts_parity.proxy.fleet.torchserve.answers import error_fields, key_refused
from ts_parity.proxy.http.certificates import Tls, instance_side
from ts_parity.proxy.http.descriptors import open_files, raise_limit
from ts_parity.proxy.http.messages import Request, Response
from ts_parity.proxy.http.upstream import Address, Upstream
from ts_parity.proxy.operations.status import status_table

_HEAD_BYTES: Final = 4096
"""Of a group's frame, for each member: its headers."""
_MOST_ANSWER: Final = 1 << 16


def settings_of_status(status: Mapping[str, Any]) -> tuple[InstanceSettings, ...]:
    """The instances of a running proxy, without keys."""
    return tuple(
        InstanceSettings(str(i["inference"]), str(i["management"]), str(i["domain"]), kind=str(i.get("kind", MANAGED)))
        for i in status["instances"]
    )


def ask_proxy(admin: str) -> tuple[Mapping[str, Any] | None, str]:
    """-> its status, or why there is none. One that has all that a table of it needs has all that checks read."""
    url = f"{admin}/status"
    try:
        status = ask(url)
        status_table(status)
        settings_of_status(status)
    except Unreachable as error:
        return None, str(error)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        return None, f"{url}: that is no status of a proxy of this version: {error!r}; is this its admin port?"
    return status, ""


def gather(
    settings: Settings, configured: bool = True, status: Mapping[str, Any] | None = None, status_error: str = ""
) -> Gathered:
    """Raise ConfigError if a certificate of the settings cannot be read."""
    raise_limit()
    return asyncio.run(_gathered(settings, configured, status, status_error))


async def _gathered(
    settings: Settings, configured: bool, status: Mapping[str, Any] | None, status_error: str
) -> Gathered:
    tls = instance_side(settings)
    upstream = Upstream(settings.connect_timeout_s, settings.task_timeout_s, tls)
    backends = backends_of(settings.instances, settings.models)
    discovery = Discovery(settings.instances, backends, upstream, settings.describe_timeout_s)
    try:
        reports = tuple(await discovery.refresh())
        plan = make_plan(
            reports,
            PlanOptions(
                settings.instances,
                settings.protect,
                models=settings.models,
                lossless=not settings.policy.differing,
            ),
        )
        up = [i for i, report in zip(settings.instances, reports, strict=True) if report.up and i.kind == MANAGED]
        refused = await asyncio.gather(*(_refused_key(i, upstream, settings.describe_timeout_s) for i in up))
        sizes = await _sizes(settings, plan, tls, status)
        ends = [*_of_files(settings), *await _of_instances(settings)]
    finally:
        await discovery.close()
        await upstream.close()
    return Gathered(
        settings,
        configured,
        reports,
        plan,
        status,
        status_error,
        {i.name: said for i, said in zip(up, refused, strict=True) if said},
        tuple(ends),
        sizes,
        None,
        open_files(),
        Path(scheduler.__file__).suffix != ".py",
    )


async def _refused_key(given: InstanceSettings, upstream: Upstream, timeout_s: float) -> str:
    """What the inference API says if it does not accept our key; empty if it does."""
    with contextlib.suppress(ConfigError):  # a file that is not there has a check of its own
        result = await upstream.exchange(
            Address(given.inference, given.inference_token()),
            Request("GET", "/ping?from=ts_parity", (), b""),
            timeout_s,
            _MOST_ANSWER,
        )
        if isinstance(result, Response) and key_refused(result):
            return error_fields(result)[1] or f"answered {result.status}"
    return ""


# ---- how large a request may be --------------------------------------------------------------------------------------


async def _sizes(
    settings: Settings, plan: Plan, tls: Mapping[str, Tls], status: Mapping[str, Any] | None
) -> tuple[SizeProbe, ...]:
    """One announcement for each instance that hosts protections, of the largest group that it may get."""
    largest: dict[str, tuple[int, str]] = {}
    for endpoint in plan.fleet.endpoints:
        code, body = plan.pools[endpoint.pool].code, _largest_body(settings, endpoint.pool, status)
        if endpoint.row is not None and code is not None and body is not None:
            size = code.k * (body + _HEAD_BYTES)
            largest[endpoint.instance] = max(largest.get(endpoint.instance, (0, "")), (size, endpoint.pool))
    instances = {given.name: given for given in settings.instances}
    largest = {name: wanted for name, wanted in largest.items() if instances[name].kind == MANAGED}
    taken = await asyncio.gather(
        *(_takes(instances[name], size, tls, settings.connect_timeout_s) for name, (size, _) in largest.items())
    )
    return tuple(
        SizeProbe(name, pool, size, answer)
        for (name, (size, pool)), answer in zip(largest.items(), taken, strict=True)
        if answer is not None
    )


def _largest_body(settings: Settings, pool: str, status: Mapping[str, Any] | None) -> int | None:
    """As a running proxy has seen; else as an operator allows. The default allows what TorchServe's own default does,
    which says nothing of what clients send: None.
    """
    seen = None if status is None else status.get("pools", {}).get(pool, {}).get("largest_body")
    if isinstance(seen, int):
        return seen
    return settings.max_body_bytes if settings.max_body_bytes != Settings.max_body_bytes else None


async def _takes(given: InstanceSettings, size: int, tls: Mapping[str, Tls], timeout_s: float) -> bool | None:
    """Whether it would take a request of this size; None if it does not say. Netty answers the head alone."""
    head = f"POST /predictions HTTP/1.1\r\nHost: {given.name}\r\nContent-Length: {size}\r\nExpect: 100-continue\r\n"
    with contextlib.suppress(ConfigError):
        if token := given.inference_token():
            head += f"Authorization: Bearer {token}\r\n"
    context = tls[given.inference].context if given.inference in tls else None
    try:
        async with _connection(given.inference, context, timeout_s) as (reader, writer):
            writer.write(f"{head}\r\n".encode())
            line = await asyncio.wait_for(reader.readline(), timeout_s)
    except (OSError, asyncio.TimeoutError, ValueError):
        return None
    status = line.split(b" ")[1:2]
    return None if status not in ([b"100"], [b"413"]) else status == [b"100"]


@contextlib.asynccontextmanager
async def _connection(
    url: str, context: ssl.SSLContext | None, timeout_s: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if url.startswith(UNIX):
        opening = asyncio.open_unix_connection(url.removeprefix(UNIX))
    else:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        opening = asyncio.open_connection(parts.hostname, port, ssl=context)
    reader, writer = await asyncio.wait_for(opening, timeout_s)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), timeout_s)


# ---- certificates ----------------------------------------------------------------------------------------------------


def _of_files(settings: Settings) -> list[CertificateEnd]:
    files = {"the inference port": settings.tls_certificate}
    files |= {f"{given.name} (tls_certificate)": given.tls_certificate for given in settings.instances}
    ends = []
    for whose, path in files.items():
        try:
            chain = pem_blocks(Path(path).read_text(encoding="latin-1")) if path else []
        except OSError:
            continue
        ends += _ends(whose, chain)
    return ends


async def _of_instances(settings: Settings) -> list[CertificateEnd]:
    """As instances show them, whether or not they can be trusted: that an ended one is not is known by then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    urls = [url for i in settings.instances for url in (i.inference, i.management) if url.startswith("https:")]
    shown = await asyncio.gather(*(_shown(url, context, settings.connect_timeout_s) for url in urls))
    return [end for url, der in zip(urls, shown, strict=True) if der for end in _ends(url, [der])]


async def _shown(url: str, context: ssl.SSLContext, timeout_s: float) -> bytes | None:
    try:
        async with _connection(url, context, timeout_s) as (_, writer):
            der: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            return der
    except (OSError, asyncio.TimeoutError):
        return None


def _ends(whose: str, chain: list[bytes]) -> list[CertificateEnd]:
    end = first_end(chain)
    if end is None:
        return []
    return [CertificateEnd(whose, (end - datetime.now(timezone.utc)).total_seconds() / 86400)]

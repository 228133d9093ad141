"""TensorFlow Serving's REST API: the model stands in the path, `/v1/models/{model}[/versions/{version}]:predict`.

A server lists no models, so these are those that are declared or that clients ask for. It tells no places. What asks
for a label is passed through: which version that is, the server does not tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from ts_parity.config import InstanceSettings
from ts_parity.proxy.fleet.backends.backend import Unprotected, mypyc_attr
from ts_parity.proxy.fleet.backends.plain import (
    PlainBackend,
    get,
    is_compressed,
    read_json,
    segment,
    with_path,
    without_coding,
)
from ts_parity.proxy.fleet.backends.probing import Hosted, Probe, Seen
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

_ASK: Final = re.compile(r"/v1/models/([^/:]+)(/(?:versions|labels)/[^/:]+)?(:(?:predict|classify|regress))")
_OF_MODEL: Final = re.compile(r"/v1/models/([^/:]+)(?:[/:].*)?")


@mypyc_attr(allow_interpreted_subclasses=True)
class TensorFlowBackend(PlainBackend):
    kind: ClassVar[str] = "tensorflow"

    def match(self, request: Request) -> Ask | None:
        path = request.path
        if request.method != "POST":
            return None
        return _asked(path) if len(path) <= 256 else _asked.__wrapped__(path)

    def speaks(self, request: Request) -> bool:
        return request.path.startswith("/v1/models")

    def model_named(self, request: Request) -> str | None:
        found = _OF_MODEL.fullmatch(request.path)
        return None if found is None else unquote(found[1])

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        return Unprotected("it asks for a label") if "/labels/" in request.path else None

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        name, _, version = target.model.partition("/")
        versions = f"/versions/{segment(version)}" if version else ""
        return with_path(payload.request, f"/v1/models/{segment(name)}{versions}{payload.ask.extra}")

    def is_answer(self, response: Response) -> bool:
        return is_compressed(response) or response.body[:64].lstrip()[:1] == b"{"

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        return _results

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        found = []
        answered = False
        for name in dict.fromkeys(name.partition("/")[0] for name in names):
            status = yield get(f"/v1/models/{segment(name)}")
            answered = answered or status.status in (200, 404)
            told = read_json(status)
            states = told.get("model_version_status") if isinstance(told, dict) else None
            listed = [each for each in states if isinstance(each, dict)] if isinstance(states, list) else []
            loaded = [str(each.get("version")) for each in listed if each.get("state") == "AVAILABLE"]
            newest = max((version for version in loaded if version.isdecimal()), key=int, default="")
            found += [Hosted(name, version, version == newest) for version in loaded]
        if not names:
            yield None
        return Seen(answered or not names, tuple(found))


@lru_cache(1024)
def _asked(path: str) -> Ask | None:
    found = _ASK.fullmatch(path)
    if found is None:
        return None
    _, _, version = (found[2] or "").rpartition("/")
    return Ask(unquote(found[1]), unquote(version) or None, found[3])


def _results(response: Response) -> Any:
    """In rows or in columns. Raise ValueError if there are none."""
    told = json.loads(without_coding(response))
    results = {key: told[key] for key in ("predictions", "outputs", "results") if key in told}
    if not results:
        raise ValueError("there are no predictions in it")
    return results


BACKEND = TensorFlowBackend

"""A container as SageMaker runs it: `POST /invocations`, `GET /ping`; of several models `POST /models/{name}/invoke`.

The one model of a container has no name; it is called `/invocations`. Its student is another path or another address,
a named model's student another name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import ClassVar, Final
from urllib.parse import unquote

from ts_parity.config import InstanceSettings
from ts_parity.proxy.fleet.backends.backend import Unprotected, mypyc_attr
from ts_parity.proxy.fleet.backends.plain import PlainBackend, asks_for_stream, get, read_json, segment, with_path
from ts_parity.proxy.fleet.backends.probing import Hosted, Probe, Seen
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

ONLY: Final = "/invocations"
_INVOKE: Final = re.compile(r"/models/([^/]+)/invoke")


@mypyc_attr(allow_interpreted_subclasses=True)
class SageMakerBackend(PlainBackend):
    kind: ClassVar[str] = "sagemaker"

    def names_of_models(self, name: str) -> bool:
        return name == ONLY or not name.startswith("/")

    def match(self, request: Request) -> Ask | None:
        if request.method != "POST":
            return None
        found = _INVOKE.fullmatch(request.path)
        return Ask(unquote(found[1])) if found is not None else Ask(ONLY) if request.path == ONLY else None

    def speaks(self, request: Request) -> bool:
        return request.path in (ONLY, "/ping") or request.path.startswith("/models")

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        return asks_for_stream(request)

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        path = target.model if target.model.startswith("/") else f"/models/{segment(target.model)}/invoke"
        return with_path(payload.request, path)

    def lacks_model(self, response: Response) -> bool:
        return False

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        ping = yield get("/ping")
        listed = read_json((yield get("/models")))
        models = listed.get("models") if isinstance(listed, dict) else None
        entries = [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []
        named = [str(each.get("modelName")) for each in entries]
        named += [name for name in names if name.startswith("/") or not named]
        return Seen(ping.status == 200, tuple(Hosted(name) for name in dict.fromkeys([ONLY, *named])))


BACKEND = SageMakerBackend

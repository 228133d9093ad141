"""REST: LitServe, BentoML, Ray Serve, FastAPI, Flask: whatever answers predictions to POST on a path.

The paths are declared (`[[model]] name = "/predict"`); where none is, `/predict` is taken for the one. A path is all
that a model is. The student is another path, or another address. An instance is ready if it takes a connection, or
answers 2xx on the path that is declared as `ready`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Final

from ts_parity.config import InstanceSettings, ModelSettings
from ts_parity.errors import TsParityError
from ts_parity.proxy.fleet.backends.backend import Unprotected, mypyc_attr
from ts_parity.proxy.fleet.backends.plain import PlainBackend, asks_for_stream, get, parsed, with_path, without_coding
from ts_parity.proxy.fleet.backends.probing import Hosted, Probe, Seen
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

DEFAULT_PATH: Final = "/predict"


@mypyc_attr(allow_interpreted_subclasses=True)
class RestBackend(PlainBackend):
    kind: ClassVar[str] = "rest"

    def __init__(self, models: Sequence[ModelSettings] = (), prefix: str = "") -> None:
        super().__init__(models, prefix)
        self.paths = self.models or {DEFAULT_PATH: ModelSettings(DEFAULT_PATH)}

    def names_of_models(self, name: str) -> bool:
        return name.startswith("/")

    def match(self, request: Request) -> Ask | None:
        path = request.path
        return Ask(path) if request.method == "POST" and path in self.paths else None

    def model_named(self, request: Request) -> str | None:
        return request.path if request.path in self.paths else None

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        return asks_for_stream(request)

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        return with_path(payload.request, target.model)

    def lacks_model(self, response: Response) -> bool:
        """That a path is there is not asked, so it may be the service that knows no such thing."""
        return False

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        pointers = self.paths[model].compare if model in self.paths else ()
        return (lambda response: picked(without_coding(response), pointers)) if pointers else None

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        ready = True
        if given.ready:
            answer = yield get(given.ready)
            ready = 200 <= answer.status < 300
        else:
            yield None
        return Seen(ready, tuple(Hosted(path) for path in names or self.paths))

    def error_fields(self, error: TsParityError) -> Any:
        return {"detail": str(error)}


def picked(body: bytes, pointers: Sequence[str]) -> Any:
    """What JSON pointers (RFC 6901) point to. Raise ValueError if one points to nothing."""
    whole = parsed(body)
    return [_at(whole, pointer) for pointer in pointers]


def _at(value: Any, pointer: str) -> Any:
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise ValueError(f"there is no {pointer} in it")
    return value


BACKEND = RestBackend

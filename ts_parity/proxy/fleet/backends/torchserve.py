"""TorchServe: the one kind that tells all about itself, and whose archives can be wrapped, so that codes of any family
protect its models.

Knows which file of `fleet/torchserve` answers which question.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

from ts_parity.config import MANAGED, InstanceSettings, ModelSettings
from ts_parity.errors import TsParityError
from ts_parity.proxy.fleet.backends.backend import Prober, Unprotected
from ts_parity.proxy.fleet.payloads import Ask
from ts_parity.proxy.fleet.torchserve import answers, tasks
from ts_parity.proxy.fleet.torchserve.discovery import TorchServeProber
from ts_parity.proxy.fleet.torchserve.routes import model_named, prediction_route
from ts_parity.proxy.http.messages import Request, Response, error_response
from ts_parity.proxy.http.upstream import Upstream

# TorchServe itself sets these: they decide which of the handler's functions runs.
_ALWAYS_GROUP_BY: Final = frozenset({"explain", "describe"})
_NOT_RUN: Final = frozenset({"InvalidKeyException", "ModelNotFoundException", "ModelVersionNotFoundException"})

_OWN_ROUTES: Final = (["predictions"], ["explanations"], ["ping"], ["api-description"], ["wfpredict"])


class TorchServeBackend:
    """The functions that each query meets are called without a detour."""

    kind: Final = MANAGED
    whole: Final = False

    prediction = staticmethod(tasks.prediction_request)
    protection = staticmethod(tasks.group_request)
    finish = staticmethod(tasks.finish_request)
    read_prediction = staticmethod(tasks.read_prediction)
    read_protection = staticmethod(tasks.read_protection)
    read_finish = staticmethod(tasks.read_finish)
    trouble = staticmethod(answers.classify)
    key_refused = staticmethod(answers.key_refused)
    from_gateway = staticmethod(answers.from_gateway)

    def __init__(self, models: Sequence[ModelSettings] = (), prefix: str = "") -> None:
        self.prefix = prefix

    def match(self, request: Request) -> Ask | None:
        return prediction_route(request.method, request.path)

    def model_named(self, request: Request) -> str | None:
        return model_named(request.path, request.query_string)

    def speaks(self, request: Request) -> bool:
        return request.path.split("/")[1:2] in _OWN_ROUTES

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        """Archives say of themselves what must run only once."""
        return None

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        return None

    def variants(self, ask: Ask, request: Request, group_by: frozenset[str]) -> Hashable:
        """(TorchServe drops the query string of predictions, so it does not count.)"""
        found: dict[str, str] | None = None
        for name, value in request.headers:
            lower = name.lower()
            if lower in group_by or lower in _ALWAYS_GROUP_BY:
                found = {} if found is None else found
                found[lower] = value  # the last one of that name, which is the one that TorchServe keeps
        return ask.extra if found is None else (ask.extra, *sorted(found.items()))

    @property
    def confuses(self) -> bool:
        return False

    def confused(self, servers: str, request: Request, response: Response) -> str:
        return ""

    def was_not_run(self, response: Response) -> bool:
        return response.status in (400, 404) and answers.error_fields(response)[0] in _NOT_RUN

    def prober(
        self,
        instances: Sequence[InstanceSettings],
        upstream: Upstream,
        timeout_s: float,
        before: Prober | None = None,
    ) -> Prober:
        if isinstance(before, TorchServeProber):
            before.adopt(instances, timeout_s, self.prefix)
            return before
        return TorchServeProber(instances, upstream, timeout_s, self.prefix)

    def error(self, error: TsParityError) -> Response:
        return error_response(error)


BACKEND = TorchServeBackend

"""What TorchServe's status codes and errors mean.

Only `classify` here decides what they mean for the question "would another endpoint do better?". Pure. Knows
TorchServe's errors, and how gateways differ from it. Knows nothing of queries, groups or policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from ts_parity.engine import Cause, Failed, Rejected
from ts_parity.proxy.http.messages import Response
from ts_parity.proxy.http.upstream import excerpt

_ERROR_BYTES: Final = 65536
# What TorchServe's frontend sends with every response (NettyUtils.sendHttpResponse). The date should say GMT and the
# list should have a comma, so nobody else sends these.
_EXPIRES: Final = "Thu, 01 Jan 1970 00:00:00 UTC"
_CACHE_CONTROL: Final = "no-cache; no-store, must-revalidate, private"
# How gateways say that the instance is gone.
_INSTANCE_GONE: Final = frozenset({502, 503, 504})
# Error types of TorchServe's frontend for a model, a version or a route that does not exist.
_NOT_FOUND: Final = frozenset({"ModelNotFoundException", "ModelVersionNotFoundException", "ResourceNotFoundException"})
# Its error types for statuses that a gateway may have sent as well.
_TORCHSERVE_ERRORS: Final = _NOT_FOUND | {
    "InternalServerException", "RequestTimeoutException", "ServiceUnavailableException", "WorkflowNotFoundException",
}  # fmt: skip
# Other statuses by which a gateway speaks of the instance: redirects, no such route, timeouts, rate limits.
_OF_GATEWAYS: Final = frozenset({301, 302, 303, 307, 308, 404, 408, 429})


def classify(response: Response) -> Failed | Rejected | None:
    """None: this is the answer, good or bad. Otherwise the instance is at fault, not the request.

    TorchServe sends "Worker died." with 500 or 507, "Out of resources" with 507, and 503 with the type
    ServiceUnavailableException when a queue is full or there is no worker. A handler's exception is 503 "Prediction
    failed". Its cause is nearly always this client's own bad input, so it is passed on, and no rebuilt answer replaces
    it. A status that TorchServe did not write comes from a gateway and speaks of the instance behind that gateway.
    """
    status = response.status
    if status < 300:
        return None
    if from_gateway(response):
        # With "bad gateway" and the like a sidecar says that the instance behind it is gone, and its work with it.
        cause = Cause.LOST_BEHIND if status in _INSTANCE_GONE else Cause.ERROR
        return Failed(f"{status} from a gateway, not from TorchServe: {excerpt(response.body)}", cause=cause)
    if status not in (404, 500, 503, 507):
        return None
    kind, message = error_fields(response)
    if status == 404:
        # Queries go only to instances that were seen to have the model.
        return Failed(f"{status} {message}", cause=Cause.MISSING) if kind in _NOT_FOUND else None
    if status == 503:
        return Rejected() if kind == "ServiceUnavailableException" else None
    if kind != "InternalServerException":
        return None
    if message == "Worker died.":
        return Failed(f"{status} {message}", cause=Cause.WORKER_DIED)
    if status == 507:
        return Failed(f"{status} {message}")
    return None


def key_refused(response: Response) -> bool:
    """Whether the instance rejected the key. Nothing was run."""
    return response.status == 400 and error_fields(response)[0] == "InvalidKeyException"


def from_gateway(response: Response) -> bool:
    """Whether a sidecar or a load balancer wrote this error, which then speaks of the instance behind it."""
    if response.status < 500 and response.status not in _OF_GATEWAYS:
        return False
    return not _written_by_torchserve(response) and error_fields(response)[0] not in _TORCHSERVE_ERRORS


def _written_by_torchserve(response: Response) -> bool:
    """TorchServe's frontend puts these two headers on every response, the handler's included (only its empty 413 is
    Netty's own), and spells them as nobody else does. Either is enough, since a gateway may change one of them.
    """
    return response.header("expires") == _EXPIRES or response.header("cache-control") == _CACHE_CONTROL


def error_fields(response: Response) -> tuple[str, str]:
    """Type and message of an error in TorchServe's shape; empty texts for anything else."""
    if len(response.body) > _ERROR_BYTES:
        return "", ""
    try:
        error = json.loads(response.body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(error, Mapping) or error.get("code") != response.status:
        return "", ""
    kind, message = error.get("type"), error.get("message")
    if not isinstance(kind, str) or not kind.endswith("Exception"):
        return "", ""
    return kind, message if isinstance(message, str) else ""

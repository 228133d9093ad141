"""Every error of the package. One that can reach a client knows its HTTP status and the `type` it is reported as.

Knows nothing of where errors are raised or how they are sent.
"""

from __future__ import annotations

import json


class TsParityError(Exception):
    """Base of all errors raised on purpose here. `status` and `kind` are what a client of the proxy would see."""

    status = 500
    kind = "InternalServerException"


class ConfigError(TsParityError):
    """A setting, flag or file is wrong. The message says which one, what it was and what is allowed."""


class OutOfReach(TsParityError):
    """What was asked for cannot be had: an overloaded fleet, or a target that nothing meets."""

    exit_code = 4


class WireError(TsParityError):
    """Bytes that claim to be one of our frames or tails and are not."""

    status = 400
    kind = "BadRequestException"


class MalformedFrame(WireError):
    """A group or finish frame is cut short, too long, of another version, or holds nonsense."""


class MalformedTail(WireError):
    """A raw tail and the header that describes it do not agree."""


class CodeError(TsParityError):
    """A code with impossible parameters: sizes, coefficients, or an encoder that does not exist for them."""


class DecodeError(TsParityError):
    """The outputs at hand cannot give the wanted prediction: an unrecoverable pattern, or shapes that disagree."""


class NotCodable(TsParityError):
    """A handler, model or output that cannot be coded. The message is the reason operators see in describe."""


class NotRepeatable(NotCodable):
    """A handler that may answer the same request in another way: it keeps something between requests, or rolls dice."""


class ArchiveError(TsParityError):
    """A model archive that cannot be read, wrapped or packed."""


class ManagementError(TsParityError):
    """TorchServe's management API refused or did not answer."""

    def __init__(self, message: str, upstream_status: int | None = None) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status


class StartError(TsParityError):
    """A TorchServe instance did not come up. The message quotes what its log said."""


class TrainingError(TsParityError):
    """Training cannot go on: too few bodies, an output that cannot be coded, an unusable model."""


class Unavailable(TsParityError):
    """No prediction could be had for a query. Sent to the client."""

    status = 503
    kind = "ServiceUnavailableException"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """Admission refused the query: the queue is full or has become too slow."""


class DeadlineExceeded(Unavailable):
    """The query's deadline passed before any prediction, deployed or rebuilt, was there."""

    status = 504
    kind = "DeadlineExceededException"


class BadClientRequest(TsParityError):
    """A request the proxy itself cannot accept, such as a nonsensical deadline header."""

    status = 400
    kind = "BadRequestException"


def error_body(status: int, kind: str, message: str) -> bytes:
    """TorchServe's own error shape, byte for byte: pretty-printed JSON and a newline."""
    return (json.dumps({"code": status, "type": kind, "message": message}, indent=2) + "\n").encode()

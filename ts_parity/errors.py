"""Every error of the package. One that can reach a client knows its HTTP status and the `type` it is reported as; one
that ends a command knows the exit code.

Knows nothing of where errors are raised or how they are sent.
"""

from __future__ import annotations

import json
from typing import Any

FAILED, WRONG_INPUT, OUTSIDE, OUT_OF_REACH, INTERRUPTED = 1, 2, 3, 4, 130
EXIT_CODES = {
    0: "done",
    FAILED: "failed: requests were cut or lost, or a fault of ts_parity itself",
    WRONG_INPUT: "wrong input: a flag, a setting, a file, an archive, a body",
    OUTSIDE: "something outside: a port in use, a program that does not answer or refuses, a full disk, no package",
    OUT_OF_REACH: "out of reach: a target that nothing meets, a model that cannot be coded",
    INTERRUPTED: "interrupted",
}
"""What each exit code of `ts-parity` means, whatever the command."""


class TsParityError(Exception):
    """Base of all errors raised on purpose here. `status` and `kind` are what a client of the proxy would see, and
    `exit_code` what a command ends with.
    """

    status = 500
    kind = "InternalServerException"
    exit_code = FAILED
    side_log: Any = None
    """An `output.SideLog` that has more of it."""


class ConfigError(TsParityError):
    """A setting, flag or file is wrong. The message says which one, what it was and what is allowed."""

    exit_code = WRONG_INPUT


class OutOfReach(TsParityError):
    """What was asked for cannot be had: an overloaded fleet, or a target that nothing meets."""

    exit_code = OUT_OF_REACH


class Unreachable(TsParityError):
    """A program that a command talks to does not answer, or refuses."""

    exit_code = OUTSIDE


class Exhausted(TsParityError):
    """The machine has too little of something: space on a disk, memory."""

    exit_code = OUTSIDE


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

    exit_code = WRONG_INPUT


class DecodeError(TsParityError):
    """The outputs at hand cannot give the wanted prediction: an unrecoverable pattern, or shapes that disagree."""


class NotCodable(TsParityError):
    """A handler, model or output that cannot be coded. The message is the reason operators see in describe."""

    exit_code = OUT_OF_REACH


class NotRepeatable(NotCodable):
    """A handler that may answer the same request in another way: it keeps something between requests, or rolls dice."""


class ArchiveError(TsParityError):
    """A model archive that cannot be read, wrapped or packed."""

    exit_code = WRONG_INPUT


class ManagementError(Unreachable):
    """TorchServe's management API refused or did not answer."""

    def __init__(self, message: str, upstream_status: int | None = None) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status


class StartError(TsParityError):
    """A TorchServe instance did not come up. The message quotes what its log said."""

    exit_code = OUTSIDE


class TrainingError(TsParityError):
    """Training cannot go on: too few bodies, an output that cannot be coded, an unusable model."""

    exit_code = WRONG_INPUT


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


class UnknownModel(TsParityError):
    """There is no such model for clients."""

    status = 404
    kind = "ModelNotFoundException"


class BadGateway(TsParityError):
    """An instance had a request that was passed through to it, and gave no answer."""

    status = 502
    kind = "BadGatewayException"


class BadClientRequest(TsParityError):
    """A request the proxy itself cannot accept, such as a nonsensical deadline header."""

    status = 400
    kind = "BadRequestException"


def error_body(status: int, kind: str, message: str) -> bytes:
    """TorchServe's own error shape, byte for byte: pretty-printed JSON and a newline."""
    return (json.dumps({"code": status, "type": kind, "message": message}, indent=2) + "\n").encode()


def with_article(name: str) -> str:
    """`an int64`, `a uint8`: for messages that tell a type."""
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"

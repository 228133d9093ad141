"""The trace that a request belongs to, as its client says in `traceparent` and `tracestate` (W3C Trace Context).

Read only: these headers go on to the instances as they came. Knows headers. Knows nothing of spans.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ts_parity.wire import Headers

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_VALUE: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1
_LAST_OF_FLAGS: Final = slice(54, 55)
_ODD: Final = frozenset("13579bdf")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16


class TraceContext(NamedTuple):
    """`trace_id`: 32 hexadecimal digits; `span_id`: 16, of the client's span. `state`: other vendors' own words."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str


def trace_context(headers: Headers) -> TraceContext | None:
    """None where there is none, or none that is valid: two headers, or a list in one, belong to no single trace."""
    found = None
    for name, value in headers:
        if len(name) == len(TRACEPARENT) and name.lower() == TRACEPARENT:
            if found is not None:
                return None
            found = value
    return None if found is None else context_of(found, headers)


def may_be_sampled(headers: Headers) -> bool:
    """At once, for most are not: whoever needs to know for sure asks `trace_context`."""
    for name, value in headers:
        if len(name) == len(TRACEPARENT) and value.strip()[_LAST_OF_FLAGS] in _ODD and name.lower() == TRACEPARENT:
            return True
    return False


def context_of(value: str, headers: Headers) -> TraceContext | None:
    """`value`: of a `traceparent`, alone of its kind in these headers."""
    match = _VALUE.fullmatch(value.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    state = ",".join(value for name, value in headers if name.lower() == TRACESTATE)
    return TraceContext(trace_id, span_id, int(flags, 16) & _SAMPLED > 0, state)

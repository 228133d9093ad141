"""When certificates end. Python's ssl tells it only of certificates that it has verified, and those that have ended or
are not trusted are just the ones to ask about.

Knows as much of DER (X.690) as leads to the validity of an X.509 certificate (RFC 5280, 4.1). Verifies nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import datetime, timezone

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def pem_blocks(text: str) -> list[bytes]:
    """The DER of each certificate in a PEM file; what is no base64 is left out."""
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", text, re.DOTALL)
    found = []
    for block in blocks:
        try:
            found.append(base64.b64decode("".join(block.split()), validate=True))
        except binascii.Error:
            continue
    return found


def first_end(chain: Sequence[bytes]) -> datetime | None:
    """The first end of several; None if none can be read."""
    ends = [end for der in chain if (end := not_after(der)) is not None]
    return min(ends, default=None)


def not_after(der: bytes) -> datetime | None:
    """Certificate -> tbsCertificate -> version?, serial, algorithm, issuer, validity -> the second of its times."""
    try:
        certificate = _inside(der, _SEQUENCE)
        fields = _elements(_inside(certificate, _SEQUENCE))
        if fields[0][0] == _VERSION:
            fields = fields[1:]
        tag, end = _elements(fields[3][1])[1]
        if tag not in (_UTC_TIME, _GENERALIZED_TIME):
            return None
        text = end.decode("ascii")
        if tag == _UTC_TIME:  # two digits of a year: 50 to 99 are of the last century
            text = ("19" if text >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
    except (IndexError, ValueError):
        return None


def _inside(data: bytes, tag: int) -> bytes:
    found, content, _ = _element(data, 0)
    if found != tag:
        raise ValueError(f"tag {found:#x}, not {tag:#x}")
    return content


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    at, found = 0, []
    while at < len(data):
        tag, content, at = _element(data, at)
        found.append((tag, content))
    return found


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """-> tag, content, and where the next one begins. Raise IndexError or ValueError."""
    tag, length, at = data[at], data[at + 1], at + 2
    if length >= 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[at : at + size], "big"), at + size
    if at + length > len(data):
        raise ValueError("it is cut short")
    return tag, data[at : at + length], at + length

"""Slots as requests, and the corners that the comparison with a real frontend does not reach."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.worker.serving import InProcess
from ts_parity.wire import Part
from ts_parity.worker.requests import request_of


def test_a_body_of_a_type() -> None:
    request = request_of(Part((("Content-Type", "application/json;charset=utf-8"), ("X-A", "1")), b'{"a": 1}'), "7")
    assert (request.id, request.data) == ("7", {"body": {"a": 1}})
    assert request.headers == {
        "body": {"content-type": "application/json"},
        "Content-Type": "application/json;charset=utf-8",
        "X-A": "1",
    }


def test_the_fields_of_a_form_may_hold_any_letters() -> None:
    kind = (("content-type", "application/x-www-form-urlencoded"),)
    data = request_of(Part(kind, "text=gr%C3%B6%C3%9Fer+%26+ä&bad=%ff&empty=".encode()), "7").data
    assert data == {"text": "größer & ä".encode(), "bad": "\ufffd".encode(), "empty": b""}


def test_control_headers_are_not_passed_on() -> None:
    request = request_of(Part((("X-TS-Parity-Op", "raw"), ("url_path", "a/b")), b""), "7")
    assert request.headers == {"body": {"content-type": ""}, "url_path": "a/b"}


def test_decoding_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    assert request_of(Part((("content-type", "application/json"),), b"{}"), "7").data == {"body": bytearray(b"{}")}


def test_each_run_gets_its_own_data() -> None:
    request = request_of(Part((), b"abc"), "7")
    request.fresh_data()["body"][0] = 0
    assert request.data == {"body": bytearray(b"abc")}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"no parts"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nv\r\n'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: text/plain\r\n\r\nv\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nnothing\r\n--x--\r\n"),
    ],
)
def test_a_malformed_form_is_a_bad_slot(serve: Callable[..., InProcess], content_type: str, body: bytes) -> None:
    bad = Part((("content-type", content_type),), body)
    with pytest.raises(ValueError, match="multipart"):
        request_of(bad, "7")
    slots = serve("echoes", {"role": "parity", "code": "exact", "k": 2}).group(bad, Part((), b"fine")).frame.slots
    assert slots[0] is not None
    assert slots[1] is not None
    assert (slots[0].status, slots[1].status) == (400, 200)
    assert "multipart" in json.loads(slots[0].body)["message"]

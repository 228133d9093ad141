"""Answers that a server compressed for a client that takes it: Triton does."""

import gzip
import json
import zlib

import pytest

from ts_parity.engine import ARRIVED
from ts_parity.proxy.fleet.backends.kinds import backend_of
from ts_parity.proxy.fleet.backends.open_inference import outputs_of
from ts_parity.proxy.http.messages import Response

TOLD = {"id": "7", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]}]}
BODY = json.dumps(TOLD).encode()


def answered(body: bytes, coding: str) -> Response:
    return Response(200, "OK", (("Content-Encoding", coding), ("Content-Length", str(len(body)))), body)


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_it_is_an_answer_and_is_compared_as_one(coding, pack):
    response = answered(pack(BODY), coding)
    assert backend_of("open-inference").read_prediction(response)[0] is ARRIVED
    assert outputs_of(response) == {"y": [[1.5, 2.0]]}


UNREADABLE = {
    "no gzip": (BODY, "gzip"),
    "cut short": (gzip.compress(BODY)[:-4], "gzip"),
    "a coding that is not known": (BODY, "br"),
    "too large": (gzip.compress(b" " * (1 << 21)), "gzip"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_told_is_not_compared(name):
    with pytest.raises(ValueError, match=r"coding|cut short|it is not"):
        outputs_of(answered(*UNREADABLE[name]))

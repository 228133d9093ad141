"""The proxy in front of a real TorchServe: the same bytes as without it, and a fake that does not lie about them.

Tables of requests, one test to compare. Odd clients and TorchServe's own published tests have files of their own.
"""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import NO_TORCH, TorchServeFactory, write_archive
from tests.proxy.conftest import Client
from tests.proxy.side_by_side import WITNESS, Case, Pair, ask, do, elsewhere, proxy_before
from ts_parity.testing import FakeModel, FakeTorchServe
from ts_parity.torchserve.launcher import TorchServeInstance

pytestmark = [pytest.mark.torchserve, pytest.mark.asyncio(loop_scope="module")]

ODD_NAME, ODD_VERSION = "a b+c", "1.0-é"


@pytest.fixture(scope="module")
def instance(torchserve_factory: TorchServeFactory, tmp_path_factory: Any) -> TorchServeInstance:
    """A model, one with a name to be escaped, and one without workers."""
    folder: Path = tmp_path_factory.mktemp("archives")
    entry: dict[str, Any] = {"handler_entry": "handler.py", "files": {"handler.py": WITNESS}}
    witness = write_archive(folder / "witness.mar", WITNESS)
    odd = write_archive(folder / "odd.mar", name=ODD_NAME, version=ODD_VERSION, **entry)
    instance = torchserve_factory([witness, odd], model_api=True, env=NO_TORCH)
    with instance.management() as management:
        management.register(instance.add_archive(write_archive(folder / "idle.mar", WITNESS)), initial_workers=0)
    return instance


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(instance: TorchServeInstance) -> AsyncIterator[Pair]:
    async with proxy_before(instance) as proxy:
        assert proxy.plan.versions == {"witness": "1.0", ODD_NAME: ODD_VERSION, "idle": "1.0"}
        yield Pair(instance.inference_url, proxy.url, proxy)


JSON = (("Content-Type", "application/json"),)
FORM = (("Content-Type", "application/x-www-form-urlencoded"),)
PARTS = (("Content-Type", "multipart/form-data; boundary=B"),)
MULTIPART = (
    b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\none\r\n'
    b'--B\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    b"\x00\xff\r\n\r\n"
    b'--B\r\nContent-Disposition: form-data; name="a"; filename="a.json"\r\nContent-Type: application/json\r\n\r\n'
    b'{"k": [1]}\r\n--B--\r\n'
)
NAMED = b'--B\r\nContent-Disposition: form-data; name="model_name"\r\n\r\nwitness\r\n--B--\r\n'


def asks(path: str, status: int = 200, marked: bool = False, method: str = "POST") -> Case:
    return Case(status, method, path, b"[1, 2]" if method == "POST" else b"", JSON, marked)


# path -> what TorchServe answers. A prediction of a known model is marked by the proxy, so these come apart.
PREDICTIONS = {
    "/predictions/witness": 200,
    "/predictions/witness/": 200,
    "/predictions/witness//": 200,
    "/predictions/witness/1.0": 200,
    "/predictions/witness/1.0/": 200,
    "/predictions/witness/1.0/extra/more": 200,
    "/predictions/witness/1.0/a%20b%2Fc/": 200,
    "/predictions/witness/1.0/a//b": 200,
    "/predictions/witness/1.0//a": 200,
    "/predictions/witness/1.0/../x": 200,
    "/predictions/witness/1.0/caf%C3%A9": 200,
    # Bytes beyond ASCII as they are: TorchServe reads each as one sign (Latin-1), escaped ones as UTF-8.
    "/predictions/witness/1.0/caf\xc3\xa9": 200,
    "/predictions/witness/1.0/caf\xe9/\x80%C3%A9\xff": 200,
    "/predictions/witness?a=\xc3\xa9\xff": 200,
    "/predictions/witness?": 200,
    "/predictions/witness?a=b&a=c": 200,
    "/predictions/witness?model_name=nobody": 200,
    "/predictions/witness/1.0/x?a=b/c": 200,
    "/predictions/w%69tness": 200,
    "/predictions/w%69tness/1%2E0": 200,
    "/predictions/a%20b+c": 200,
    "/predictions/a%20b%2Bc/1.0-%C3%A9": 200,
    "/predictions/a%20b%2bc/1.0-%c3%a9/x": 200,
    # TorchServe unescapes the path before it takes it apart, and takes a fragment for no part of it.
    "/%70redictions/witness": 200,
    "/predictions%2Fwitness": 200,
    "/predictions/witness%2F1.0/x": 200,
    "/predictions/witness#fragment": 200,
    "/predictions/witness/1.0/x#fragment": 200,
}

OTHER_PATHS = {
    "/": 405,
    "/nowhere": 404,
    "/predictions": 404,
    "/predictions/": 404,
    "//predictions/witness": 404,
    "/predictions//witness": 404,
    "/predictions//1.0": 404,
    "/predictions/witness//extra": 404,
    "/Predictions/witness": 404,
    "/predictions/Witness": 404,
    "/predictions/witness/9": 404,
    "/predictions/witness/1.00": 404,
    "/predictions/witn\xc3\xa9ss": 404,
    "/predictions/\xff": 404,
    "/v1/models/witness:predict?a=\xe9": 200,
    "/predictions/%ff": 404,
    "/predictions/witness;x=1": 404,
    "/predictions/witness/1.0;x=1": 404,
    "/predictions/./witness": 404,
    "/predictions/witness/../witness": 404,
    "/predictions/a+b+c": 404,
    "/predictions/nobody": 404,
    "/predictions/nobody/1.0": 404,
    "/explanations/witness": 200,
    "/explanations/witness/1.0": 200,
    "/explanations/witness/1.0/x": 200,
    "/explanations/witness/9": 404,
    "/explanations/nobody": 404,
    "/explanations": 404,
    "/v1/models/witness:predict": 200,
    "/v1/models/witness:predict?a=b": 200,
    "/v1/models/witness:explain": 200,
    "/v1/models/w%69tness%3Apredict": 200,
    "/v1/models/a%20b+c:predict": 200,
    "/v1/models/witness": 404,
    "/v1/models/witness:nothing": 404,
    "/v1/models/witness/1.0:predict": 404,
    "/v1/models/nobody:predict": 404,
    "/v1/models/:predict": 404,
    "/v1/models": 404,
    "/v2/models/witness/infer": 200,
    "/v2/models/witness/infer?a=b": 200,
    "/v2/models/witness/explain": 200,
    "/v2/models/a%20b+c/infer": 200,
    "/v2/models/witness": 404,
    "/v2/models/witness/ready": 404,
    "/v2/models/witness/versions/1.0/infer": 404,
    "/v2/models/nobody/infer": 404,
    "/v2/models": 404,
    "/v2": 404,
    "/v2/health/live": 404,
    "/v2/health/ready": 404,
    "/invocations": 400,
    "/invocations/": 400,
    "/invocations?a=b": 400,
    "/invocations?model_name=witness": 200,
    "/invocations?model_name=witness&a=b&a=c&%20d=e%20f+g": 200,
    "/invocations?model_name=a+b%2Bc": 200,
    "/invocations?model_name=witness&model_name=nobody": 200,
    "/invocations?model_name=nobody&model_name=witness": 404,
    "/invocations?x=1;model_name=witness": 200,
    "/invocations?model_name=witness&body=in-the-query": 200,
    "/invocations?model_name=nobody": 404,
    "/invocations?model_name=": 404,
    "/invocations/witness": 404,
    "/models": 404,
    "/models/witness": 404,
    "/models/witness/invoke": 200,
    "/models/witness/invoke?a=b&a=c": 200,
    "/models/witness/1.0/invoke": 404,
    "/models/witness/invoke/x": 404,
    "/models/nobody/invoke": 404,
    "/models//invoke": 404,
    "/witness/predict": 200,
    "/witness/predict?data=test": 200,
    "/witness/1.0/predict": 200,
    "/a%20b+c/predict": 200,
    "/witness/9/predict": 404,
    "/witness/predict/x": 404,
    "/nobody/predict": 404,
    "/predictions/predict": 404,
    "//predict": 404,
    "/ping": 200,
    "/ping/": 200,
    "/ping/x": 200,
    "/ping?x=1": 200,
    "/api-description": 200,
    "/api-description/x": 404,
    "/wfpredict/nobody": 404,
    "/wfpredict": 404,
    "/workflows": 404,
    "/metrics": 404,
    "/token?type=inference": 404,
    "http://fleet.example/ping": 404,
    "http://fleet.example/predictions/witness": 404,
}

PATHS = {
    **{path: asks(path, status, marked=True) for path, status in PREDICTIONS.items()},
    **{path: asks(path, status) for path, status in OTHER_PATHS.items()},
}


@pytest.mark.parametrize("path", PATHS)
async def test_every_path(pair: Pair, path: str) -> None:
    await pair.same(PATHS[path])


# What TorchServe says to a method on these paths: a prediction, a description for OPTIONS, or the same as ever.
METHODS = ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PROPFIND", "M-SEARCH", "QUERY")
ANSWERED = {
    "/predictions/witness": 200,
    "/predictions/witness/1.0": 200,
    "/explanations/witness": 200,
    "/v1/models/witness:predict": 200,
    "/v2/models/witness/infer": 200,
    "/invocations?model_name=witness": 200,
    "/models/witness/invoke": 200,
    "/witness/predict": 200,
    "/ping": 200,
    "/api-description": 200,
    "/predictions/nobody": 404,
    "/nowhere": 404,
}


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_on_every_route(pair: Pair, method: str) -> None:
    for path, status in ANSWERED.items():
        predicts = path.startswith("/predictions/witness") and method != "OPTIONS"
        await pair.same(asks(path, status, predicts, method))
    await pair.same(asks("/", 200 if method == "OPTIONS" else 405, False, method))
    if method not in ("HEAD", "OPTIONS"):
        await pair.same(Case(200, method, body=b"\x00body", headers=(("X-A", "1"),)))


# What TorchServe says where the proxy refuses, as nginx does.
REFUSED_HERE = {
    ("TRACE", "/predictions/witness"): (200, 405),
    ("CONNECT", "/predictions/witness"): (200, 405),
    ("OPTIONS", "*"): (500, 400),
    ("GET", "/predictions/witness/%zz"): (403, 400),
    ("GET", "/predictions/witness/1.0/%00"): (403, 400),
    ("GET", "/predictions/witness/1.0/../../../../etc"): (200, 400),
    ("GET", "/predictions/witness/1.0/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc"): (200, 400),
}


@pytest.mark.parametrize(("method", "path"), REFUSED_HERE)
async def test_what_torchserve_takes_and_the_proxy_refuses(pair: Pair, method: str, path: str) -> None:
    asked = f"{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    answers = [await Client(url).send(asked) for url in (pair.direct, pair.proxied)]
    assert tuple(answer.status for answer in answers) == REFUSED_HERE[method, path]


@pytest.mark.parametrize("method", ["get", "Post", "MINE"])
async def test_methods_that_nobody_has_heard_of(pair: Pair, method: str) -> None:
    """TorchServe predicts for any word; here a request that no HTTP parser expects is refused, on purpose."""
    request = f"{method} /predictions/witness HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx".encode()
    assert (await Client(pair.direct).send(request)).status == 200
    refused = await Client(pair.proxied).send(request)
    assert (refused.status, refused.json()["type"]) == (400, "BadRequestException")


BODIES = {
    "none": Case(200),
    "no type": Case(200, body=bytes(range(256))),
    "octets": Case(200, body=bytes(range(256)), headers=(("Content-Type", "application/octet-stream"),)),
    "an empty type": Case(200, body=b"x", headers=(("Content-Type", ""),)),
    "JSON": Case(200, body=b'{"a": [1, null]}', headers=JSON),
    "JSON with charset": Case(200, body=b'{"a": 1}', headers=(("content-type", "application/json; charset=utf-8"),)),
    "JSON in capitals": Case(200, body=b'{"a": 1}', headers=(("CONTENT-TYPE", "Application/JSON"),)),
    "not the JSON it says": Case(200, body=b'{"a"', headers=JSON),
    "no JSON at all": Case(200, headers=JSON),
    "text": Case(200, body="grün".encode(), headers=(("Content-Type", "text/plain; charset=utf-8"),)),
    "text in latin-1": Case(200, body=b"gr\xfcn", headers=(("Content-Type", "text/plain; charset=iso-8859-1"),)),
    "two types": Case(200, body=b"[1]", headers=(("Content-Type", "text/plain"), *JSON)),
    "a form": Case(200, body=b"a=1&b=%20x+y&a=2&c", headers=FORM),
    "a form with charset": Case(
        200, body=b"a=1", headers=(("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),)
    ),
    "an empty form": Case(200, headers=FORM),
    "a form that is none": Case(500, body=b"a=%zz", headers=FORM),
    "a form that names the model": elsewhere(200, "/invocations", b"model_name=witness&z=1", FORM),
    "parts": Case(200, body=MULTIPART, headers=PARTS),
    "parts and a query": elsewhere(200, "/models/witness/invoke?q=1", MULTIPART, PARTS),
    "parts that name the model": elsewhere(200, "/invocations", NAMED, PARTS),
    "parts cut short": Case(200, body=MULTIPART[:50], headers=PARTS),
    "parts without a boundary": Case(200, body=MULTIPART, headers=(("Content-Type", "multipart/form-data"),)),
    "mixed parts": Case(200, body=MULTIPART, headers=(("Content-Type", "multipart/mixed; boundary=B"),)),
    "gzip": Case(200, body=gzip.compress(b"[1]", mtime=0), headers=(*JSON, ("Content-Encoding", "gzip"))),
    "as large as allowed": Case(200, body=b" " * 6_553_500, headers=(do(say="taken"),)),
    "too large": Case(413, body=b" " * 6_553_501, marked=False),
    "too large for no model": elsewhere(413, "/nowhere", b" " * 6_553_501),
    "too large, asking first": Case(
        413, headers=(("Content-Length", "6553501"), ("Expect", "100-continue")), marked=False
    ),
    "an unknown expectation": Case(417, body=b"x", headers=(("Expect", "unicorns"),), marked=False),
}


@pytest.mark.parametrize("name", BODIES)
async def test_bodies(pair: Pair, name: str) -> None:
    await pair.same(BODIES[name])


CHUNKED = ("Transfer-Encoding", "chunked")
CHUNKED_BODIES = {
    "chunks": Case(200, body=b"2\r\n[1\r\n4;x=y\r\n, 2]\r\n0\r\n\r\n", headers=(*JSON, CHUNKED)),
    "large chunks": Case(200, body=b"A\r\n0123456789\r\n0\r\n\r\n", headers=(("transfer-encoding", "Chunked"),)),
    "no chunk": Case(200, body=b"0\r\n\r\n", headers=(CHUNKED,)),
    "a trailer": Case(
        200,
        body=b"3\r\n[1]\r\n0\r\nX-Trail: t\r\nX-A: 2\r\n\r\n",
        headers=(("X-A", "1"), CHUNKED, ("Trailer", "X-Trail, X-A")),
        hidden=("trailer", "content-length"),
    ),
    "no more than announced": Case(
        413, body=b"63ff9d\r\n" + b" " * 0x63FF9D + b"\r\n0\r\n\r\n", headers=(CHUNKED,), marked=False
    ),
}


@pytest.mark.parametrize("name", CHUNKED_BODIES)
async def test_chunked_bodies(pair: Pair, name: str) -> None:
    """They arrive whole, with their length as `content-length`; a trailer is no header (RFC 9110, 6.5.1)."""
    await pair.same(CHUNKED_BODIES[name])


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "CONTENT-LENGTH"])
async def test_the_length_is_spelt_as_the_client_spells_it(pair: Pair, name: str) -> None:
    """A handler sees it, and the names it sees have their letter case."""
    await pair.same(Case(200, body=b"[1]", headers=((name, "3"), ("X-A", "1"))))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_no_body_and_no_length(pair: Pair, method: str) -> None:
    await pair.same_on_the_wire(f"{method} /predictions/witness HTTP/1.1\r\nHost: h\r\n\r\n".encode())


def own(status: int, phrase: str) -> Case:
    return Case(status, headers=(do(status=status, phrase=phrase, say="by hand"),))


STATUSES = ((200, "OK"), (201, "Made"), (202, ""), (204, "None"), (205, "Reset"), (206, "Some"), (301, "Gone  away"),
            (304, "As it was"), (400, "My Own"), (401, "Who?"), (404, "x"), (413, ""), (418, "I'm a teapot"),
            (429, "Slow"), (500, "Mine"), (503, "Mine"), (507, "Mine"), (599, "Own"), (999, "Odd"))  # fmt: skip

ANSWERS = {
    **{f"status {status} {phrase}": own(status, phrase) for status, phrase in STATUSES},
    "headers": Case(
        200,
        headers=(
            do(
                say="ok",
                headers=[
                    ["X-A", "1"],
                    ["X-A", "2"],
                    ["x-a", "3"],
                    ["Set-Cookie", "a=b"],
                    ["Date", "never"],
                    ["Server", "mine"],
                    ["Content-Type", "image/png"],
                    ["X-Empty", ""],
                    ["x-request-id", "mine"],
                    ["Cache-Control", "max-age=1"],
                    ["Location", "/elsewhere"],
                    ["Content-Encoding", "gzip"],
                ],
            ),
        ),
    ),
    "a header beyond ASCII": Case(200, headers=(do(say="ok", headers=[["X-U", "grün"]]),)),
    "a length of its own": Case(200, headers=(do(say="ok", headers=[["Content-Length", "1"]]),)),
    "headers of the connection": Case(
        200, headers=(do(say="ok", headers=[["Connection", "close"], ["Keep-Alive", "5"], ["Upgrade", "h2c"]]),)
    ),
    "a type": Case(200, headers=(do(say="ok", type="text/html; charset=utf-8"),)),
    "nothing": Case(200, headers=(do(say=""),)),
    "null": Case(200, headers=(do(say=None),)),
    "bytes": Case(200, headers=(do(bytes="00ff0d0a"),)),
    "JSON": Case(200, headers=(do(say={"a": ["ü", 1.5, None]}),)),
    "megabytes": Case(200, headers=(do(size=3_000_000),)),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers(pair: Pair, name: str) -> None:
    await pair.same(ANSWERS[name])


ERRORS = {
    "an exception": Case(503, headers=(do(**{"raise": "value"}),)),
    "an exception elsewhere": elsewhere(503, "/explanations/witness", b"", (do(**{"raise": "value"}),)),
    "too few answers": Case(503, headers=(do(**{"return": []}),)),
    "too many answers": Case(503, headers=(do(**{"return": [1, 2]}),)),
    "no list": Case(503, headers=(do(**{"return": {"a": 1}}),)),
    "a number": Case(503, headers=(do(**{"return": 3}),)),
    "a string": Case(503, headers=(do(**{"return": "a"}),)),
    "no answer": Case(503, headers=(do(**{"return": None}),)),
    "what no JSON can say": Case(503, headers=(do(unserialisable=True),)),
    **{f"refused with {code}": Case(code, headers=(do(refuse=code),)) for code in (400, 404, 422, 500, 503, 599)},
    "out of memory, elsewhere": elsewhere(507, "/v1/models/witness:predict", b"", (do(**{"raise": "memory"}),)),
    "no worker": elsewhere(503, "/explanations/idle"),
    "no worker, V2": elsewhere(503, "/v2/models/idle/infer"),
    "no worker of this version": elsewhere(503, "/idle/1.0/predict"),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_errors(pair: Pair, name: str) -> None:
    await pair.same(ERRORS[name])


def streams(*parts: str, say: str = "end", expected: int = 200, **more: Any) -> Case:
    return Case(expected, headers=(do(stream=parts, say=say, **more),))


STREAMS = {
    "chunk by chunk": streams("one", "two"),
    "a type and a header": streams("data: 1\n\n", type="text/event-stream", headers=[["X-A", "1"]]),
    "an empty part": streams("one", "", "two"),
    "an empty end": streams("one", say=""),
    "one part": streams(),
    "a status": streams("one", "two", expected=201, status=201, phrase="Made"),
    "an exception in the middle": Case(503, headers=(do(stream=["one", "two"], refuse=503),)),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_streams(pair: Pair, name: str) -> None:
    await pair.same(STREAMS[name])


async def test_streams_of_explanations(pair: Pair) -> None:
    headers = (do(stream=["one", "two"], say="three"),)
    answer = await pair.same(elsewhere(200, "/explanations/witness", b"", headers))
    assert (answer.chunks, answer.get("ts_stream_next")) == ([b"one", b"two", b"three"], "true")


async def test_large_chunks_arrive_though_perhaps_in_smaller_ones(pair: Pair) -> None:
    """Where chunks end is a matter of one connection."""
    case = Case(200, headers=(do(stream=["x"], size=2_000_000),))
    (direct,) = await ask(pair.direct, case.data)
    (proxied,) = await ask(pair.proxied, case.data)
    assert (proxied.status_line, proxied.body) == (direct.status_line, direct.body)


@pytest.mark.parametrize("path", ["/predictions/witness", "/explanations/witness"])
async def test_the_head_of_a_stream_has_no_length(pair: Pair, path: str) -> None:
    headers = (do(stream=["one"], say="two"),)
    await pair.same(Case(200, "HEAD", path, headers=headers, marked=path.startswith("/predictions")))


async def test_the_fake_has_the_same_shape(instance: TorchServeInstance) -> None:
    """What FakeTorchServe claims to imitate: status, phrase, header names and the keys of describe."""
    async with FakeTorchServe(FakeModel("witness", role=None)) as fake:
        for path, body, headers in (
            ("/predictions/witness", b"[1, 2]", ()),
            ("/predictions/witness", b"x", (do(**{"raise": "value"}),)),
            ("/predictions/no", b"x", ()),
        ):
            real = await Client(instance.inference_url).post(path, body, headers)
            faked = await Client(fake.inference).post(path, body, headers)
            assert faked.status == real.status
            names = [name for name, _ in real.headers if name.lower() != "connection"]
            if real.status == 200:
                assert faked.status_line == real.status_line
                assert [name for name, _ in faked.headers if name.lower() != "connection"] == names
            else:
                assert set(faked.json()) == set(real.json())
                assert faked.json()["type"] == real.json()["type"]
        for path in ("/models?limit=1", "/models/witness", "/models/witness/all", "/models/witness/1.0"):
            real = (await Client(instance.management_url).get(path)).json()
            faked = (await Client(fake.management).get(path)).json()
            real, faked = (answer[0] if isinstance(answer, list) else answer for answer in (real, faked))
            assert set(faked) <= set(real)
            if "workers" in faked:
                assert set(faked["workers"][0]) <= set(real["workers"][0])


FATAL = {
    "out of memory": Case(507, headers=(do(**{"raise": "memory"}),), marked=False),
    "out of the GPU's memory": Case(507, headers=(do(**{"raise": "cuda"}),), marked=False),
    "refused as if it were": Case(507, headers=(do(refuse=507),), marked=False),
    "the worker exits": Case(500, path="/predictions/a%20b+c", headers=(do(exit=1),), marked=False),
}


@pytest.mark.parametrize("name", FATAL)
async def test_failures_of_an_instance_once_nothing_is_left_to_try(instance: TorchServeInstance, name: str) -> None:
    """On purpose a prediction is sent again after these, within the budget. The last one's answer is the client's.

    The proxy's query waits for the worker's restart, as TorchServe's queue does.
    """
    async with proxy_before(instance, max_attempts=1) as proxy:
        await Pair(instance.inference_url, proxy.url, proxy).same(FATAL[name])

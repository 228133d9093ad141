"""Which requests are predictions, of which model, and where they go: tables."""

from __future__ import annotations

import pytest

from ts_parity import wire
from ts_parity.proxy.fleet.payloads import Ask
from ts_parity.proxy.fleet.torchserve import routes
from ts_parity.proxy.fleet.torchserve.routes import model_named, prediction_route, prediction_target, url_path
from ts_parity.proxy.http import messages
from ts_parity.wire import Frame, Part, pack_frame


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/predictions/m", Ask("m", None, "")),
        ("/predictions/m/", Ask("m", None, "")),
        ("/predictions/m/1.0", Ask("m", "1.0", "")),
        ("/predictions/m/1.0/a/b%20c", Ask("m", "1.0", "/a/b%20c")),
        ("/predictions/my%20m", Ask("my m", None, "")),
        ("/predictions", None),
        ("/predictions/", None),
        ("/predictions//x", None),
        ("/predictions/m//x", None),
        ("/predictions/m/1.0//x", Ask("m", "1.0", "//x")),
        ("/predictions/m%2F1.0", Ask("m", "1.0", "")),
        ("/%70redictions/m/1%2E0/a%2Fb/", Ask("m", "1.0", "/a/b")),
        ("/predictions/m/1.0/a%3Fb%23c#d", Ask("m", "1.0", "/a%3Fb%23c")),
        ("/predictions/m/1.0/%zz", None),
        ("/predictions/m/1.0/%4", None),
        ("/explanations/m", None),
        ("/ping", None),
        ("/", None),
    ],
)
def test_prediction_paths(path: str, expected: Ask | None):
    assert prediction_route("POST", path) == expected
    assert prediction_route("GET", path) == expected
    assert prediction_route("OPTIONS", path) is None


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/explanations/m/1.0", "", "m"),
        ("/v1/models/m:predict", "", "m"),
        ("/v1/models/m:explain", "", "m"),
        ("/v2/models/m/infer", "", "m"),
        ("/v2/models/m/versions/1/infer", "", "m"),
        ("/invocations", "model_name=my%20m", "my m"),
        ("/v1/models/m%3Apredict", "", "m"),
        ("/invocations", "", None),
        ("/invocations", "model_name=m&model_name=n", "m"),
        ("/invocations", "a=b;model_name=m", "m"),
        ("/invocations", "model_name=&model_name=m", ""),
        ("/models/m/invoke", "", "m"),
        ("/m/predict", "", "m"),
        ("/m/1.0/predict", "", "m"),
        ("/predictions/m", "", "m"),
        ("/ping", "", None),
        ("/wfpredict/w", "", None),
        ("/", "", None),
    ],
)
def test_models_named_by_other_paths(path: str, query: str, expected: str | None):
    assert model_named(path, query) == expected


def test_targets_are_escaped_and_extras_kept():
    assert prediction_target("my m", "1.0", "/a%20b", "q=1") == "/predictions/my%20m/1.0/a%20b?q=1"
    assert url_path("/a%20b/c") == "a b/c"


def test_what_is_long_is_not_remembered() -> None:
    """Else some thousand requests could fill the memory for good."""
    caches = (routes._prediction, routes._model_named, wire._packed_head)
    before = [cache.cache_info().currsize for cache in caches] + [len(messages._FLAGS_OF)]
    for n in range(20):
        long = f"{n:06d}" + "n" * 60_000
        routes.prediction_route("GET", f"/predictions/m/{long}")
        routes.model_named(f"/{long}", "")
        pack_frame(Frame((Part(((long, "x"),), b""),)))
        messages.header_flags(long)
    assert [cache.cache_info().currsize for cache in caches] + [len(messages._FLAGS_OF)] == before

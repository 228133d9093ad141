"""Every pattern of handler, every operation, through TorchServe's own loader and service."""

from __future__ import annotations

import gc
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worker.serving import (
    Ask,
    InProcess,
    Reply,
    check_decoding,
    finish_ask,
    group_ask,
    group_of,
    linear,
    network,
    scripted,
    unbiased,
    vector,
)
from ts_parity.codes import make_code
from ts_parity.errors import ConfigError
from ts_parity.wire import (
    FRAME_TYPE,
    OP,
    OP_FINISH,
    OP_GROUP,
    OP_RAW,
    PROTECTION_FIELDS,
    ROUNDOFF,
    Frame,
    Part,
    pack_frame,
)
from ts_parity.worker.operations import MAX_RESPONSE_SIZE, max_response_size
from ts_parity.worker.protections import ScriptedModel
from ts_parity.worker.responses import HandlerResponse
from ts_parity.worker.selftest import LIVE_REQUESTS
from ts_parity.worker.verdict import alike
from ts_parity.worker.watches import ModelCall

Serve = Callable[..., InProcess]
EXACT = {"role": "parity", "code": "exact", "k": 2}


def _vectors(seed: int) -> Part:
    return Part((), vector(seed))


def _json(seed: int) -> Part:
    values = np.frombuffer(vector(seed), np.float32).tolist()
    return Part((("Content-Type", "application/json"),), json.dumps({"values": values, "top": 1 + seed % 3}).encode())


def _png(seed: int) -> Part:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 4), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return Part((("content-type", "image/png"),), written.getvalue())


# handler, how it is packed, its bodies, whether it answers batches rightly
CODABLE = [
    ("overrides_steps", {}, _vectors, True),
    ("overrides_steps", {"eager": True}, _vectors, True),
    ("overrides_handle", {}, _vectors, False),
    ("plain_class", {}, _vectors, True),
    ("lazy_function", {"eager": True}, _vectors, False),
    ("eager_function", {"eager": True}, _vectors, True),
    ("finished_in_inference", {}, _vectors, True),
    ("changes_in_place", {}, _vectors, True),
    ("first_only", {}, _vectors, False),
    ("repeats_first", {}, _vectors, False),
    ("json_in", {}, _json, True),
    ("swallows", {}, _vectors, False),
    ("own_status", {}, _vectors, False),
    ("output_container", {}, _vectors, True),
    ("png_in", {}, _png, True),
    ("onnx_session", {}, _vectors, True),
    ("estimator", {}, _vectors, True),
    ("keeps_function", {}, _vectors, True),
]
IDS = [f"{name}{'-eager' if packed else ''}" for name, packed, _, _ in CODABLE]

REFUSED = [
    ("calls_twice", "called 2 times"),
    ("integer_output", "int64"),
    ("streams", "streams"),
    ("keeps_features", "takes more from its model"),
    ("dices", "training mode"),
    ("drops_out", "drew random numbers (torch)"),
    ("explores", "drew random numbers (random)"),
]


def _ask(part: Part, op: str | None = None) -> Ask:
    return Ask(part.body, {**dict(part.headers), **({OP: op} if op else {})})


def _warm(worker: InProcess, bodies: Callable[[int], Part]) -> None:
    """Let the first live requests decide."""
    for seed in (101, 102, 103):
        worker.batch([_ask(bodies(seed), "raw")])


SAMPLES = ("sample0", "sample1")


def _proven(serve: Serve, handler: str, bodies: Callable[[int], Part], section: Any = None, **packed: Any) -> InProcess:
    """A worker whose samples have decided."""
    parts = [bodies(seed) for seed in (101, 102)]
    listed = [
        {"file": name, "content_type": {n.lower(): v for n, v in part.headers}.get("content-type", "a/b")}
        for name, part in zip(SAMPLES, parts, strict=True)
    ]
    files = {**packed.pop("files", {}), **{name: part.body for name, part in zip(SAMPLES, parts, strict=True)}}
    return serve(handler, {**(section or {}), "samples": listed}, files=files, **packed)


def _unwrapped(serve: Serve, handler: str, packed: dict[str, Any], parts: list[Part]) -> list[Reply]:
    worker = serve(handler, None, **packed)
    worker.batch([_ask(parts[0])])
    return [worker.batch([_ask(part)])[0] for part in parts]


@pytest.mark.parametrize(("handler", "packed", "bodies", "batches"), CODABLE, ids=IDS)
def test_codable_handlers(serve: Serve, handler: str, packed: dict[str, Any], bodies: Any, batches: bool) -> None:
    """Plain, raw and finished answers are the unwrapped handler's own bytes; raw outputs are the model's numbers."""
    parts = [bodies(seed) for seed in range(4)]
    expected = _unwrapped(serve, handler, packed, parts)
    worker = _proven(serve, handler, bodies, **packed)
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], described["repeatable"]) == ("codable", True), described["reason"]
    assert "self-test passed on 2 samples" in described["reason"]
    assert described["batched"] is batches
    for part, ordinary in zip(parts, expected, strict=True):
        assert worker.batch([_ask(part)]) == [ordinary]
        [tailed] = worker.batch([_ask(part, "raw")])
        assert tailed.ordinary == ordinary.ordinary
        raw = tailed.raw
        assert raw is not None
        if bodies is _vectors:
            np.testing.assert_allclose(raw.reshape(-1), linear(part.body)[0], rtol=1e-4, atol=1e-5)
        assert worker.finish(part, raw).ordinary == ordinary.ordinary
    other = worker.batch([_ask(parts[0], "raw")])[0].raw
    assert other is not None
    assert worker.finish(parts[1], other).ordinary_body != expected[1].body


@pytest.mark.slow
@pytest.mark.parametrize(("handler", "packed", "bodies", "batches"), CODABLE, ids=IDS)
def test_batches_of_raw_requests(
    serve: Serve, handler: str, packed: dict[str, Any], bodies: Any, batches: bool
) -> None:
    """Each of a batch gets its own answer and raw output, in one run where that is proven. A handler that answers
    batches otherwise answers them as it always did.
    """
    parts = [bodies(seed) for seed in range(4)]
    ordinary = serve(handler, None, **packed).batch([_ask(part) for part in parts])
    worker = _proven(serve, handler, bodies, **packed)
    if handler in ("first_only", "repeats_first"):
        assert worker.batch([_ask(part, "raw") for part in parts]) == ordinary
        return
    worker.batch([_ask(parts[0])])  # some make their model in the first request
    alone = [worker.batch([_ask(part, "raw")])[0] for part in parts]
    together = worker.batch([_ask(part, "raw") for part in parts])
    for one, other in zip(alone, together, strict=True):
        assert one.raw is not None
        assert other.raw is not None
        np.testing.assert_allclose(one.raw, other.raw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("handler", "why"), REFUSED)
def test_refused_handlers_serve_plainly(serve: Serve, handler: str, why: str) -> None:
    worker = serve(handler, {})
    for seed in (1, 2, 3):
        reply = worker.ask(vector(seed), "raw")
        assert reply.status == 200
        assert reply.raw is None
    described = worker.describe()["ts_parity"]
    assert described["verdict"] == "refused"
    assert why in described["reason"]
    refused = worker.finish(vector(1), linear(vector(1)))
    assert refused.status == 500
    assert why in json.loads(refused.body)["message"]


@pytest.mark.parametrize(("handler", "packed", "bodies", "batches"), CODABLE, ids=IDS)
def test_groups_of_the_parity_family(
    serve: Serve, handler: str, packed: dict[str, Any], bodies: Any, batches: bool
) -> None:
    """The raw answer is the model on the sum of the slots' inputs; empty slots count as nothing."""
    parts = [bodies(seed) for seed in range(2)]
    worker = serve(handler, {"role": "parity", "code": "sum", "k": 2, "partial": True}, **packed)
    reply = worker.group(*parts)
    assert reply.frame.covers == {0, 1}
    raw = reply.frame.raw
    alone = [worker.group(part, None).frame.raw for part in parts]
    bias = worker.group(Part((), bytes(32)), None).frame.raw if bodies is _vectors else None
    assert raw is not None
    assert alone[0] is not None
    assert alone[1] is not None
    if bias is not None:
        np.testing.assert_allclose(raw, alone[0] + alone[1] - bias, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone[0].reshape(-1), linear(parts[0].body)[0], rtol=1e-4, atol=1e-5)
    assert worker.describe()["ts_parity"]["verdict"] == "codable"


@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_decoding_a_linear_model(serve: Serve, k: int, r: int) -> None:
    groups = {members: group_of(k, members).slots for members in (frozenset(range(k)), frozenset(range(1, k)))}
    said: dict[frozenset[int], list[Frame]] = {members: [] for members in groups}
    for row in range(r):
        section = {"role": "parity", "code": "sum", "k": k, "r": r, "row": row, "partial": True}
        worker = serve("overrides_steps", section, weights=unbiased())
        for members, parts in groups.items():
            said[members].append(worker.group(*parts).frame)
    for members, rows in said.items():
        check_decoding(k, members, rows)


@pytest.mark.parametrize(("handler", "packed", "bodies", "batches"), CODABLE, ids=IDS)
def test_groups_of_the_backup_family(
    serve: Serve, handler: str, packed: dict[str, Any], bodies: Any, batches: bool
) -> None:
    """Each slot of `exact` is answered as the unwrapped handler answers it, byte for byte, however often."""
    parts = [bodies(seed) for seed in range(3)]
    expected = _unwrapped(serve, handler, packed, parts)
    worker = serve(handler, {"role": "parity", "code": "exact", "k": 3}, **packed)
    for _ in range(2):
        slots = worker.group(*parts).frame.slots
        for slot, ordinary in zip(slots, expected, strict=True):
            assert slot is not None
            assert (slot.status, slot.body) == (ordinary.status, ordinary.body)
            assert dict(slot.headers) == {**ordinary.headers, "x-ts-parity-confidence": "1"}
    assert worker.describe()["ts_parity"]["batched"] is False


def _student() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Another model than the handler's own: its weights, and its file."""
    torch.manual_seed(8)
    state = {name: torch.randn_like(value) for name, value in network().state_dict().items()}
    written = io.BytesIO()
    torch.jit.save(scripted(state), written)
    return state, {"student.pt": written.getvalue()}


@pytest.mark.slow
@pytest.mark.parametrize(("handler", "packed", "bodies", "batches"), CODABLE, ids=IDS)
def test_a_student_answers_in_the_models_place(
    serve: Serve, handler: str, packed: dict[str, Any], bodies: Any, batches: bool
) -> None:
    """Groups, slot by slot or (where samples have proven it) as a batch, and plain requests: as the handler would with
    those weights.
    """
    state, files = _student()
    parts = [bodies(seed) for seed in range(3)]
    expected = _unwrapped(serve, handler, {**packed, "weights": state}, parts)
    own = _unwrapped(serve, handler, packed, parts)
    assert [reply.body for reply in expected] != [reply.body for reply in own]
    section = {"role": "parity", "code": "student", "k": 3, "parity_model": "student.pt"}
    for start in (
        lambda: serve(handler, section, files=files, **packed),
        lambda: _proven(serve, handler, bodies, section, files=files, **packed),
    ):
        worker = start()
        slots = worker.group(*parts).frame.slots
        for slot, ordinary in zip(slots, expected, strict=True):
            assert slot is not None
            assert alike(HandlerResponse(slot.body, slot.status), HandlerResponse(ordinary.body, ordinary.status))
            assert dict(slot.headers) == ordinary.headers
    plain = worker.batch([_ask(parts[0])])[0]
    assert alike(HandlerResponse(plain.body, plain.status), HandlerResponse(expected[0].body, expected[0].status))
    # A student stands in for one model call, so a loop over the rows is no batch here.
    assert worker.describe()["ts_parity"]["batched"] is batches


def test_concat_groups_are_of_images(serve: Serve) -> None:
    worker = serve("overrides_steps", {"role": "parity", "code": "concat", "k": 2, "partial": True})
    refused = worker.group(vector(1), vector(2))
    assert refused.status >= 400
    assert "code concat needs images" in json.loads(refused.body)["message"]


def test_a_mixed_batch_answers_each_rightly(serve: Serve) -> None:
    worker = _proven(serve, "overrides_steps", _vectors)
    bodies = [vector(seed) for seed in range(5)]
    expected = [worker.ask(body) for body in bodies]
    raws = [linear(body).astype(np.float32) for body in bodies]
    replies = worker.batch(
        [
            Ask(bodies[0]),
            Ask(bodies[1], {"X-TS-Parity-OP": "raw"}),
            finish_ask(bodies[2], worker.ask(bodies[2], "raw").raw),
            Ask(bodies[3], {OP: "raw"}),
            Ask(bodies[4]),
            group_ask(bodies[0], bodies[1]),
            Ask(b"\x00\x01\x02", {OP: "finish"}),
            Ask(b"short", {OP: "raw"}),
            Ask(bodies[0], {OP: "dance"}),
        ]
    )
    for reply, ordinary in zip(replies[:5], expected, strict=True):
        np.testing.assert_allclose(
            json.loads(reply.ordinary_body)["scores"], json.loads(ordinary.body)["scores"], rtol=1e-5
        )
    assert [reply.raw is not None for reply in replies[:5]] == [False, True, False, True, False]
    np.testing.assert_allclose(replies[3].raw, raws[3], rtol=1e-4, atol=1e-5)
    assert [reply.status for reply in replies[5:]] == [400, 400, 503, 400]
    assert json.loads(replies[7].body)["message"] == "Prediction failed"
    assert all(json.loads(reply.body).keys() == {"code", "type", "message"} for reply in replies[5:])


def test_a_mixed_batch_on_a_parity_worker(serve: Serve) -> None:
    worker = serve("overrides_steps", {"role": "parity", "code": "sum", "k": 2, "partial": True})
    plain, group, finish = worker.batch(
        [Ask(vector(1)), group_ask(vector(1), vector(2)), finish_ask(vector(1), linear(vector(1)))]
    )
    assert plain.body == worker.ask(vector(1)).body
    assert group.frame.covers == {0, 1}
    assert finish.status == 200
    assert alike(HandlerResponse(finish.body), HandlerResponse(plain.body))
    backup = serve("overrides_steps", {"role": "parity", "code": "exact", "k": 2})
    assert backup.finish(vector(1), linear(vector(1))).status == 400


def test_a_bad_slot_fails_alone(serve: Serve) -> None:
    worker = serve("overrides_steps", {"role": "parity", "code": "sum", "k": 3, "partial": True})
    frame = worker.group(vector(1), b"bad", vector(3)).frame
    assert frame.covers == {0, 2}
    np.testing.assert_allclose(frame.raw, worker.group(vector(1), None, vector(3)).frame.raw)
    bad = frame.slots[1]
    assert bad is not None
    assert bad.status == 503
    assert json.loads(bad.body)["message"] == "Prediction failed"
    worker = serve("overrides_steps", {"role": "parity", "code": "exact", "k": 3})
    frame = worker.group(vector(1), b"bad", vector(3)).frame
    assert frame.covers == {0, 2}


def test_a_parity_model_trained_without_empty_slots_refuses_partial_groups(serve: Serve) -> None:
    worker = serve("overrides_steps", {"role": "parity", "code": "sum", "k": 2, "partial": False})
    assert worker.group(vector(1), vector(2)).status == 200
    for reply in (worker.group(vector(1), None), worker.group(vector(1), b"bad")):
        assert reply.status == 500
        assert "without empty slots" in json.loads(reply.body)["message"]


def test_a_slot_of_another_shape_fails_alone(serve: Serve) -> None:
    worker = serve("first_only", {"role": "parity", "code": "sum", "k": 3, "partial": True})
    frame = worker.group(vector(1), vector(2) + bytes(4), vector(3)).frame
    assert frame.covers == {0, 2}
    assert frame.slots[1] is not None
    assert "(9,) cannot be coded with the group's" in json.loads(frame.slots[1].body)["message"]


def test_ids_are_never_added(serve: Serve) -> None:
    worker = serve("integer_input", {"role": "parity", "code": "sum", "k": 2})
    reply = worker.group(vector(1), vector(2))
    assert reply.status == 500
    assert "int64" in json.loads(reply.body)["message"]


def test_user_errors_are_torchserves_own(serve: Serve) -> None:
    bad = [vector(1)[:30], np.full(8, np.nan, np.float32).tobytes()]
    expected = _unwrapped(serve, "own_status", {}, [Part((), body) for body in [vector(1), *bad]])[1:]
    assert [reply.status for reply in expected] == [422, 513]
    worker = serve("own_status", {})
    for body, ordinary in zip(bad, expected, strict=True):
        assert worker.ask(body) == ordinary
        assert worker.ask(body, "raw") == ordinary
    assert worker.finish(bad[0], linear(vector(1))).ordinary == expected[0].ordinary
    finished = worker.finish(bad[1], linear(vector(1)))
    assert (finished.status, finished.body) == (513, expected[1].body)


def test_a_fresh_process_can_finish(serve: Serve) -> None:
    """Its container is learned by letting the model compute once; also where the model does not exist yet."""
    for handler, packed in (("overrides_steps", {}), ("output_container", {}), ("lazy_function", {"eager": True})):
        ordinary = serve(handler, {}, **packed).ask(vector(3))
        finished = serve(handler, {}, **packed).finish(vector(3), linear(vector(3)).astype(np.float32))
        assert finished.status == 200
        assert alike(HandlerResponse(finished.body), HandlerResponse(ordinary.body))


def test_no_tail_beyond_the_response_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response over the limit would cost the worker its life."""
    monkeypatch.setenv("TS_MAX_RESPONSE_SIZE", "200")
    worker = serve("overrides_steps", {})
    _warm(worker, _vectors)
    reply = worker.ask(vector(1), "raw")
    assert reply.raw is None
    assert reply.body == worker.ask(vector(1)).body


FINISH_OF_TWO = pack_frame(Frame((Part((), vector(1)),) * 2, linear(vector(1))))


@pytest.mark.parametrize(
    ("section", "asked", "why"),
    [
        (EXACT, group_ask(*[vector(1)] * 3), "protects groups of k = 2, not 3"),
        (EXACT, group_ask(None, None), "a group needs at least one member"),
        (EXACT, Ask(b"[1]", {OP: OP_GROUP, "content-type": "application/json"}), "needs a frame as its body"),
        (EXACT, Ask(b"no frame at all", {OP: OP_GROUP}), "not a ts_parity frame"),
        ({}, Ask(FINISH_OF_TWO, {OP: OP_FINISH, "content-type": FRAME_TYPE}), "a finish needs a frame of one slot"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operation_on_what_it_is_not_for_is_refused_alone(
    serve: Serve, section: dict[str, Any], asked: Ask, why: str
) -> None:
    worker = serve("overrides_steps", section)
    plain, refused = worker.batch([Ask(vector(2)), asked])
    assert refused.status == 400
    assert why in json.loads(refused.body)["message"]
    assert plain == worker.ask(vector(2))
    assert plain.status == 200


def test_a_groups_answer_beyond_the_response_limit_is_an_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_MAX_RESPONSE_SIZE", "200")
    reply = serve("overrides_steps", EXACT).group(vector(1), vector(2))
    assert reply.status == 500
    assert "exceeds max_response_size" in json.loads(reply.body)["message"]


def test_the_response_limit_is_read_from_the_frontends_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max_response_size() == MAX_RESPONSE_SIZE
    (tmp_path / "config.properties").write_text("load_models=all\nmax_response_size = 1234\n")
    monkeypatch.setenv("TS_CONFIG_FILE", str(tmp_path / "config.properties"))
    assert max_response_size() == 1234


def test_explanations_and_envelopes_are_left_alone(serve: Serve) -> None:
    worker = serve("overrides_steps", {})
    _warm(worker, _vectors)
    asked = [Ask(vector(1), {OP: "raw", "explain": "True"})]
    assert worker.batch(asked)[0].status == 503  # the handler's own: it has no explanations
    entry = worker.service._entry_point
    worker.service._entry_point = lambda data, context: entry([row["body"] for row in data], context)
    assert worker.ask(vector(1), "raw").status == 503  # the handler's own again: it expects dictionaries
    assert "envelope" in worker.describe()["ts_parity"]["reason"]
    finished = worker.finish(vector(1), linear(vector(1)))
    assert (finished.status, "envelope" in json.loads(finished.body)["message"]) == (500, True)


def test_a_section_that_is_wrong_stops_the_load(serve: Serve) -> None:
    with pytest.raises(ConfigError, match="colour is unknown"):
        serve("overrides_steps", {"colour": "red"})
    with pytest.raises(ConfigError, match=r"sample 'gone.bin' is not in the archive"):
        serve("overrides_steps", {"samples": ["gone.bin"]})
    with pytest.raises(ConfigError, match=r"parity_model 'gone.pt' is not in the archive"):
        serve("overrides_steps", {"role": "parity", "code": "sum", "k": 2, "parity_model": "gone.pt"})


def test_a_parity_model_file_computes_in_its_own_precision(serve: Serve) -> None:
    doubled = scripted({name: value.double() for name, value in network().state_dict().items()}).double()
    written = io.BytesIO()
    torch.jit.save(doubled, written)
    section = {"role": "parity", "code": "sum", "k": 2, "partial": True, "parity_model": "p.pt"}
    worker = serve("overrides_steps", section, files={"p.pt": written.getvalue()})
    raw = worker.group(vector(1), None).frame.raw
    assert raw is not None
    assert raw.dtype == np.float64
    np.testing.assert_allclose(raw, linear(vector(1)), rtol=1e-5)


def test_no_tail_for_outputs_that_are_not_finite(serve: Serve) -> None:
    worker = serve("plain_class", {})
    _warm(worker, _vectors)
    assert worker.ask(vector(1), "raw").raw is not None
    assert worker.ask(np.full(8, np.inf, np.float32).tobytes(), "raw").raw is None


def test_streaming_goes_through_the_untested_worker(serve: Serve) -> None:
    unwrapped = serve("streams")
    expected = unwrapped.ask(vector(1)), bytes(unwrapped.sent)
    worker = serve("streams", {})
    assert (worker.ask(vector(1), "raw"), bytes(worker.sent)) == expected
    worker.sent.clear()
    assert (worker.ask(vector(1)), bytes(worker.sent)) == expected
    worker = serve("streams", {"role": "parity", "code": "exact", "k": 2})
    assert worker.group(vector(1), vector(2)).status == 500
    assert worker.sent == b""
    assert worker.describe()["ts_parity"]["verdict"] == "refused"


def test_the_secret_guards_operations(serve: Serve) -> None:
    worker = serve("overrides_steps", {"secret": "swordfish"})
    assert worker.ask(vector(1)).status == 200
    assert worker.ask(vector(1), "raw").status == 403
    assert worker.ask(vector(1), "raw", x_ts_parity_secret="swordfisx").status == 403
    assert worker.ask(vector(1), "raw", x_ts_parity_secret="swordfish").status == 200


def test_describe_repeats_what_a_protections_archive_declares(serve: Serve) -> None:
    """Proxies go by describe, and a rollout compares it with the archive at hand."""
    worker = serve(
        "overrides_steps", {"role": "parity", "code": "sum", "k": 2, "agreement": 0.9, "cost": 1.5, "cost_on": "cuda"}
    )
    described = worker.describe()["ts_parity"]
    assert described.keys() >= set(PROTECTION_FIELDS)
    assert (described["code"], described["k"], described["agreement"], described["cost"]) == ("sum", 2, 0.9, 1.5)
    assert (described["cost_on"], described["device"]) == ("cuda", "cpu")


@pytest.mark.slow
def test_samples_decide_at_load(serve: Serve) -> None:
    files = {"a.bin": vector(1), "b.bin": vector(2)}
    worker = serve("overrides_steps", {"samples": ["a.bin", {"file": "b.bin"}]}, files=files)
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], described["batched"]) == ("codable", True)
    assert described["input"] == {"shape": [1, 8], "dtype": "float32"}
    assert described["output"] == {"shape": [1, 5], "dtype": "float32"}
    assert worker.ask(vector(1), "raw").raw is not None
    worker = serve("overrides_steps", {"samples": ["a.bin"]}, files={"a.bin": b"nonsense"})
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], "(a.bin) failed" in described["reason"]) == ("refused", True)
    worker = serve("lazy_function", {"samples": ["a.bin"]}, files=files, eager=True)
    assert worker.describe()["ts_parity"]["verdict"] == "codable"
    worker = serve("overrides_steps", {"role": "parity", "code": "sum", "k": 2, "samples": ["a.bin"]}, files=files)
    assert worker.describe()["ts_parity"]["verdict"] == "codable"


def test_describe(serve: Serve) -> None:
    described = serve("describes", {}).describe()
    assert described["handler"] == {"labels": ["zero", "one", "two", "three", "four"]}
    ours = described["ts_parity"]
    assert (ours["wire"], ours["role"], ours["model"], ours["version"]) == (1, "deployed", "vectors", "1.0")
    assert ours["verdict"] == "untested"
    assert ours["weights"].startswith("sha256:")
    section = {"role": "parity", "code": "sum", "k": 2, "r": 2, "row": 1, "protects": {"model": "m", "version": "2"}}
    section["row_errors"] = {"0,1": [[1.0, 1.5], [1.5, 4.0]]}
    described = serve("lazy_function", section, eager=True).describe()
    assert "handler" not in described
    ours = described["ts_parity"]
    assert (ours["code"], ours["k"], ours["r"], ours["row"], ours["partial"]) == ("sum", 2, 2, 1, False)
    assert ours["coefficients"] == [[1.0, 1.0], [1.0, 2.0]]
    assert ours["row_errors"] == section["row_errors"]
    assert ours["protects"] == {"model": "m", "version": "2", "weights": None}


def test_user_code_never_sees_control_headers(serve: Serve) -> None:
    worker = serve("echoes", {})
    seen = json.loads(worker.ask(b"x", "raw", X_Key="v").body)["headers"]
    assert seen == {"X-Key": "v", "body": {"content-type": ""}}
    # Of a handler that is not known to answer batches rightly, all are run together as TorchServe would run them.
    batch = worker.batch([Ask(b"x", {OP: "raw", "X-Key": "v"}), Ask(b"y", {OP: "raw"})])
    assert [json.loads(reply.body)["headers"].keys() - {"body"} for reply in batch] == [{"X-Key"}, set()]


def test_under_an_envelope_that_drops_requests_the_handler_gets_what_is_left(serve: Serve) -> None:
    """Rows and headers do not belong together any more, so nobody can say which of them was for the wrapper."""
    worker = serve("echoes", {})
    entry = worker.service._entry_point
    worker.service._entry_point = lambda data, context: entry(data[:1], context) * 2
    replies = worker.batch([Ask(b"x", {OP: "raw"}), Ask(b"y", {OP: "raw"})])
    assert [reply.status for reply in replies] == [200, 200]
    assert all("'x'" in json.loads(reply.body)["data"]["body"][1] for reply in replies)


NAN, HUGE = np.full(8, np.nan, np.float32).tobytes(), np.full(8, 3e38, np.float32).tobytes()


def test_a_slot_that_is_not_finite_fails_alone(serve: Serve) -> None:
    """In the sum it would spoil the neighbours' protection too."""
    worker = serve("plain_class", {"role": "parity", "code": "sum", "k": 3, "partial": True})
    frame = worker.group(vector(1), NAN, vector(3)).frame
    assert frame.covers == {0, 2}
    np.testing.assert_allclose(frame.raw, worker.group(vector(1), None, vector(3)).frame.raw)
    assert frame.slots[1] is not None
    assert "not finite" in json.loads(frame.slots[1].body)["message"]


def test_a_parity_output_that_is_not_finite_is_no_answer(serve: Serve) -> None:
    worker = serve("plain_class", {"role": "parity", "code": "sum", "k": 2, "partial": True})
    reply = worker.group(HUGE, HUGE)
    assert reply.status == 500
    assert "not finite" in json.loads(reply.body)["message"]


@pytest.mark.parametrize("own_form", [True, False])
def test_a_students_nan_is_no_answer(serve: Serve, own_form: bool) -> None:
    """Whether the handler loads the student as its own or it lies beside; the neighbours get theirs."""
    state, files = _student()
    section = {"role": "parity", "code": "student", "k": 3}
    packed = {"weights": state} if own_form else {"files": files}
    worker = serve("plain_class", section if own_form else {**section, "parity_model": "student.pt"}, **packed)
    for _ in range(2):
        frame = worker.group(vector(1), NAN, vector(3)).frame
        assert frame.covers == {0, 2}
    assert worker.ask(NAN).status >= 500
    assert worker.ask(vector(1)).status == 200
    exact = serve("plain_class", {"role": "parity", "code": "exact", "k": 2})
    ordinary = exact.ask(NAN)
    slot = exact.group(NAN, vector(1)).frame.slots[0]
    assert slot is not None
    assert (slot.status, slot.body) == (200, ordinary.body)  # what the model says is what exact says


def test_a_finish_that_comes_out_as_nan_is_no_answer(serve: Serve) -> None:
    worker = serve("overrides_steps", {})
    _warm(worker, _vectors)
    finished = worker.finish(vector(1), np.full((1, 5), 3e38, np.float32))
    assert finished.status == 500
    assert "NaN or infinity" in json.loads(finished.body)["message"]


NOT_REPEATABLE = [
    ("converses", "keeps something between requests"),
    ("remembers_input", "keeps something between requests"),
    ("dices", "write self.model.eval() where"),
    ("explores", "drew random numbers (random)"),
    ("drops_out", "draws random numbers (torch)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("handler", "why"), NOT_REPEATABLE)
@pytest.mark.parametrize("section", [{}, {"role": "parity", "code": "exact", "k": 2}], ids=["deployed", "exact"])
def test_samples_show_what_is_not_repeatable(serve: Serve, handler: str, why: str, section: dict[str, Any]) -> None:
    """State in answers or in the model, dice, training mode: for `exact` as for raw outputs, and the proxy is told."""
    worker = _proven(serve, handler, _vectors, section)
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], described["repeatable"]) == ("refused", False), described["reason"]
    assert why in described["reason"]
    assert worker.ask(vector(1), "raw").raw is None
    if section:
        assert worker.group(vector(1), vector(2)).status == 500


@pytest.mark.parametrize("section", [{}, {"role": "parity", "code": "exact", "k": 2}], ids=["deployed", "exact"])
def test_times_ids_and_dice_that_change_nothing_are_no_state(serve: Serve, section: dict[str, Any]) -> None:
    worker = _proven(serve, "harmless_dice", _vectors, section)
    for seed in range(2 * LIVE_REQUESTS if section else 0):
        assert worker.group(vector(seed), vector(seed + 9)).status == 200
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], described["repeatable"]) == ("codable", True), described["reason"]


def test_other_refusals_leave_a_handler_repeatable(serve: Serve) -> None:
    described = _proven(serve, "calls_twice", _vectors).describe()["ts_parity"]
    assert (described["verdict"], described["repeatable"]) == ("refused", True)


def test_exact_looks_at_its_first_runs(serve: Serve) -> None:
    """Without samples: what shows without a second run."""
    worker = serve("dices", {"role": "parity", "code": "exact", "k": 2})
    assert worker.group(vector(1), vector(2)).frame.covers == frozenset()
    described = worker.describe()["ts_parity"]
    assert (described["verdict"], described["repeatable"]) == ("refused", False)


def test_what_may_be_no_dice_is_refused_without_samples_and_the_reason_asks_for_some(serve: Serve) -> None:
    """A Hugging Face pipeline that is given a list draws for its DataLoader, and answers the same whatever it drew."""
    worker = serve("harmless_dice", {"role": "parity", "code": "exact", "k": 2})
    assert [worker.group(vector(1), vector(seed)).status for seed in range(3)][-1] == 500
    reason = worker.describe()["ts_parity"]["reason"]
    assert "drew random numbers (torch)" in reason
    assert reason.endswith("samples (package --sample) would show whether it does")


def test_no_live_request_is_run_twice(serve: Serve) -> None:
    """Neither the first ones of an untested worker nor those after samples; and the samples left nothing behind."""
    for start in (lambda: serve("counts_runs", {}), lambda: _proven(serve, "counts_runs", _vectors)):
        worker = start()
        for seed in range(4):
            assert worker.ask(vector(seed), "raw").status == 200
        assert sys.modules["counts_runs"].RUNS == [1, 1, 1, 1]
        assert worker.describe()["ts_parity"]["verdict"] == "codable"


@pytest.mark.parametrize("tested", [False, True])
def test_a_batch_of_raw_requests_runs_as_it_would_have(serve: Serve, tested: bool) -> None:
    """A handler that refuses batches refuses them still, with no run more than before."""
    asks = [Ask(vector(1), {OP: "raw"}), Ask(vector(2), {OP: "raw"}), Ask(vector(3))]
    plain = serve("one_at_a_time")
    ordinary = plain.batch([Ask(ask.body) for ask in asks])
    worker = _proven(serve, "one_at_a_time", _vectors) if tested else serve("one_at_a_time", {})
    assert worker.batch(asks) == ordinary
    assert ordinary[0].status == 503
    module = sys.modules["one_at_a_time"]
    [handler] = [each for each in gc.get_objects() if type(each) is module.OneAtATime]
    assert handler.asked == [3]
    assert worker.ask(vector(1), "raw").status == 200


def test_an_untested_worker_answers_batches_plainly(serve: Serve) -> None:
    """Beside an operation, too; raw outputs come with requests that are alone until samples have shown more."""
    expected = serve("overrides_steps").batch([Ask(vector(1)), Ask(vector(2))])
    worker = serve("overrides_steps", {})
    _warm(worker, _vectors)
    first, second, finished = worker.batch(
        [Ask(vector(1), {OP: "raw"}), Ask(vector(2)), finish_ask(vector(3), linear(vector(3)))]
    )
    assert [first, second] == expected
    assert finished.status == 200
    assert worker.ask(vector(1), "raw").raw is not None


@pytest.mark.parametrize("code", ["sum", "exact"])
def test_a_body_that_is_never_coded_is_refused(serve: Serve, code: str) -> None:
    """Should a proxy send one all the same. Describe says what is declared."""
    declared = {"content_types": ["text/uri-list"], "keys": ["path"]}
    worker = serve("overrides_steps", {"role": "parity", "code": code, "k": 2, "partial": True, "never_code": declared})
    assert worker.describe()["ts_parity"]["never_code"] == declared
    assert worker.group(vector(1), vector(2)).status == 200
    for part in (Part((), b'{"path": "x"}'), Part((("content-type", "text/uri-list"),), vector(2))):
        refused = worker.group(vector(1), part)
        assert refused.status == 500
        assert "never_code" in json.loads(refused.body)["message"]
    assert "never_code" not in serve("overrides_steps", {}).describe()["ts_parity"]
    with pytest.raises(ConfigError, match="ts_parity: never_code"):
        serve("overrides_steps", {"never_code": ["path"]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_script_beside_the_handler_is_given_its_own_dtype(tmp_path: Path, dtype: torch.dtype, frozen: bool) -> None:
    """Also if it is frozen, so that its weights are constants among others (None, where a layer has no bias)."""
    net = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3, bias=False), torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    script = torch.jit.trace(net.to(dtype), torch.zeros(1, 1, 4, dtype=dtype))
    torch.jit.save(torch.jit.freeze(script) if frozen else script, tmp_path / "other.pt")
    model = ScriptedModel(str(tmp_path / "other.pt"), torch.device("cpu"))
    for given in (torch.float16, torch.float32, torch.float64):
        said = model(ModelCall("self.model", "__call__", (torch.ones(1, 1, 4, dtype=given),), {}))
        assert said.dtype == dtype


CASTS = """
import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

class Casts(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.model = self.model.to(torch.DTYPE)
    def preprocess(self, data):
        rows = [np.frombuffer(bytes(row["body"]), dtype=np.float32).copy() for row in data]
        return torch.from_numpy(np.stack(rows)).to(torch.DTYPE)
    def postprocess(self, output):
        return [{"scores": row.tolist(), "total": float(row.sum())} for row in output]
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_models_of_every_float_dtype_are_coded(serve: Serve, dtype: str) -> None:
    """Raw outputs travel, are added, and are finished in the model's own dtype; `exact` is the same bit by bit."""
    made = {"files": {"casts.py": CASTS.replace("DTYPE", dtype).encode()}, "eager": True}
    deployed = serve("casts", {"role": "deployed"}, **made)
    for seed in (3, 4):  # without samples, two live requests are watched first
        deployed.ask(vector(seed), OP_RAW)
    plain = [deployed.ask(vector(seed)).body for seed in (1, 2)]
    answers = [deployed.ask(vector(seed), OP_RAW) for seed in (1, 2)]
    assert [answer.ordinary_body for answer in answers] == plain
    own, other = (answer.raw for answer in answers)
    assert own is not None
    assert other is not None
    assert own.dtype.name == ("float64" if dtype == "float64" else "float32")
    assert deployed.finish(vector(1), own).body == plain[0]
    exact = serve("casts", {"role": "parity", "code": "exact", "k": 2}, **made)
    slots = exact.group(vector(1), vector(2)).frame.slots
    assert [slot.body for slot in slots if slot is not None] == plain
    parity = serve("casts", {"role": "parity", "code": "sum", "k": 2, "partial": True}, **made)
    frame = parity.group(vector(1), vector(2)).frame
    assert frame.covers == {0, 1}
    assert frame.computed_in == ("" if dtype == "float64" else dtype)
    assert frame.raw is not None
    decoded = make_code("sum", 2).decode(0, {1: other}, {0: frame.raw}, {0: frame.covers}, ROUNDOFF[dtype])
    bias = network().head.bias.detach().numpy()  # a model of sums would say it twice
    np.testing.assert_allclose(decoded + bias, own, atol=16 * ROUNDOFF[dtype] * float(np.abs(own).max()))

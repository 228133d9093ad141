"""The Open Inference Protocol (KServe's V2): Triton, KServe's server, MLServer, OpenVINO Model Server.

The model stands in the path, so a student is reached by another segment of it, and tensors go up as they came, JSON or
binary. A server lists its models in a repository index (Triton, MLServer) or under /v2/models (KServe); where it tells
nobody, models are those that are declared or that clients ask for. Only Triton tells places, in a model's config.

What may not be repeated is passed through: sequences, whose requests stay on one instance; decoupled models, which
answer any number of times; requests whose tensors stand in shared memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final
from urllib.parse import unquote

import numpy as np

from ts_parity.config import InstanceSettings, ModelSettings
from ts_parity.proxy.fleet.backends.backend import Unprotected, mypyc_attr
from ts_parity.proxy.fleet.backends.plain import (
    PlainBackend,
    escapes,
    get,
    is_compressed,
    parsed,
    read_json,
    segment,
    with_path,
    without_coding,
)
from ts_parity.proxy.fleet.backends.probing import Hosted, Probe, Seen
from ts_parity.proxy.fleet.payloads import Ask, QueryPayload, Target
from ts_parity.proxy.http.messages import Request, Response

JSON_LENGTH: Final = "inference-header-content-length"
"""The header of a body that is JSON and then tensors: how much of it is JSON."""
_INFER: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_OF_MODEL: Final = re.compile(r"/v2/(?:repository/)?models/([^/]+)(?:/.*)?")
_MOST_MODELS: Final = 256
_NO_TRIES: Final = frozenset({"UNAVAILABLE", "UNLOADING"})
_JSON: Final = (("Content-Type", "application/json"),)
_DTYPES: Final[Mapping[str, str]] = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
}  # fmt: skip


_UNHEALTHY: Final = re.compile(rb"[Ss]tub (?:process .{0,200})?is not healthy")
"""Of Triton's Python backend. When the process goes on after all, one request has had the outputs of another."""
_TEXT: Final = rb'"(?:[^"\\]|\\.)*"'
_ID: Final = re.compile(
    rb'\s*\{\s*(?:"model_(?:name|version)"\s*:\s*(?:null|' + _TEXT + rb')\s*,\s*)*"id"\s*:\s*(' + _TEXT + rb")"
)
"""Where servers and clients write it: first, or after the model's name."""
_PLAIN_ID: Final = re.compile(rb'"[ !#-\[\]-~]{1,128}"')
"""One that every server reads alike, and writes as it came."""


@mypyc_attr(allow_interpreted_subclasses=True)
class OpenInferenceBackend(PlainBackend):
    kind: ClassVar[str] = "open-inference"
    confuses: ClassVar[bool] = True

    def __init__(self, models: Sequence[ModelSettings] = (), prefix: str = "") -> None:
        super().__init__(models, prefix)
        self._echoing: set[str] = set()
        """Servers, by what they serve, that have answered with their requests' own ids: they do not make up others."""

    def match(self, request: Request) -> Ask | None:
        return _asked(request.path) if request.method == "POST" else None

    def speaks(self, request: Request) -> bool:
        return request.path == "/v2" or request.path.startswith("/v2/")

    def model_named(self, request: Request) -> str | None:
        found = _OF_MODEL.fullmatch(request.path)
        return None if found is None else unquote(found[1])

    def unprotected(self, ask: Ask, request: Request) -> Unprotected | None:
        body = request.body
        if (request.header("content-encoding") or "identity").lower() != "identity":
            return Unprotected("its body is compressed: it may be one of a sequence")
        length = _json_length(request.header(JSON_LENGTH), body)
        named = _says(body, b"q", b"sequence_id") or _says(body, b"g", b"shared_memory_region")
        if not named and not escapes(body, length):
            return None
        told = parsed(body[:length])
        if told is None:
            return Unprotected("its body is too large to be read, or no JSON: it may be one of a sequence")
        parameters = told.get("parameters") if isinstance(told, dict) else None
        sequence = parameters.get("sequence_id") if isinstance(parameters, dict) else None
        if sequence not in (None, 0, ""):
            return Unprotected("it is one of a sequence", f"{ask.model} {sequence}")
        if "shared_memory_region" in json.dumps(told):
            return Unprotected("its tensors are in shared memory")
        return None

    def redirect(self, payload: QueryPayload, target: Target) -> Request:
        name, _, version = target.model.partition("/")
        versions = f"/versions/{segment(version)}" if version else ""
        return with_path(payload.request, f"/v2/models/{segment(name)}{versions}/infer")

    def is_answer(self, response: Response) -> bool:
        if response.body[:64].lstrip()[:1] == b"{":
            return True
        # Triton compresses for clients that take it.
        return is_compressed(response) or response.header(JSON_LENGTH) is not None

    def confused(self, servers: str, request: Request, response: Response) -> str:
        """What a client can bring about by itself is no sign of it, or one request would take out the whole fleet."""
        if response.status == 500 and _UNHEALTHY.search(response.body, 0, 1024):
            own = _words(request)
            return "" if _UNHEALTHY.search(own) else "it says that the process its model is in is not healthy"
        asked = _plain_id(request.body)
        told = None if asked is None or response.status != 200 else _plain_id(response.body)
        if told is None or is_compressed(response):
            return ""
        if asked == told:
            self._echoing.add(servers)
            return ""
        if servers not in self._echoing or not _has_one_id(request):
            return ""
        return "it has answered a request with the id of another"

    def says_same(self, one: Response, other: Response) -> bool:
        if one.status != other.status:
            return False
        if one.status != 200:
            return one.body == other.body
        try:
            said = outputs_of(one), outputs_of(other)
        except (ValueError, RecursionError):
            return False
        return said[0].keys() == said[1].keys() and all(_near(value, said[1][name]) for name, value in said[0].items())

    def meaning(self, model: str) -> Callable[[Response], Any] | None:
        return outputs_of

    def probe(self, given: InstanceSettings, names: Collection[str], known: Collection[str]) -> Probe:
        health = yield get("/v2/health/ready")
        if health.status == 404:
            return Seen(False, (), "it answered 404 to GET /v2/health/ready; is it an Open Inference server?")
        server = read_json((yield get("/v2")))
        is_triton = isinstance(server, dict) and str(server.get("name")).startswith("triton")
        states = yield from _listed()
        found: list[Hosted] = []
        for name in [*dict.fromkeys([*states, *(name.partition("/")[0] for name in names)])][:_MOST_MODELS]:
            if states.get(name) in _NO_TRIES and name not in known:
                continue
            told = read_json((yield get(f"/v2/models/{segment(name)}")))
            if not isinstance(told, dict):
                continue  # it is not there, whatever was there before
            if states.get(name) != "READY" and name not in known:
                ready = yield get(f"/v2/models/{segment(name)}/ready")
                if not 200 <= ready.status < 300:
                    continue
            config: Any = None
            if is_triton:
                config = read_json((yield get(f"/v2/models/{segment(name)}/config")))
            found += _hosted(name, told, config if isinstance(config, dict) else {})
        ready_by_model = bool(found)
        return Seen(ready_by_model or 200 <= health.status < 300, tuple(found))


def _plain_id(body: bytes) -> bytes | None:
    found = _ID.match(body)
    return found[1] if found is not None and _PLAIN_ID.fullmatch(found[1]) else None


def _has_one_id(request: Request) -> bool:
    """Of several, some servers take the first and some the last."""
    body = request.body
    length = _json_length(request.header(JSON_LENGTH), body)
    return body.count(b'"id"', 0, length) == 1 and body.find(b"\\u00", 0, length) < 0


def _words(request: Request) -> bytes:
    """Its body, and that again as a server reads it, for letters can be written in two ways."""
    body = request.body
    length = _json_length(request.header(JSON_LENGTH), body)
    told = parsed(body[:length]) if b"\\" in body[:length] else None
    return body if told is None else body + json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


def _listed() -> Generator[Request, Response, dict[str, str]]:
    """Model -> its state, as far as the server tells."""
    index = read_json((yield Request("POST", "/v2/repository/index", _JSON, b"{}")))
    if isinstance(index, list):
        states: dict[str, str] = {}
        for entry in index:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                state = str(entry.get("state", ""))
                if states.get(entry["name"]) != "READY":  # one version that is ready is enough
                    states[entry["name"]] = state
        return states
    listed = read_json((yield get("/v2/models")))
    names = listed.get("models") if isinstance(listed, dict) else None
    return {name: "" for name in names if isinstance(name, str)} if isinstance(names, list) else {}


def _hosted(name: str, told: Mapping[str, Any], config: Mapping[str, Any]) -> list[Hosted]:
    given = told.get("versions")
    versions = sorted((str(each) for each in given), key=_by_number) if isinstance(given, list) and given else [""]
    takes = f"{_tensors(told.get('inputs'))} -> {_tensors(told.get('outputs'))}"
    passed = ""
    if "sequence_batching" in config:
        passed = "its requests are sequences (sequence_batching)"
    policy = config.get("model_transaction_policy")
    if isinstance(policy, dict) and policy.get("decoupled"):
        passed = "it is decoupled: it may answer a request any number of times"
    places = places_of(config)
    return [
        Hosted(name, version, version == versions[-1], places, "" if "[]" in takes else takes, passed)
        for version in versions
    ]


def _by_number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdecimal() and len(version) < 20 else (-1, version)


def _tensors(given: Any) -> str:
    listed = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    return str(sorted(f"{each.get('name')} {each.get('datatype')}{each.get('shape')}" for each in listed))


def places_of(config: Mapping[str, Any]) -> int | None:
    """Of a Triton model: its instances on all devices, each with a batch where Triton batches."""
    groups = config.get("instance_group")
    if not isinstance(groups, list) or not groups:
        return None
    try:
        instances = sum(int(group["count"]) * max(1, len(group.get("gpus") or ())) for group in groups)
        batch = int(config.get("max_batch_size") or 1) if "dynamic_batching" in config else 1
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return max(1, instances * max(1, batch))


@lru_cache(1024)
def _asked_cached(path: str) -> Ask | None:
    found = _INFER.fullmatch(path)
    return None if found is None else Ask(unquote(found[1]), None if found[2] is None else unquote(found[2]))


def _asked(path: str) -> Ask | None:
    return _asked_cached(path) if len(path) <= 256 else _asked_cached.__wrapped__(path)


def _says(body: bytes, letter: bytes, word: bytes) -> bool:
    """`letter`: one of the word that few bodies have. It is found, or not, ten times as fast as a word.

    (`in` raises and drops an exception first, which takes longer than finding.)
    """
    return body.find(letter) >= 0 and body.find(word) >= 0


def _json_length(header: str | None, body: bytes) -> int:
    return int(header) if header is not None and header.isdecimal() else len(body)


# ---- what an answer means --------------------------------------------------------------------------------------------


def outputs_of(response: Response) -> dict[str, Any]:
    """Output -> its values, in lists as deep as its shape. Ids, and names of models, are not of the answer.

    Raise ValueError if that cannot be read.
    """
    body = without_coding(response)
    length = _json_length(response.header(JSON_LENGTH), body)
    told = json.loads(body[:length])
    found, at = {}, length
    for output in told["outputs"] if isinstance(told, dict) and isinstance(told.get("outputs"), list) else ():
        try:
            size = (output.get("parameters") or {}).get("binary_data_size")
            if size is None:
                values = _from_json(output["datatype"], output["data"])
            else:
                if int(size) < 0 or at + int(size) > len(body):
                    raise ValueError("a tensor is cut short")
                values = _from_bytes(output["datatype"], body[at : at + int(size)])
                at += int(size)
            found[str(output["name"])] = values.reshape(output["shape"]).tolist()
        except (LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"an output of it cannot be read ({type(error).__name__})") from None
    if not found:
        raise ValueError("there are no outputs in it")
    return found


def _near(one: Any, other: Any) -> bool:
    """Up to what other batches round otherwise."""
    first, second = np.asarray(one), np.asarray(other)
    if first.shape != second.shape or first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True))


def _from_json(datatype: str, data: Any) -> Any:
    if datatype == "BYTES":
        return np.array(data, dtype=object)
    kind = _DTYPES[datatype]
    return np.array(data, dtype="f8" if "f" in kind or datatype == "BF16" else kind)


def _from_bytes(datatype: str, data: bytes) -> Any:
    if datatype == "BYTES":
        texts, at = [], 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            if at + 4 + size > len(data):
                raise ValueError("a text is cut short")
            texts.append(data[at + 4 : at + 4 + size].decode("latin-1"))
            at += 4 + size
        return np.array(texts, dtype=object)
    values = np.frombuffer(data, dtype=_DTYPES[datatype])
    if datatype == "BF16":
        return (values.astype("<u4") << 16).view("<f4").astype("f8")
    return values.astype("f8") if values.dtype.kind == "f" else values


BACKEND = OpenInferenceBackend

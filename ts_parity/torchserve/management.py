"""A client of TorchServe's management API: register, describe, set the default version, unregister.

One client per instance, since every TorchServe makes its own keys. Knows the API's words and answers; knows nothing of
how an instance was started, and keeps no state but a connection. Whatever TorchServe refuses becomes a ManagementError
with its own message and what to do about it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import requests
import urllib3

from ts_parity.describe import UNREADABLE, ModelDescription, read_description
from ts_parity.errors import ManagementError

CUSTOMIZED_TIMEOUT_S = 30.0
MOST_BYTES = 4 << 20
"""Limit of an answer's size; TorchServe's are far smaller."""
_MOST_PAGES = 100
_PIECE = 256
"""Bytes read at once; the time limit of an answer that trickles in is checked after each."""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model (its default version) in the list of models."""

    name: str
    url: str


class ManagementClient:
    """`url` is the management address, such as http://127.0.0.1:8081; `token` the management key of that instance;
    `tls_ca` a PEM file, or a folder of such, with the certificates to trust in place of the usual ones.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 10.0, tls_ca: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # proxies and .netrc are for the outside world, not for the fleet
        if tls_ca is not None:
            self._session.verify = tls_ca
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"<ManagementClient {self.url}>"

    def __enter__(self) -> ManagementClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def models(self, page: int = 100) -> list[RegisteredModel]:
        """Every registered model, however many pages that takes."""
        found: list[RegisteredModel] = []
        token: str | None = None
        for _ in range(_MOST_PAGES):
            parameters: dict[str, Any] = {"limit": page}
            if token is not None:
                parameters["next_page_token"] = token
            answer = self._json("GET", "/models", parameters)
            try:
                found += [RegisteredModel(str(m["modelName"]), str(m.get("modelUrl", ""))) for m in answer["models"]]
                token = answer.get("nextPageToken")
            except (KeyError, TypeError, AttributeError) as error:
                raise self._unknown("GET /models", error) from None
            if token is None:
                break
        return found

    def describe(
        self, model: str, version: str | None = None, customized: bool = False, timeout_s: float | None = None
    ) -> ModelDescription:
        """One version; the default one if none is named. `customized` asks a worker, through the model's queue: it
        waits behind its requests and fails (after `timeout_s`) when the worker is frozen.
        """
        described = self._describe(model, version, customized, timeout_s)
        if not described:
            raise ManagementError(
                f"{self.url} described no version of {model}; is this TorchServe's management address?"
            )
        return described[0]

    def describe_all(
        self, model: str, customized: bool = False, timeout_s: float | None = None
    ) -> list[ModelDescription]:
        """Every version of a model."""
        return self._describe(model, "all", customized, timeout_s)

    def register(
        self,
        url: str,
        model_name: str | None = None,
        *,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
        initial_workers: int = 1,
        response_timeout_s: int | None = None,
        timeout_s: float = 180.0,
    ) -> str:
        """-> TorchServe's message. `url` is an http(s) address or the name of a file in the instance's model store.

        What the archive's own config YAML says of batches and timeouts wins over the arguments. `timeout_s` covers the
        loading of the model; a load that fails is refused and leaves nothing registered.
        """
        parameters = {
            "url": url,
            "model_name": model_name,
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay_ms,
            "initial_workers": initial_workers,
            "response_timeout": response_timeout_s,
            "synchronous": "true",
        }
        return self._message("POST", "/models", parameters, timeout_s)

    def set_default(self, model: str, version: str) -> str:
        return self._message("PUT", f"{_path(model, version)}/set-default")

    def unregister(self, model: str, version: str | None = None, timeout_s: float = 150.0) -> str:
        """The default version goes last: TorchServe refuses to remove it while there are others."""
        return self._message("DELETE", _path(model, version), None, timeout_s)

    def _describe(
        self, model: str, version: str | None, customized: bool, timeout_s: float | None
    ) -> list[ModelDescription]:
        parameters = {"customized": "true"} if customized else None
        if customized and timeout_s is None:
            timeout_s = max(self._timeout_s, CUSTOMIZED_TIMEOUT_S)
        answer = self._json("GET", _path(model, version), parameters, timeout_s)
        try:
            return [read_description(entry) for entry in answer]
        except UNREADABLE as error:
            raise self._unknown(f"describe of {model}", error) from None

    def _unknown(self, what: str, error: Exception) -> ManagementError:
        return ManagementError(
            f"{self.url} answered {what} in a shape unknown here ({error!r}); is this TorchServe's management port?"
        )

    def _message(
        self, method: str, path: str, parameters: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> str:
        answer = self._json(method, path, parameters, timeout_s)
        return str(answer.get("status", "")) if isinstance(answer, dict) else str(answer)

    def _json(
        self, method: str, path: str, parameters: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> Any:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            with self._session.request(
                method, self.url + path, params=parameters, timeout=(min(timeout_s, 5.0), timeout_s), stream=True,
                allow_redirects=False,
            ) as answer:  # fmt: skip
                body = _whole(answer, timeout_s)
        except requests.Timeout:
            raise ManagementError(
                f"{self.url} did not answer {method} {path} within {timeout_s:g} s; is the instance loading or frozen?"
            ) from None
        except requests.exceptions.SSLError as error:
            raise ManagementError(
                f"the management address {self.url} is not to be trusted ({_cause(error)}); give the certificate that "
                "vouches for it with --tls-ca"
            ) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise ManagementError(
                f"cannot reach the management address {self.url} ({_cause(error)}); is TorchServe running there, and "
                "is this its management port (8081 by default)?"
            ) from None
        told = _parsed(body)
        if answer.status_code >= 300:  # TorchServe never redirects
            raise _refusal(answer, told, body, f"{method} {path}", self.url)
        if told is None:
            raise ManagementError(
                f"{self.url} answered {method} {path} with no JSON; is this TorchServe's management port?",
                answer.status_code,
            )
        return told


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _whole(answer: requests.Response, timeout_s: float) -> bytes:
    ends_at = time.monotonic() + timeout_s
    body = bytearray()
    for piece in answer.iter_content(_PIECE):
        body += piece
        if len(body) > MOST_BYTES:
            raise requests.RequestException(f"it answers with over {MOST_BYTES >> 20} MB")
        if time.monotonic() > ends_at:
            raise requests.Timeout
    return bytes(body)


def _path(model: str, version: str | None) -> str:
    return f"/models/{quote(model, safe='')}" + ("" if version is None else f"/{quote(version, safe='')}")


def _cause(error: Exception) -> str:
    """The library wraps three layers deep; the innermost is the one that says something."""
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    return " ".join(str(inner).split()) or type(inner).__name__


def _refusal(answer: requests.Response, told: Any, body: bytes, what: str, url: str) -> ManagementError:
    if isinstance(told, dict):
        kind, message = str(told.get("type", "")), str(told.get("message", "")).strip()
    else:
        kind, message = "", " ".join(body.decode("utf-8", "replace").split())[:200]
    hint = _hint(answer.status_code, kind, message)
    said = " ".join(message.split()) or f"no message, {answer.reason or 'no reason'}"
    return ManagementError(
        f"{url} refused {what} ({answer.status_code}): {said}{hint and '; ' + hint}", answer.status_code
    )


def _hint(status: int, kind: str, message: str) -> str:
    if kind == "InvalidKeyException":
        return (
            "give this instance's own management key (key_file.json in the directory it was started from; every "
            "instance makes its own, and they expire), or start it with --disable-token-auth"
        )
    if status == 405:
        return "is the model API off? Start the instance with --enable-model-api (and address its management port)"
    if kind == "ResourceNotFoundException":
        return "this is not a management address (port 8081 by default); the inference port cannot describe or register"
    if not kind:  # TorchServe's own refusals have one
        return "is this TorchServe's management port (8081 by default)?"
    if message.startswith(("Model not found at", "Relative path")):
        return "a local archive must be a plain file name inside the instance's own model store"
    if status == 404:
        return "GET /models lists the models registered there, GET /models/NAME/all the versions of one"
    if status == 409:
        return "that version is registered already: --replace it, unregister it first, or pack another --version"
    if status == 403:
        return "set another version as the default first"
    if status == 500 and "start workers" in message.lower():
        return "the model did not load: the handler's traceback is in the instance's model log"
    return ""


def unready(descriptions: list[ModelDescription]) -> Iterator[str]:
    """For each model version that is not ready: how far it is."""
    for described in descriptions:
        if not described.ready:
            states = ", ".join(worker.status for worker in described.workers) or "no workers"
            yield f"{described.name} {described.version}: {states} of {described.min_workers} wanted"

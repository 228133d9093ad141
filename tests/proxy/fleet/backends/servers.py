"""A model server of any kind, whose answers a test gives path by path."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

Answer = tuple[int, Any] | web.StreamResponse
Said = Callable[[web.Request, bytes], Answer]


class PlainServer:
    """`answers`: "METHOD /path" -> status and JSON (or bytes), or what makes them. `held`: paths that wait for `thaw`.
    `script`: answers to predictions that are used up first.
    """

    def __init__(self, answers: dict[str, Answer | Said], more: str = "kind=open-inference") -> None:
        self.answers = answers
        self.more = more
        self.received: list[tuple[str, bytes, dict[str, str]]] = []
        self.script: deque[Answer] = deque()
        self.held: set[str] = set()
        self.connections: set[Any] = set()
        self.inference = ""
        self._thawed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> PlainServer:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._on_request)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.inference = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self.thaw()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def thaw(self) -> None:
        self._thawed.set()

    @property
    def name(self) -> str:
        return self.inference.removeprefix("http://")

    @property
    def endpoint(self) -> str:
        return f"{self.inference},{self.more}"

    def asked(self, start: str) -> list[tuple[str, bytes, dict[str, str]]]:
        return [each for each in self.received if each[0].startswith(start)]

    async def _on_request(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        asked = f"{http.method} {http.raw_path}"
        self.received.append((asked, body, {name.lower(): value for name, value in http.headers.items()}))
        self.connections.add(http.transport)
        path = http.path
        if path in self.held:
            await self._thawed.wait()
        given = self.answers.get(f"{http.method} {path}", (404, {"error": "there is nothing here"}))
        if self.script and http.method == "POST" and "repository" not in path:
            given = self.script.popleft()
        answer = given(http, body) if callable(given) else given
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, web.StreamResponse):
            return answer
        status, said = answer
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        return web.Response(status=status, body=data, content_type="application/json")


def tensor(values: list[float], name: str = "y", datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [1, len(values)], "data": values}


def inferred(model: str, values: list[float], **more: Any) -> dict[str, Any]:
    return {"model_name": model, **more, "outputs": [tensor(values)]}


def body(values: list[float], **more: Any) -> bytes:
    return json.dumps({**more, "inputs": [tensor(values, "x")]}).encode()


def triton(*models: str, listed: bool = True, **outputs: list[float]) -> dict[str, Answer | Said]:
    """Answers of a Triton that hosts these; all say [0.1, 0.9] where `outputs` has nothing for them."""
    answers: dict[str, Answer | Said] = {
        "GET /v2/health/ready": (200, b""),
        "GET /v2": (200, {"name": "triton", "version": "2.51.0", "extensions": ["binary_tensor_data"]}),
    }
    if listed:
        index = [{"name": model, "version": "1", "state": "READY"} for model in models]
        answers["POST /v2/repository/index"] = (200, index)
    else:
        answers["POST /v2/repository/index"] = (403, {"error": "This API is restricted"})
    for model in models:
        x, y = ({"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in "xy")
        told = {"name": model, "versions": ["1"], "platform": "python", "inputs": [x], "outputs": [y]}
        answers[f"GET /v2/models/{model}"] = (200, told)
        answers[f"GET /v2/models/{model}/ready"] = (200, b"")
        config = {"name": model, "max_batch_size": 8, "instance_group": [{"count": 1}]}
        answers[f"GET /v2/models/{model}/config"] = (200, config)
        answers[f"POST /v2/models/{model}/infer"] = (200, inferred(model, outputs.get(model, [0.1, 0.9])))
    return answers

"""A real Chromium, told what to do over its own protocol: no driver has to be installed beside it.

Open a page in `async with Chromium(folder) as browser`; what it asks for, and what its console complains of, is noted.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 60.0


class Page:
    """One tab. It notes what a person would never see: requests, and what went wrong in the console."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self.session = session
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def ask(self, method: str, **params: Any) -> Any:
        return await self._browser.ask(method, self.session, **params)

    async def run(self, script: str) -> Any:
        """-> the value of an expression, awaited if it is a promise."""
        told = await self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, condition: str, timeout_s: float = PATIENCE_S) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        while not await self.run(f"Boolean({condition})"):
            assert loop.time() < ends_at, f"waited {timeout_s} s for {condition}"
            await asyncio.sleep(0.02)

    async def look(self, width: int, height: int, dark: bool = False) -> None:
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        await asyncio.sleep(0.2)  # two frames, so that what is drawn to the width has been

    async def picture(self) -> bytes:
        """Of the whole page, however long: a PNG."""
        told = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(told["data"])

    async def press(self, key: str, code: str = "", text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            number = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
            await self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=code or key,
                windowsVirtualKeyCode=number,
                **more,
            )

    def noted(self, method: str, params: Mapping[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])


class Chromium:
    """Headless, with a profile of its own in `folder`, and no network of its own making."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def __aenter__(self) -> Chromium:
        assert CHROMIUM is not None
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        self._process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *flags,
            "--remote-debugging-port=0",
            f"--user-data-dir={self._folder / 'profile'}",
            "about:blank",
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stderr is not None
        found = None
        while found is None:
            line = await asyncio.wait_for(self._process.stderr.readline(), PATIENCE_S)
            assert line, "chromium has ended"
            found = re.search(rb"DevTools listening on (ws://\S+)", line)
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(found[1].decode(), max_msg_size=0)
        self._draining = asyncio.create_task(self._process.stderr.read())
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()
        await self._http.close()
        self._process.kill()  # it has nothing to save, and its orderly end may take a minute on a busy machine
        await self._process.wait()
        for task in (self._reading, self._draining):
            task.cancel()
        await asyncio.gather(self._reading, self._draining, return_exceptions=True)

    async def ask(self, method: str, session: str = "", **params: Any) -> Any:
        number = next(self._ids)
        self._pending[number] = asyncio.get_running_loop().create_future()
        told = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        await self._socket.send_json(told)
        return await asyncio.wait_for(self._pending[number], PATIENCE_S)

    async def open(self, url: str, width: int = 1600, height: int = 1000, dark: bool = False) -> Page:
        target = (await self.ask("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.ask(f"{domain}.enable")
        await page.look(width, height, dark)
        await page.ask("Page.navigate", url=url)
        return page

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                waiting = self._pending.pop(told["id"])
                if "error" in told:
                    waiting.set_exception(RuntimeError(told["error"]["message"]))
                else:
                    waiting.set_result(told["result"])
            elif told.get("sessionId") in self._pages:
                self._pages[told["sessionId"]].noted(told["method"], told["params"])

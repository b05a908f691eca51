"""A real browser for the tests: Debian's Chromium without a window, driven over its DevTools protocol.

Clicks and keys are real input events, so what is covered, disabled or out of the tab order cannot be used by a test
either. Scripts are switched off for the pages; the questions that a test asks run in a world of their own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.conftest import program

_SECONDS = 30


class Browser:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = iter(range(1, 1_000_000))
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        self.credentials: tuple[str, str] | None = None
        """What the person types into the browser's log-in; None cancels it."""
        self.complaints: list[str] = []
        """What the console says: blocked resources, violations of the page's policy."""
        self.asked: list[str] = []
        """Every URL that a page made the browser ask for."""

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._waiting.pop(told["id"]).set_result(told)
                continue
            what = told["params"]
            match told["method"]:
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Log.entryAdded":
                    self.complaints.append(what["entry"]["text"])
                case "Fetch.requestPaused":
                    self.asked.append(what["request"]["url"])
                    self._tell("Fetch.continueRequest", requestId=what["requestId"])
                case "Fetch.authRequired":
                    answer = {"response": "CancelAuth"}
                    if self.credentials is not None:
                        user, password = self.credentials
                        answer = {"response": "ProvideCredentials", "username": user, "password": password}
                    self._tell("Fetch.continueWithAuth", requestId=what["requestId"], authChallengeResponse=answer)

    def _tell(self, method: str, **parameters: Any) -> asyncio.Future[dict[str, Any]]:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        sent = self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        self._sending = asyncio.ensure_future(sent)
        return self._waiting[number]

    async def __call__(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol."""
        async with asyncio.timeout(_SECONDS):
            answer = await self._tell(method, **parameters)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def begin(self) -> None:
        for domain in ("Page", "Log", "DOM", "Runtime"):
            await self(f"{domain}.enable")
        await self("Fetch.enable", handleAuthRequests=True)
        await self("Emulation.setScriptExecutionDisabled", value=True)
        await self.look(1280, 860)

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window's size and the colours that the person prefers."""
        await self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self("Emulation.setEmulatedMedia", features=[scheme])

    async def goto(self, url: str) -> None:
        self._loaded.clear()
        await self("Page.navigate", url=url)
        await self._wait()

    async def _wait(self) -> None:
        async with asyncio.timeout(_SECONDS):
            await self._loaded.wait()

    async def ask(self, script: str) -> Any:
        """The value of an expression about the page."""
        tree = await self("Page.getFrameTree")
        world = await self("Page.createIsolatedWorld", frameId=tree["frameTree"]["frame"]["id"])
        found = await self(
            "Runtime.evaluate", expression=script, returnByValue=True, contextId=world["executionContextId"]
        )
        assert "exceptionDetails" not in found, (script, found)
        return found["result"].get("value")

    async def text(self, selector: str = "body") -> str:
        return str(await self.ask(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str, *, loads: bool = True) -> None:
        """Click in the middle of the element; by default a page loads by it."""
        quoted = json.dumps(selector)
        await self.ask(f"document.querySelector({quoted}).scrollIntoView({{block: 'center'}})")
        box = await self.ask(
            f"(() => {{ const b = document.querySelector({quoted}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        self._loaded.clear()
        for kind in ("mousePressed", "mouseReleased"):
            await self("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        if loads:
            await self._wait()

    async def type(self, selector: str, text: str) -> None:
        await self.click(selector, loads=False)
        await self("Input.insertText", text=text)

    async def press(self, key: str, *, loads: bool = False) -> None:
        """A key of the keyboard: Tab or Enter."""
        self._loaded.clear()
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        for kind in ("keyDown", "keyUp"):
            await self(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
            )  # fmt: skip
        if loads:
            await self._wait()

    async def screenshot(self) -> bytes:
        """What the person sees, as PNG."""
        shot = await self("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


def _start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [program("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Chromium with an empty profile of its own, ended with all that it started."""
    folder = Path(tempfile.mkdtemp())
    process = _start(folder)
    try:
        port_file = folder / "DevToolsActivePort"
        async with asyncio.timeout(_SECONDS):
            while not port_file.exists() or "\n" not in port_file.read_text():
                assert process.poll() is None, "chromium ended"
                await asyncio.sleep(0.05)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (tab,) = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=64 << 20) as socket:
                made = Browser(socket)
                await made.begin()
                yield made
                with suppress(ConnectionError):
                    await socket.send_str('{"id": 0, "method": "Browser.close"}')
                made._reader.cancel()
    finally:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)

"""Chromium without a window, driven over its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import websocket

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_SECONDS = 120


def find_browser() -> str:
    """The first that is on PATH."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"none of {', '.join(BROWSERS)} is on PATH: install chromium (Debian: apt install chromium).")
    return found


class Browser:
    """A running Chromium."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    @contextmanager
    def page(self, url: str, before: str = "") -> Iterator[Page]:
        """A tab of its own, in which a script ran before those of the page."""
        tab = httpx.put(f"{self._address}/json/new?about:blank").json()
        # Chromium refuses whoever names an origin.
        connection = websocket.create_connection(
            tab["webSocketDebuggerUrl"], timeout=TIMEOUT_SECONDS, suppress_origin=True
        )
        try:
            page = Page(connection)
            for domain in ("Page", "Network", "Runtime", "Log"):
                page.call(f"{domain}.enable", {})
            page.call("Page.addScriptToEvaluateOnNewDocument", {"source": before})
            page.call("Page.navigate", {"url": url})
            page.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
            yield page
        finally:
            connection.close()
            httpx.get(f"{self._address}/json/close/{tab['id']}")


class Page:
    """A tab. What happened in it is in `events`, as far as it was asked for something since."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression, once it is a true one."""
        ends = time.monotonic() + TIMEOUT_SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < ends, f"never became true: {expression}"
            time.sleep(0.03)
        return value

    def centre(self, selector: str) -> tuple[float, float]:
        """Of an element, which is scrolled to."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(f"{found}.getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Args: kind: mousePressed, mouseReleased or mouseMoved."""
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, "pointerType": "mouse"}
        self.call("Input.dispatchMouseEvent", event)

    def click(self, selector: str) -> None:
        x, y = self.centre(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def key(self, kind: str, key: str, code: int, text: str = "") -> None:
        """Args: kind: keyDown or keyUp; code: as Windows counts keys; text: that it types."""
        event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", event)

    def choose_file(self, selector: str, *files: Path) -> None:
        """As the window for choosing files does."""
        found = self.call("Runtime.evaluate", {"expression": f"document.querySelector({json.dumps(selector)})"})
        parameters = {"objectId": found["result"]["objectId"], "files": [str(file) for file in files]}
        self.call("DOM.setFileInputFiles", parameters)

    def drop_file(self, file: Path) -> None:
        """Onto the middle of the page."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})

    def show_as(self, width: int, height: int, scheme: str) -> None:
        """Without transitions, so that it looks so at once. Args: scheme: light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size)
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        media = [{"name": name, "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", {"features": media})

    def screenshot(self) -> bytes:
        """A PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", {"format": "png"})["data"])


@contextmanager
def run_browser(profile: Path, *options: str) -> Iterator[Browser]:
    """Args: profile: a folder that does not exist; options: further ones of its command line."""
    command = (
        find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--no-first-run", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", *options, "about:blank",
    )  # fmt: skip
    log = profile.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)
    try:
        told = profile / "DevToolsActivePort"
        ends = time.monotonic() + TIMEOUT_SECONDS
        while not (told.exists() and (lines := told.read_text().split())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        yield Browser(int(lines[0]))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

"""Debian's chromium without a window, driven over its debugging pipe. Tests that need it skip where it is absent."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--remote-debugging-pipe",
]


def chromium() -> str:
    """The browser's path; the test skips where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    return found


class Browser:
    """One page of a browser with a new, empty profile. Use as a context."""

    def __init__(self, profile: Path):
        read_commands, self._out = os.pipe()
        self._in, write_answers = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4, whatever numbers the pipes have here.
        line = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        command = ["bash", "-c", line, "browser", chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(read_commands, write_answers), **quiet)
        os.close(read_commands)
        os.close(write_answers)
        self._number, self._rest, self._session = 0, b"", ""
        self.requests: list[str] = []
        page = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Network.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """The page's viewport in CSS pixels, as on a desktop or a phone."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def dark(self, on: bool) -> None:
        """Whether pages are told that the reader prefers dark ones."""
        preference = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self._call("Emulation.setEmulatedMedia", features=preference)

    def open(self, url: str) -> None:
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page, as JSON."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def value_in_frame(self, expression: str) -> Any:
        """What an expression gives in the page's sandboxed frame; None while there is none, or it is half loaded."""
        targets = self._call("Target.getTargets")["targetInfos"]
        frames = [target["targetId"] for target in targets if target["type"] == "iframe"]
        if not frames:
            return None
        page, self._session = self._session, ""
        try:
            self._session = self._call("Target.attachToTarget", targetId=frames[0], flatten=True)["sessionId"]
            answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        finally:
            self._session = page
        return answer["result"].get("value") if "exceptionDetails" not in answer else None

    def wait_for(self, expression: str, seconds: float = 90) -> Any:
        """The first value of an expression that is neither empty nor false, nor an error of a page half loaded."""
        guarded = f"(() => {{ try {{ return {expression} }} catch (error) {{ window.lastError = `${{error}}` }} }})()"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.value(guarded):
                return found
            time.sleep(0.2)
        said = self.value("`${window.lastError || ''}\\n${document.body ? document.body.innerText : ''}`")
        raise AssertionError(f"not within {seconds} s: {expression}\nThe page says: {said[:2000]}")

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of the viewport, or of the whole page."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", **options)["data"]))
        return path

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self, waiting_for: str, seconds: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"the browser gives no answer to {waiting_for}"
            piece = os.read(self._in, 1 << 20)
            assert piece, f"the browser ended at {waiting_for}"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

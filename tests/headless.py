"""A headless Chromium, driven through the DevTools protocol over a pipe, which needs no library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Seconds. Answers come within milliseconds on an idle machine.
_PATIENCE = float(os.environ.get("DEEPATLAS_PATIENCE", "60"))


def chromium() -> str:
    """The program. The calling test is skipped, with a reason, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found:
        pytest.skip("no Chromium on this machine (Debian's package chromium); the page is not tested")
    return found


class Browser:
    """A Chromium without a window and with a profile of its own. It must be closed."""

    def __init__(self, *options: str) -> None:
        program = chromium()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        from_us, self._to = os.pipe()
        self._from, from_it = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        line = f'exec "$0" "$@" 3<&{from_us} 4>&{from_it}'
        arguments = [
            "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "--no-first-run",
            "--disable-gpu", "--mute-audio", "--disable-extensions", "--disable-background-networking",
            "--disable-component-update", "--hide-scrollbars", "--no-default-browser-check", *options,
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            # The sandbox of Chromium refuses to run as root, as in a container.
            arguments.append("--no-sandbox")
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", line, program, *arguments, "about:blank"],
            pass_fds=(from_us, from_it), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_us)
        os.close(from_it)
        self._buffer = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser and delete its profile."""
        with contextlib.suppress(OSError, RuntimeError):
            self.send("Browser.close")
        for end in (self._to, self._from):
            with contextlib.suppress(OSError):
                os.close(end)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def send(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> Any:
        """Send a command and return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def page(self, width: int = 1280, height: int = 720, touch: bool = False) -> Page:
        """A new page of this size."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        return Page(self, target, session, width, height, touch)


class Page:
    """One page of a browser."""

    def __init__(
        self, browser: Browser, target: str, session: str, width: int, height: int, touch: bool
    ) -> None:
        self.browser, self.target, self.session = browser, target, session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.size(width, height, touch)

    def send(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Send a command about this page."""
        return self.browser.send(method, params, self.session)

    def size(self, width: int, height: int, touch: bool = False) -> None:
        """Change the size of the page in pixels, and whether it has a touch screen."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", metrics)
        self.send(
            "Emulation.setTouchEmulationEnabled", {"enabled": touch, "maxTouchPoints": 5 if touch else 1}
        )

    def go(self, address: str) -> None:
        """Go to an address."""
        self.send("Page.navigate", {"url": address})

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, or of the promise that it is."""
        found = self.send(
            "Runtime.evaluate",
            {"expression": code, "awaitPromise": True, "returnByValue": True, "userGesture": True},
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = _PATIENCE) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError, RuntimeError):
                if value := self.run(code):
                    return value
            assert time.monotonic() < end, (
                f"the page did not come to: {code}\n{self.run('document.body.innerText')}"
            )
            time.sleep(0.03)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event: Pressed, Moved, Released or Wheel."""
        details = {
            "type": f"mouse{kind}",
            "x": x,
            "y": y,
            "button": "left",
            "clickCount": 1,
            "buttons": 1,
            **more,
        }
        self.send("Input.dispatchMouseEvent", details)

    def click(self, x: float, y: float, **more: Any) -> None:
        """Click at a place of the page."""
        self.mouse("Pressed", x, y, **more)
        self.mouse("Released", x, y, **more)

    def drag(self, *places: tuple[float, float], **more: Any) -> None:
        """Press at the first place, move to the others, and release at the last one."""
        self.mouse("Pressed", *places[0], **more)
        for place in places[1:]:
            self.mouse("Moved", *place, **more)
        self.mouse("Released", *places[-1], **more)

    def touch(self, kind: str, *places: tuple[float, float]) -> None:
        """A touch event: Start, Move or End."""
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
        self.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key, such as ``p`` or ``PageUp``; the modifiers are 1 Alt, 2 Ctrl, 4 Meta and 8 Shift."""
        event = {"key": key, "modifiers": modifiers}
        if len(key) == 1 and not modifiers & 2:
            event["text"] = key
        self.send("Input.dispatchKeyEvent", {"type": "keyDown", **event})
        self.send("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def type(self, text: str) -> None:
        """Type text into the field that has the focus."""
        self.send("Input.insertText", {"text": text})

    def screenshot(self, path: Path | None = None) -> bytes:
        """The page as a PNG file."""
        png = base64.b64decode(self.send("Page.captureScreenshot", {"format": "png"})["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    def complaints(self) -> list[str]:
        """What the console holds of errors and warnings, such as those of the content security policy."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event["params"]
            if event["method"] == "Log.entryAdded":
                # A refusal of the server is shown by the page itself.
                if (
                    params["entry"]["level"] in ("error", "warning")
                    and params["entry"]["source"] != "network"
                ):
                    found.append(params["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
        return found

    def requests(self) -> list[str]:
        """Every address that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        """Close the page."""
        self.browser.send("Target.closeTarget", {"targetId": self.target})


@contextlib.contextmanager
def browser(*options: str) -> Iterator[Browser]:
    """A browser that is closed at the end."""
    it = Browser(*options)
    try:
        yield it
    finally:
        it.close()

"""Headless Chromium, driven over the DevTools protocol: real clicks and keys, a network log, console errors.

The protocol runs over a pipe (``--remote-debugging-pipe``), so no port is open and no package is needed. No name can be
resolved, so a request of the page would fail, and the network log would show it.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.programs import missing
from support.waiting import PATIENCE

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"Enter": ("Enter", 13, "\r"), "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowRight": ("ArrowRight", 39, ""),
        "Home": ("Home", 36, ""), "Tab": ("Tab", 9, ""), "Space": (" ", 32, " ")}  # fmt: skip


class Browser:
    """One page in Chromium."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._buffer, self._id, self._session = commands, answers, b"", 0, ""
        self.requests: list[str] = []
        """Addresses that the page has asked for, other than itself and data in it."""
        self.errors: list[str] = []
        """Messages of the console, exceptions and violations of the Content-Security-Policy."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def open(self, address: str) -> None:
        """Load a page and wait until its figures are drawn, or for its images if scripts are off."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < end, f"timed out: {condition}; {self.errors}"
            time.sleep(0.05)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Press and release the mouse on an element, at a part of its width and height."""
        place = self.place(selector)
        at = {"x": place["x"] + x * place["width"], "y": place["y"] + y * place["height"]}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **at, **button)

    def hover(self, selector: str) -> None:
        """Move the mouse to the center of an element."""
        place = self.place(selector)
        at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)

    def place(self, selector: str) -> dict[str, float]:
        """Box of an element in the window, after scrolling to it."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        return dict(self.run(f"{element}.getBoundingClientRect().toJSON()"))

    def press(self, key: str) -> None:
        """Press and release a key."""
        name, code, text = KEYS[key]
        about = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def show(self, width: int, *, dark: bool = False, height: int = 900, media: str = "") -> None:
        """Set the width of the window, in pixels, the preferred color scheme, and the medium: "print" or the screen."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme], media=media)

    def screenshot(self, file: Path) -> None:
        """Picture of the whole page as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed, as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE)
            assert ready, "Chromium does not answer"
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and about["type"] != "Document":
            address = about["request"]["url"]
            if not address.startswith("data:"):
                self.requests.append(address)
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(about["entry"]))
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"dialog: {about['message']}")


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start Chromium with its own profile; the test is skipped if there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        missing("Chromium is not installed: apt-get install chromium")
    (their_commands, commands), (answers, their_answers) = os.pipe(), os.pipe()
    command = [program, *OPTIONS, f"--user-data-dir={profile}"]
    script = f'exec "$@" 3<&{their_commands} 4>&{their_answers}'  # the protocol is on these two descriptors
    process = subprocess.Popen(
        ["bash", "-c", script, "chromium", *command],
        pass_fds=(their_commands, their_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_commands)
    os.close(their_answers)
    try:
        yield Browser(commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        process.terminate()
        process.wait(PATIENCE)

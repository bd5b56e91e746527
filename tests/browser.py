"""A headless Chromium that tests drive as a person does: by keys, clicks and files.

It speaks the DevTools protocol over a pipe, which needs no driver and no package.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
TIMEOUT_S = 60
_RESTORE = """((stored) => {
  localStorage.clear();
  for (const [key, value] of Object.entries(stored)) localStorage.setItem(key, value);
})"""
FAULTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
WIDTHS_PX = (390, 1280)
# What is wider than the window, outside of what scrolls by itself; and colors and sizes.
_LAYOUT = """(() => {
  const wide = [];
  for (const each of document.querySelectorAll("body *")) {
    const box = each.getBoundingClientRect();
    if (box.width && box.right > innerWidth + 0.5 && !each.closest(".scroll, pre, dialog")) {
      wide.push(each.tagName + " " + each.className);
    }
  }
  const text = document.querySelector(".plot text");
  const svg = document.querySelector(".plot svg");
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 0;
  return {
    page: document.documentElement.scrollWidth, window: innerWidth, wide: wide,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    chart_ink: text ? getComputedStyle(text).fill : null,
    chart_px: text ? scale * parseFloat(getComputedStyle(text).fontSize) : null,
    n_charts: document.querySelectorAll(".plot svg").length,
  };
})()"""
# In the child, Chromium reads commands from descriptor 3 and writes answers to 4. The pipes are
# made above both, so that none of them is replaced before it was copied.
_FIRST_FREE = 20
_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Escape": 27}
_KEYS: dict[str, dict[str, Any]] = {
    name: {"key": name, "code": name, "windowsVirtualKeyCode": code}
    for name, code in _CODES.items()
}
_KEYS["Enter"] = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    return None


@contextmanager
def quiet_browser(folder: Path) -> Iterator[Browser]:
    """Start a browser, and check in the end that pages logged nothing and asked for no other file.

    Skips the test where there is no Chromium.

    Args:
        folder: for its profile and the files that it saves.
    """
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium: install the package `chromium`")
    browser = Browser(program, folder)
    try:
        browser.show_as(1280, 900)
        yield browser
        faults = [each["params"] for each in browser.events if each.get("method") in FAULTS]
        # A picture that was still decoded when the next page was opened is no fault.
        assert [fault for fault in faults if not fault.get("canceled")] == []
        requests = [
            each for each in browser.events if each.get("method") == "Network.requestWillBeSent"
        ]
        urls = {each["params"]["request"]["url"].partition(":")[0] for each in requests}
        assert urls <= {"file", "data"}
    finally:
        browser.close()


def check_layout(browser: Browser) -> int:
    """Check the open page on a phone and a screen, light and dark; return how many charts it has.

    Nothing is wider than the window but tables and code that scroll by themselves, and texts of the
    page and of charts have contrast and size.
    """
    layout: dict[str, Any] = {}
    for width_px in WIDTHS_PX:
        for is_dark in (False, True):
            browser.show_as(width_px, 900, is_dark=is_dark)
            layout = browser.run(_LAYOUT)
            assert layout["page"] <= layout["window"]
            assert layout["wide"] == []
            paper = _brightness(layout["paper"])
            for ink in filter(None, (layout["ink"], layout["chart_ink"])):
                assert (paper < _brightness(ink)) == is_dark
                assert abs(paper - _brightness(ink)) > 80
            if layout["n_charts"]:
                assert layout["chart_px"] >= 10
    browser.show_as(1280, 900)
    n_charts: int = layout["n_charts"]
    return n_charts


def _brightness(color: str) -> float:
    """Return the mean of red, green and blue of a computed color."""
    channels = [float(number) for number in re.findall(r"[\d.]+", color)[:3]]
    return sum(channels) / 3


class Browser:
    """One browser with one page.

    Args:
        program: path of Chromium.
        folder: for its profile and the files that it saves.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        child_reads, self._writes = _high_pipe()
        self._reads, child_writes = _high_pipe()

        def connect() -> None:
            os.dup2(child_reads, 3)
            os.dup2(child_writes, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=connect,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")
        self.command("Page.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._reads)
        os.close(self._writes)

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of a command of the protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            received = self._receive(deadline)
            if received.get("id") != self._number:
                self.events.append(received)
                continue
            if "error" in received:
                raise RuntimeError(f"{method}: {received['error']}")
            result: dict[str, Any] = received["result"]
            return result

    def open(self, path: Path) -> None:
        """Show a local page."""
        self._load("Page.navigate", url=path.absolute().as_uri())

    def reload(self) -> None:
        """Load the page again."""
        self._load("Page.reload")

    def _load(self, method: str, **params: Any) -> None:
        """Show a page, which finds in the local storage what the last one left there."""
        # Right after a write, Chromium now and then shows the next page an empty storage.
        stored = self.run("location.protocol === 'file:' ? JSON.stringify(localStorage) : '{}'")
        script = f"if (location.protocol === 'file:') {{ {_RESTORE}({stored}); }}"
        added = self.command("Page.addScriptToEvaluateOnNewDocument", source=script)
        # Another page may be shown until this one is there.
        self.run("window.isOld = true")
        self.command(method, **params)
        self.wait_for(
            "!window.isOld && document.readyState === 'complete' && location.protocol === 'file:'"
        )
        self.command("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of the first element that a selector finds."""
        text: str = self.run(f"document.querySelector({json.dumps(selector)}).textContent")
        return text

    def is_visible(self, selector: str) -> bool:
        """Return whether an element takes up space."""
        element = f"document.querySelector({json.dumps(selector)})"
        return bool(self.run(f"{element}.getClientRects().length > 0"))

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def press(self, key: str, *, repeat: bool = False, modifiers: int = 0) -> None:
        """Press and release a key, such as `y` or `ArrowLeft`; modifiers: 2 is Ctrl."""
        values: dict[str, Any] = _KEYS.get(
            key, {"key": key, "code": f"Key{key.upper()}", "text": key}
        )
        if modifiers:
            values = {name: value for name, value in values.items() if name != "text"}
        self.command(
            "Input.dispatchKeyEvent",
            type="keyDown",
            autoRepeat=repeat,
            modifiers=modifiers,
            **values,
        )
        released = {name: value for name, value in values.items() if name != "text"}
        self.command("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **released)

    def click(self, selector: str) -> None:
        """Click into the middle of an element, with the mouse."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def show_as(self, width_px: int, height_px: int, *, is_dark: bool = False) -> None:
        """Set the size of the window, and whether the user prefers dark pages."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width_px,
            height=height_px,
            deviceScaleFactor=1,
            mobile=width_px < 600,
        )
        scheme = "dark" if is_dark else "light"
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        picture = self.command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            remaining = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._reads], [], [], remaining)
            part = os.read(self._reads, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("Chromium does not answer")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        received: dict[str, Any] = json.loads(text)
        return received


def _high_pipe() -> tuple[int, int]:
    """Return the ends of a pipe, with descriptors from `_FIRST_FREE` on."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))
        os.close(end)
    return ends[0], ends[1]

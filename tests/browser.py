"""A real browser without a window, driven over a pipe by its own protocol: pages, presses, pictures, errors.

The protocol is Chromium's (chromedevtools.github.io/devtools-protocol); messages are JSON, a zero byte after each.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The browser's path; where there is none and this is a Debian machine of our own, it is installed."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found or os.geteuid() or not shutil.which("apt-get"):
        return found
    with open(Path(tempfile.gettempdir()) / "metaopt-browser.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test processes installs, the others wait for it
        if not shutil.which("chromium"):
            _install()
    return shutil.which("chromium")


def _install() -> None:
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "DPkg::Lock::Timeout=5"]
    try:
        for words, limit in ((["update"], 40), (["install", "-y", "--no-install-recommends", "chromium"], 150)):
            command = ["timeout", "-k", "5", str(limit), "apt-get", *options, *words]
            if subprocess.run(command, env=environment, check=False, **quiet).returncode:
                break
    except OSError:
        pass


@functools.cache
def browser_or_skip() -> str:
    """The browser's path; skips the test where there is none."""
    found = find_browser()
    if found is None:
        pytest.skip("no chromium or chrome is installed, and apt-get cannot install one here")
    return found


class Browser:
    """One browser with one page, in a folder of its own; `errors` holds what went wrong on the page."""

    def __init__(self, path: str, home: Path) -> None:
        self.errors: list[str] = []
        self._next, self._buffer = 0, b""
        read_end, their_write = os.pipe()
        their_read, write_end = os.pipe()
        self._read, self._write = read_end, write_end
        command = [
            path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
            "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank",
        ]  # fmt: skip
        # The protocol wants its pipes as descriptors 3 and 4; these here lie above, out of their way.
        given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_read, their_write)]
        shell = f'exec "$@" 3<&{given[0]} 4>&{given[1]} {given[0]}<&- {given[1]}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "browser", *command],
            pass_fds=given, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (their_read, their_write, *given):
            os.close(end)
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session: str | None = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    # ----- messages ---------------------------------------------------------------------------------------------------

    _session = None

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        wanted = self._next
        while True:
            answer = self._message()
            if answer.get("id") == wanted:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 20)
            if not read:
                raise EOFError("the browser is gone")
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "about:")):
            self.errors.append(f"asked for {params['request']['url']}")

    # ----- the page ---------------------------------------------------------------------------------------------------

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """Opens a file as a screen of that width shows it, and waits until it is loaded."""
        self.theme(dark)
        self.screen(width, height, phone=phone)
        self._call("Page.navigate", url=path.resolve().as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def screen(self, width: int, height: int = 900, *, phone: bool = False) -> None:
        """Another size of the screen."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def theme(self, dark: bool) -> None:
        """What the system prefers."""
        preferred = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=preferred)

    def prefer(self, *, reduced: bool) -> None:
        """Whether the system asks for less motion."""
        preferred = [{"name": "prefers-reduced-motion", "value": "reduce" if reduced else "no-preference"}]
        self._call("Emulation.setEmulatedMedia", features=preferred)

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key of the keyboard: Tab or Enter."""
        code, text = {"Tab": (9, None), "Enter": (13, "\r")}[key]
        how: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._call("Input.dispatchKeyEvent", type="keyDown", **how, **({"text": text} if text else {}))
        self._call("Input.dispatchKeyEvent", type="keyUp", **how)

    def picture(self, path: Path | None = None, *, clip: dict[str, float] | None = None) -> bytes:
        """A PNG of the whole page, or of a part of it."""
        options: dict[str, Any] = {"clip": {**clip, "scale": 1}} if clip else {}
        if clip is None:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            options = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        data = base64.b64decode(
            self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, **options)["data"]
        )
        if path is not None:
            path.write_bytes(data)
        return data

    def close(self) -> None:
        """Ends the browser and the processes it started."""
        try:
            self._session = None
            self._call("Browser.close")
            self._process.wait(10)
        except (OSError, EOFError, AssertionError, subprocess.TimeoutExpired):
            pass
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, 9)
                self._process.wait()
            os.close(self._read)
            os.close(self._write)

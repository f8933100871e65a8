"""Chromium as tests drive it: by the DevTools protocol over pipes, without a network and without a server."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser, if there is one."""
OPTIONS = (
    "--headless=new", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
WAIT = 60  # seconds that a condition of a page may take


class Page:
    """A page of a browser; `requests` are the URLs that it asked for, and `errors` what its scripts raised."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of, self._read = to, of, b""
        self._numbers, self._session = itertools.count(1), ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        none = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", offline=True, **none)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol; events that come before it are noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._to, left) :]
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, path: Path) -> None:
        """Go to a file."""
        self.call("Page.navigate", url=path.as_uri())

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", result).get("description"))
        return result["result"].get("value")

    def until(self, condition: str) -> Any:
        """The value of an expression as soon as it is true."""
        waiting = f"""new Promise((done, fail) => {{
            const end = Date.now() + {1000 * WAIT};
            const look = () => {{
                let value = false;
                try {{ value = {condition} }} catch (error) {{
                    if (!(error instanceof ReferenceError)) return fail(error); // the page is not there yet
                }}
                if (value) return done(value);
                Date.now() > end ? fail(new Error("never true: " + document.body.innerText)) : setTimeout(look, 20);
            }};
            look();
        }})"""
        return self.value(waiting)

    def choose(self, expression: str, files: Sequence[Path]) -> None:
        """Choose files in an input, as a person does."""
        found = self.call("Runtime.evaluate", expression=expression)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", objectId=found, files=[str(file) for file in files])

    def resize(self, width: int, height: int) -> None:
        """Give the page a size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def picture(self) -> bytes:
        """A picture of the whole page, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            piece = os.read(self._of, 1 << 16)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        if event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])


@contextmanager
def browser_page(folder: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose profile is in a folder."""
    assert CHROMIUM is not None
    (theirs, to), (of, ours) = os.pipe(), os.pipe()
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    redirected = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{ours}', *command]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(redirected, pass_fds=(theirs, ours), **quiet)
    os.close(theirs)
    os.close(ours)
    try:
        yield Page(to, of)
    finally:
        os.close(to)
        os.close(of)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

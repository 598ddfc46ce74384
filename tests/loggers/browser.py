"""A headless Chromium that the tests drive over the DevTools protocol, and a TensorBoard for it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 90.0  # seconds

# Elements and words below a node, those in shadow trees too.
DEEP = """
const below = (node, name) => {
  const found = [];
  const walk = parent => {
    for (const child of parent.children || []) {
      if (child.matches(name)) found.push(child);
      walk(child);
    }
    if (parent.shadowRoot) walk(parent.shadowRoot);
  };
  walk(node);
  return found;
};
const words = node => {
  const found = [];
  const walk = node => {
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.tagName)) return;
    if (node.nodeType === 3 && node.data.trim()) found.push(node.data.trim());
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(node);
  return found;
};
"""


class Page:
    """One page of the browser."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=PATIENCE)
        self.count = 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """Value of the script's last `return`, with `below` and `words` at hand."""
        found = self.call(
            "Runtime.evaluate",
            expression=f"(() => {{ {DEEP} {script} }})()",
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str, width: int = 1200, height: int = 1000) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url="about:blank")  # a change of the fragment is no navigation
        self.call("Page.navigate", url=address)

    def text(self) -> str:
        """Everything that can be read on the page."""
        return self.run("return words(document.body).join('\\n');")

    def wait(self, what: str, condition: Callable[[], Any]) -> Any:
        """The condition's value once it is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            time.sleep(0.3)
        raise AssertionError(f"{what}: not there after {PATIENCE} s. The page says: {self.text()}")

    def picture(self, clip: dict[str, float] | None = None) -> bytes:
        """PNG of what is visible, or of a part of it."""
        options = {} if clip is None else {"clip": clip}
        data = self.call("Page.captureScreenshot", format="png", **options)["data"]
        return base64.b64decode(data)


def find_browser() -> str:
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise AssertionError(
        f"No browser: none of {', '.join(NAMES)} is on the PATH. Install Chromium, or leave the "
        "tests marked 'browser' out, as a plain `pytest` does."
    )


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a fresh Chromium whose profile is in the folder."""
    command = [
        find_browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    port_file = folder / "DevToolsActivePort"
    with process(command, folder / "chromium.log") as running:
        wait_until(lambda: port_file.exists() and port_file.read_text().count("\n") > 0, running)
        port = port_file.read_text().split()[0]
        targets = json.loads(read(f"http://127.0.0.1:{port}/json"))
        address = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
        page = Page(address)
        try:
            yield page
        finally:
            page.socket.close()


@contextmanager
def tensorboard(logs: Path, folder: Path) -> Iterator[str]:
    """Address of a TensorBoard over the logs, on loopback and a free port."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs.name]
    command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    command += ["--samples_per_plugin", "images=100"]
    log = folder / "tensorboard.log"
    with process(command, log, logs.parent) as running:
        wait_until(lambda: "http://127.0.0.1:" in log.read_text(), running)
        port = log.read_text().split("http://127.0.0.1:")[1].split("/")[0]
        address = f"http://127.0.0.1:{port}"
        runs = f"{address}/data/runs"
        wait_until(lambda: len(json.loads(read(runs))) > 0, running)
        yield address


@contextmanager
def process(
    command: list[str], log: Path, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "BROWSER": "none"}
    with log.open("wb") as output:
        running = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_until(condition: Callable[[], bool], running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert running.poll() is None, f"{running.args!r} ended with {running.returncode}"
        assert time.monotonic() < end, f"{running.args!r}: not ready after {PATIENCE} s"
        time.sleep(0.2)


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode()

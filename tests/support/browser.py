"""A headless Chromium, driven by its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page; use it as a context manager."""

    def __init__(self, folder):
        self.folder = Path(folder)
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0")
        options += ("--disable-dev-shm-usage", "--disable-extensions", f"--user-data-dir={self.folder}")
        self._process = subprocess.Popen(
            [CHROMIUM, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(self.folder)},
        )
        try:
            port = self._until(self._port, 60)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as response:
                pages = json.load(response)
            page = next(p for p in pages if p["type"] == "page")
            self._stack = contextlib.ExitStack()
            self._socket = self._stack.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None))
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._ids = itertools.count(1)
        self.asked, self.problems = [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _port(self):
        path = self.folder / "DevToolsActivePort"
        text = path.read_text().split() if path.exists() else []
        return text[0] if len(text) > 1 else None

    @staticmethod
    def _until(what, seconds):
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.05)
        return found

    def call(self, method, **params):
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            about = message.get("params", {})
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(about["request"]["url"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(about["exceptionDetails"].get("exception", {}).get("description", "?"))
            elif message.get("method") == "Log.entryAdded" and about["entry"]["source"] == "security":
                self.problems.append(about["entry"]["text"])

    def open(self, url, width=1280, height=1400, dark=False):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)

    def evaluate(self, text):
        found = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, text, seconds=30):
        """Wait until something is true; while the page is not there yet, it is not."""
        return self._until(lambda: self.evaluate(f"(() => {{ try {{ return {text} }} catch {{ }} }})()"), seconds)

    def press(self, key, text=""):
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            code = {"Tab": 9, "Enter": 13}.get(key, 0)
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

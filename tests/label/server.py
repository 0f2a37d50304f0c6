"""MONAI Label's own server with its stock app `monaibundle`, and the REST calls that a viewer makes."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).with_name("stand_in")
WAIT_SECONDS = 300


class LabelServer:
    """A server on the loopback address; a context manager that ends it.

    Args:
        python: the interpreter of the environment that MONAI Label is installed in.
        app: folder of the app; the bundles lie in its `model` folder.
        studies: folder of the images.
        models: names of the bundles to serve.
        port: a free port.
    """

    def __init__(self, python: str, app: Path, studies: Path, models: str, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.log = app / "server.log"
        words = ["start_server", "--app", app, "--studies", studies, "--host", "127.0.0.1", "--port", port]
        conf = ["--conf", "models", models, "--conf", "zoo_source", "local", "--conf", "sam2", "false"]
        self.command = [python, "-m", "monailabel.main", *map(str, words), *conf]

    def __enter__(self) -> LabelServer:
        with open(self.log, "w") as log:
            environment = label_environment()
            cwd = self.log.parent
            self.process = subprocess.Popen(self.command, cwd=cwd, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.tail()}")
            try:
                self.get("info/")
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        self.__exit__()
        raise TimeoutError(f"the server does not answer:\n{self.tail()}")

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(30)

    def tail(self, lines: int = 60) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        return json.loads(self._ask(urllib.request.Request(f"{self.root}/{path}")))

    def post(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """POST of JSON, answered in JSON."""
        data = json.dumps(content or {}).encode()
        request = urllib.request.Request(f"{self.root}/{path}", data, {"Content-Type": "application/json"})
        return json.loads(self._ask(request))

    def infer(self, model: str, output: str, image: str | None = None, file: Path | None = None) -> bytes:
        """Segment an image of the studies by its id, or one that is sent along, as a viewer does both."""
        query = urllib.parse.urlencode({"output": output, **({"image": image} if image else {})})
        parts = [_part("params", json.dumps({"device": "cpu"}).encode())]
        if file is not None:
            parts.append(_part("file", file.read_bytes(), file.name))
        mark = uuid.uuid4().hex
        body = b"".join(f"--{mark}\r\n".encode() + part for part in parts) + f"--{mark}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        return self._ask(urllib.request.Request(f"{self.root}/infer/{model}?{query}", body, headers))

    def train(self, model: str, **options: Any) -> list[str]:
        """Train in the background, as a viewer asks for it, and wait for the end; the last lines of its output."""
        self.post(f"train/{model}", {"multi_gpu": False, "device": "cpu", **options})
        while True:
            time.sleep(2)
            task = self.get("train/")
            if task["status"] in ("DONE", "ERROR"):
                if task["status"] == "ERROR":
                    raise RuntimeError("\n".join(task["details"]) + "\n" + self.tail())
                return list(task["details"])

    def _ask(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{request.full_url}: {error.code} {error.read().decode()}\n{self.tail()}") from None


def _part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return f'Content-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def label_environment() -> dict[str, str]:
    """This process's variables, without this repository on the path: a served bundle carries its package."""
    return {**os.environ, "PYTHONPATH": str(STAND_IN), "OMP_NUM_THREADS": "1"}

"""Commands as a user types them, on copies of small data, and what they left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

TORTURE = Path(__file__).resolve().parent
REPOSITORY = TORTURE.parents[1]
MED3D = "med3d_ext"
MONAI = "monai.bundle"
ERROR_CODES = {MED3D: 2, MONAI: 1}  # of a mistake of the user's


@dataclass(repr=False)
class Done:
    """How a command ended.

    Args:
        code: its exit code, minus the signal that killed it.
        out: stdout.
        err: stderr.
        command: what was typed.
    """

    code: int
    out: str
    err: str
    command: str = ""

    @property
    def last(self) -> str:
        """Last line of stderr, else of stdout: what the user looks at."""
        lines = [line for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def __repr__(self) -> str:
        head = f"`{self.command}` -> {self.code}: {self.last[:300]}"
        return f"{head}\n--- stdout\n{self.out[-1500:]}\n--- stderr\n{self.err[-3000:]}"


@dataclass
class Running:
    """A command under way."""

    shell: Shell
    pid: int
    output: str
    command: str

    def wait(self, seconds: float = 300) -> Done:
        """Until it ends; after ``seconds`` it is killed and the test fails."""
        answer = self.shell.ask({"wait": {"pid": self.pid, "seconds": seconds}})
        if answer["code"] is None:
            self.kill()
            self.shell.ask({"wait": {"pid": self.pid, "seconds": 10}})
            raise TimeoutError(f"still running after {seconds} s: `{self.command}`\n{self.text()[-3000:]}")
        return Done(answer["code"], *self._texts(), self.command)

    def is_running(self) -> bool:
        """Whether it has not ended; the template process is its parent and alone may wait for it."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command alone, or SIGKILL to it and all that it started."""
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)

    def text(self) -> str:
        """What it has printed so far."""
        return "\n".join(self._texts())

    def _texts(self) -> tuple[str, str]:
        out, err = (Path(self.output + end) for end in (".out", ".err"))
        return tuple(path.read_text(errors="replace") if path.exists() else "" for path in (out, err))  # type: ignore[return-value]


@dataclass
class Shell:
    """Runs commands in forks of one process that has imported MONAI, see :mod:`template`."""

    process: subprocess.Popen = field(init=False)
    logs: tempfile.TemporaryDirectory = field(default_factory=lambda: tempfile.TemporaryDirectory(prefix="torture-"))
    count: int = 0

    def __post_init__(self) -> None:
        env = {**environment(), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TORTURE / "template.py")]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=env, start_new_session=True)
        self.answer()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to the template process."""
        assert self.process.poll() is None, f"the template process has ended with {self.process.returncode}"
        self.process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next answer."""
        return dict(json.loads(self.process.stdout.readline()))  # type: ignore[union-attr]

    def start(self, module: str, *words: Any, folder: Path, before: str = "") -> Running:
        """Start ``python -m MODULE WORDS`` in ``folder``; ``before`` is Python that brings a fault about."""
        self.count += 1
        output = str(Path(self.logs.name, str(self.count)))
        request = {
            "module": module,
            "words": [str(word) for word in words],
            "folder": str(folder),
            "output": output,
            "env": environment(),
            "before": before,
        }
        command = " ".join(["python", "-m", module, *(str(word) for word in words)])
        return Running(self, self.ask({"start": request})["pid"], output, command)

    def run(self, module: str, *words: Any, folder: Path, seconds: float = 300, **options: Any) -> Done:
        """:meth:`start` and wait."""
        return self.start(module, *words, folder=folder, **options).wait(seconds)

    def close(self) -> None:
        """End the template process."""
        self.process.kill()
        self.process.wait()
        self.logs.cleanup()


def environment() -> dict[str, str]:
    """Of every command: this checkout's package, one thread, nothing of a GPU."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def typed(module: str, *words: Any, folder: Path, seconds: float = 300) -> Done:
    """The command really started, in a new interpreter."""
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=seconds)
    return Done(done.returncode, done.stdout, done.stderr, command=" ".join(command))


def tree(folder: Path, ignored: Sequence[str] = ()) -> dict[str, str]:
    """Digest of every file below ``folder``, and the folders; without names that hold one of ``ignored``."""
    return {name: text for name, text in _entries(folder) if not any(part in name for part in ignored)}


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield name, os.readlink(path)
        elif path.is_file():
            state = path.stat()
            yield name, _digest(path, state.st_ino, state.st_size, state.st_mtime_ns)
        else:
            yield name, "folder"


@cache
def _digest(path: Path, *state: int) -> str:
    """Of a file in one state; weights of many MB are read once before and not again after, unless written to."""
    return sha256(path.read_bytes()).hexdigest() if os.access(path, os.R_OK) else "unreadable"


def config(bundle: str | Path, *names: str) -> str:
    """``--config_file`` of a bundle's configs."""
    folder = (REPOSITORY / "bundles" / bundle if isinstance(bundle, str) else bundle) / "configs"
    files = [str(folder / f"{name}.json") for name in names or ("train",)]
    return files[0] if len(files) == 1 else str(files).replace(" ", "")


def train_words(bundle: str | Path, data: Path, output: Path, epochs: int = 2) -> list[object]:
    """The shortest training of a bundle into a folder of its own."""
    words: list[object] = ["run", "--config_file", config(bundle), "--dataset_dir", data, "--epochs", epochs]
    words += ["--spatial_size", "[32,32,32]", "--init", "scratch", "--batch_size", 1, "--val_interval", 1]
    return words + ["--output_dir", output / "eval", "--ckpt_dir", output / "models"]


def refused(done: Done, *names: str, code: int | None = None) -> None:
    """A sentence that names what is at fault, the right exit code, and no traceback."""
    assert "Traceback" not in done.err + done.out, done
    assert done.code > 0 if code is None else done.code == code, done
    for name in names:
        assert name in done.err, f"the message does not name {name!r}: {done}"


def link(source: str, target: str) -> None:
    """A copy; of weights a hard link, which whoever changes them must break."""
    (os.link if source.endswith(".pt") else shutil.copy2)(source, target)

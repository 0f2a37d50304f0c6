"""Faults inside a command, by its audit events: files opened, moved and removed, wherever the code that does so lies.

A test passes a call of one of these as text to :meth:`commands.Shell.start`; the forked command makes it first.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

WRITES = ("open", "os.rename", "os.remove", "os.mkdir")


def moment(event: str, arguments: tuple, root: str) -> tuple[str, str] | None:
    """What changes a file below ``root``, as event and file name without what differs from run to run; else None."""
    if event not in WRITES or not arguments:
        return None
    if event == "open" and not _is_write(arguments):
        return None
    if event != "open" and arguments[-1] != -1:
        return None  # relative to an open folder: a scratch folder that is being removed
    path = arguments[1] if event == "os.rename" else arguments[0]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str | os.PathLike):
        return None
    path = os.path.abspath(path)
    if not path.startswith(root + os.sep) or "tfevents" in path:
        return None
    return event, re.sub(
        r"[0-9a-f]{16,}|\d{3,}|(?<=[.-])[a-z0-9_]{8}$|(?<=^tmp)[a-z0-9_]{8}$", "N", os.path.basename(path)
    )


def _is_write(arguments: tuple) -> bool:
    _, mode, flags = (*arguments, None, None)[:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def record(root: str, log: str) -> None:
    """Write a line for each moment."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, arguments: tuple) -> None:
        if found := moment(event, arguments, root):
            os.write(descriptor, f"{found[0]} {found[1]}\n".encode())

    sys.addaudithook(hook)


def _at(root: str, wanted: tuple[str, str], count: int, action: Any) -> None:
    seen = Counter[tuple[str, str]]()

    def hook(event: str, arguments: tuple) -> None:
        if (found := moment(event, arguments, root)) == wanted:
            seen[found] += 1
            if seen[found] == count:
                action()

    sys.addaudithook(hook)


def kill_at(root: str, event: str, name: str, count: int) -> None:
    """SIGKILL right before the ``count``-th moment of this kind."""
    _at(root, (event, name), count, lambda: os.kill(os.getpid(), signal.SIGKILL))


def tear_at(root: str, name: str, count: int, size: int) -> None:
    """Let the kernel kill the process when it has written ``size`` bytes of the file that it opens then."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would dump core otherwise
    _at(root, ("open", name), count, limit)


def fail_at(root: str, event: str, name: str, count: int, number: int) -> None:
    """An OSError, such as ENOSPC, in place of the ``count``-th moment of this kind and of each write after it."""
    seen = Counter[tuple[str, str]]()
    failing: list[bool] = []

    def hook(happened: str, arguments: tuple) -> None:
        found = moment(happened, arguments, root)
        if found == (event, name):
            seen[found] += 1
            if seen[found] == count:
                failing.append(True)
        if failing and found and happened in ("open", "os.mkdir", "os.rename"):
            raise OSError(number, os.strerror(number), str(arguments[0]))

    sys.addaudithook(hook)


def offline() -> None:
    """No connection and no name look-up goes out; the attempt ends the process with code 99.

    Sockets with a path for an address are this machine's own: loader workers talk through them.
    """

    def hook(event: str, arguments: tuple) -> None:
        goes_out = event in ("socket.connect", "socket.bind") and not isinstance(arguments[1], str | bytes)
        if goes_out or event in ("socket.getaddrinfo", "socket.gethostbyname"):
            print(f"NETWORK {event} {arguments[1:]}", file=sys.stderr, flush=True)
            os._exit(99)

    sys.addaudithook(hook)


def out_of_memory(voxels: int = 0) -> None:
    """A GPU that is out of memory in every 3D convolution of an image of more than ``voxels``."""
    import torch

    forward = torch.nn.Conv3d.forward

    def fail(self: torch.nn.Conv3d, image: torch.Tensor) -> torch.Tensor:
        if image.shape[1] == 1 and image[0].numel() > voxels:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 8.00 GiB")
        return forward(self, image)

    torch.nn.Conv3d.forward = fail  # type: ignore[method-assign]


def workers_die(seconds: float = 0.0) -> None:
    """Each worker process is killed ``seconds`` after it has begun, as the kernel does when memory runs out."""

    def die() -> None:
        threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

    os.register_at_fork(after_in_child=die)


def small_shared_memory(size: str = "64k") -> None:
    """A /dev/shm of ``size`` for this process alone; exit code 77 where that may not be made."""
    import ctypes
    import subprocess

    if ctypes.CDLL(None, use_errno=True).unshare(0x00020000) != 0:  # CLONE_NEWNS
        os._exit(77)
    for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]):
        if subprocess.run(["mount", *words], capture_output=True).returncode != 0:
            os._exit(77)


def moments(log: Path) -> Counter[tuple[str, str]]:
    """How often each moment of :func:`record` came."""
    return Counter(tuple(line.split(" ", 1)) for line in log.read_text().splitlines())  # type: ignore[misc]

"""A process that has imported MONAI and the package forks itself for each command: tenths of a second instead of eight.

Requests come as JSON lines on stdin and are answered on stdout, see :mod:`commands`. A child does what
``python -m MODULE WORDS`` does: same ``sys.argv``, ``sys.path``, exit codes and messages, which a test compares with
really started ones.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import pkgutil
import runpy
import signal
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    preload()
    answers.write("{}\n")
    for line in sys.stdin:
        request = json.loads(line)
        answer = wait(**request["wait"]) if "wait" in request else start(request["start"])
        answers.write(json.dumps(answer) + "\n")


def preload() -> None:
    """What commands import, third parties' first; ``__main__`` modules are left to the commands."""
    import fire  # noqa: F401
    import ignite.handlers  # noqa: F401
    import itk
    import matplotlib.figure  # noqa: F401
    import monai.bundle
    import monai.engines
    import monai.handlers
    import monai.inferers
    import monai.losses
    import monai.transforms  # noqa: F401
    import nibabel  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import torch
    import torch.utils.tensorboard  # noqa: F401

    import med3d_ext

    for name in ("GDCMImageIO", "ImageIOFactory", "CommonEnums", "imread", "array_view_from_image"):
        getattr(itk, name)  # loads itk's modules
    for module in pkgutil.walk_packages(med3d_ext.__path__, "med3d_ext."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # for power failures: a kill loses no written byte
    torch.set_num_threads(1)  # a fork inherits no thread: OpenMP's would be missed
    gc.collect()
    gc.freeze()  # children do not walk, and so copy, what they inherit


def start(request: dict[str, Any]) -> dict[str, int]:
    """Fork a child that runs the command."""
    pid = os.fork()
    if pid == 0:
        os._exit(child(**request))
    return {"pid": pid}


def wait(pid: int, seconds: float) -> dict[str, Any]:
    """Exit code of a child as ``subprocess`` states it; none while it runs."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {"code": os.waitstatus_to_exitcode(status)}
        if time.monotonic() >= deadline:
            return {"code": None}
        time.sleep(0.005)


def child(module: str, words: list[str], folder: str, output: str, env: dict[str, str], before: str) -> int:
    """What an interpreter does from ``-m MODULE`` to its exit code."""
    os.setsid()
    os.chdir(folder)
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, f"{output}.out", None), (2, f"{output}.err", None)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if flags is None else flags, 0o644), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with it ignored
    sys.path[0] = folder
    sys.argv = [module, *words]
    code: Any = 0
    try:
        if before:
            exec(before, {})  # a fault of the test's own, see faults.py
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = code or 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return (code or 0) & 0xFF


if __name__ == "__main__":
    sys.path.insert(
        1, os.path.dirname(os.path.abspath(__file__))
    )  # its own place is given away to the command's folder
    main()

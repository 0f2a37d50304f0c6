"""What a user can repair is said in one line: the message of an InputError, however deeply it was wrapped."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import PurePath
from types import TracebackType
from typing import Any

from med3d_ext.errors import InputError

# How a worker process of a data loader passes its exception on: as the text of its traceback.
_IN_TRACEBACK = re.compile(r"^(?:[\w.]+\.)?InputError: (.+)$", re.MULTILINE)
_COMMANDS = (("monai", "bundle", "__main__.py"), ("med3d_ext", "__main__.py"), ("med3d_ext",), ("med3d-ext",))


def one_line_errors() -> None:
    """From here on, an uncaught :class:`~med3d_ext.errors.InputError` prints its message alone, on stderr.

    The exit code stays 1 and every other exception keeps its traceback. Log entries of level ERROR written while an
    InputError is on its way out (ignite's and MONAI's, with traceback) are dropped. Does nothing unless this
    process is a command, ``python -m monai.bundle`` or ``med3d_ext``: a server that loads a bundle keeps its own.
    """
    if not is_command() or getattr(sys.excepthook, "one_line", False):
        return
    sys.excepthook = _hook(sys.excepthook)
    logging.setLogRecordFactory(_record_factory(logging.getLogRecordFactory()))


def is_command() -> bool:
    """Whether this process is ``python -m monai.bundle ...`` or ``med3d_ext ...``."""
    parts = PurePath(sys.argv[0] if sys.argv else "").parts
    return any(parts[-len(command) :] == command for command in _COMMANDS)


def input_error_message(error: BaseException | None) -> str | None:
    """The message of the InputError behind ``error``; None where there is none.

    MONAI wraps what goes wrong in components and transforms, and worker processes pass exceptions on as text.
    """
    for cause in _chain(error):
        found = _IN_TRACEBACK.findall(str(cause)) if "Caught " in str(cause) else []
        if found:
            return str(found[-1])
        if isinstance(cause, InputError):
            return str(cause)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _hook(before: Any) -> Any:
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = input_error_message(error)
        if message is None:
            before(kind, error, traceback)
            return
        if int(os.environ.get("RANK", "0")) > 0:
            # torchrun ends this process soon after rank 0 stops on the same error; alone, it speaks a little later.
            time.sleep(10)
        sys.stdout.flush()
        # On a terminal a progress bar may stand in the line.
        print("\n" * sys.stderr.isatty() + message, file=sys.stderr, flush=True)

    hook.one_line = True  # type: ignore[attr-defined]
    return hook


def _record_factory(before: Any) -> Any:
    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = before(*args, **kwargs)
        if record.levelno >= logging.ERROR and input_error_message(sys.exc_info()[1]) is not None:
            record.levelno = -1  # below every handler's level
        return record

    return factory

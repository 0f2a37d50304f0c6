"""What a user can repair is said in one line, however deeply the error was wrapped; a stop has its exit code."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import TracebackType
from typing import Any

from med3d_ext.errors import InputError

# How a worker process of a data loader passes its exception on: as the text of its traceback.
_IN_TRACEBACK = re.compile(r"^(?:[\w.]+\.)?InputError: (.+)$", re.MULTILINE)
# How MONAI wraps what goes wrong while it builds a config.
_NOT_BUILT = re.compile(
    r"Failed to (?:instantiate component|evaluate) (?:ConfigExpression: )?\s*('[^']+'|[\s\S]+?)(?: with keywords|$)"
)
_NOT_FOUND = ("Cannot locate class", "is not defined in the config", "detected circular references")
_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*(killed|exited unexpectedly)")
_CHOOSE = "check the path and its permissions, or choose another"
_OF_FILES = {
    errno.ENOSPC: "free space on the disk, or choose a folder on another",
    errno.EDQUOT: "free space in your quota, or choose a folder on another disk",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise the number of open files (ulimit -n), or lower num_workers",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EIO), _CHOOSE),
}
_LOGGING_ERROR = logging.Handler.handleError
_COMMANDS = (("monai", "bundle", "__main__.py"), ("med3d_ext", "__main__.py"), ("med3d_ext",), ("med3d-ext",))


class Terminated(KeyboardInterrupt):
    """SIGTERM: the run ends as after Ctrl-C, so that its record and its files are whole."""


def one_line_errors() -> None:
    """From here on, an uncaught error that a user can repair is one line on stderr, see :func:`user_message`.

    The exit code is 1, 130 after Ctrl-C and 143 after SIGTERM; any other exception keeps its traceback, and with
    ``--debug`` every one. Log entries of level ERROR written while such an error is on its way out (ignite's and
    MONAI's, with traceback) are dropped, and so is output to a closed pipe. Does nothing unless this process is a
    command, ``python -m monai.bundle`` or ``med3d_ext``: a server that loads a bundle keeps its own.
    """
    if not is_command() or getattr(sys.excepthook, "one_line", False):
        return
    previous_hook, previous_factory = sys.excepthook, logging.getLogRecordFactory()

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = None if is_debug() else user_message(error)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if isinstance(error, BrokenPipeError):
            _close_pipe(1)  # nobody reads on
        elif message is None:
            previous_hook(kind, error, traceback)
        else:
            _say(message, error)
        if isinstance(error, KeyboardInterrupt):
            # As the shell expects of a process that was stopped: its exit code is 130 or 143.
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = previous_factory(*args, **kwargs)
        if record.levelno >= logging.ERROR and not is_debug() and user_message(sys.exc_info()[1]) is not None:
            record.levelno = -1  # below every handler's level
        return record

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    hook.one_line = True  # type: ignore[attr-defined]
    sys.excepthook = hook
    logging.setLogRecordFactory(factory)
    logging.Handler.handleError = _handle_error  # type: ignore[method-assign,assignment]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)


def is_command() -> bool:
    """Whether this process is ``python -m monai.bundle ...`` or ``med3d_ext ...``."""
    parts = PurePath(sys.argv[0] if sys.argv else "").parts
    return any(parts[-len(command) :] == command for command in _COMMANDS)


def input_error_message(error: BaseException | None) -> str | None:
    """The message of the InputError behind ``error``; None if there is none.

    MONAI wraps what goes wrong in components and transforms, and worker processes pass exceptions on as text.
    """
    for cause in _chain(error):
        found = _IN_TRACEBACK.findall(str(cause)) if "Caught " in str(cause) else []
        if found:
            return str(found[-1])
        if isinstance(cause, InputError):
            return str(cause)
    return None


@contextmanager
def heard_warnings(alone: bool = False, any_thread: bool = True) -> Iterator[list[str]]:
    """The warnings that this package's parts log meanwhile, each once.

    Args:
        alone: nobody else hears them.
        any_thread: False takes those of this thread only.
    """
    heard: list[str] = []
    package, here = logging.getLogger("med3d_ext"), threading.get_ident()

    def note(record: logging.LogRecord) -> None:
        if record.getMessage() not in heard and (any_thread or record.thread == here):
            heard.append(record.getMessage())

    listener = logging.Handler(logging.WARNING)
    listener.emit = note  # type: ignore[method-assign]
    before, propagates = package.handlers, package.propagate
    if alone:
        package.handlers, package.propagate = [], False
    package.addHandler(listener)
    try:
        yield heard
    finally:
        package.removeHandler(listener)  # nothing else is put back that another thread may have changed meanwhile
        if alone:
            package.handlers, package.propagate = before, propagates


def user_message(error: BaseException | None) -> str | None:
    """One sentence for an error that a user can repair; None for any other, a fault of the program.

    An InputError, the disk, the memory, a stop, and what cannot be built from the config.
    """
    message = input_error_message(error)
    if message is not None or error is None:
        return message
    if isinstance(error, KeyboardInterrupt):
        word = "Terminated" if isinstance(error, Terminated) else "Interrupted"
        is_run = PurePath(sys.argv[0]).parts[-2:-1] == ("bundle",)
        return word + "; the same command resumes a training after its last complete epoch" * is_run + "."
    chain = list(_chain(error))
    for cause in chain:
        text = str(cause)
        if isinstance(cause, OSError) and cause.errno in _OF_FILES:
            what = f"'{cause.filename}'" if cause.filename else "A file"
            return f"{what} cannot be used ({cause.strerror}); {_OF_FILES[cause.errno]}."
        if isinstance(cause, MemoryError) or "can't allocate memory" in text:
            return "RAM is full; lower batch_size, spatial_size or num_workers."
        if type(cause).__name__ == "OutOfMemoryError":
            return "GPU memory is full; lower batch_size or spatial_size, or choose a smaller network_name."
        if "PytorchStreamWriter" in text or "unexpected pos" in text:
            return f"A file cannot be written ({text.splitlines()[0]}); free space on the disk."
        if _LOST_WORKER.search(text):
            return "A worker process was killed, most often for lack of RAM or /dev/shm; lower num_workers."
    lines = str(chain[-1]).strip().splitlines() or [""]
    fault = f"{type(chain[-1]).__name__}: {lines[0].rstrip('.;')}"
    repair = "correct it, or see more with --debug."
    for cause in reversed(chain):
        found = _NOT_BUILT.search(str(cause))
        if found and not found[1].rstrip('"').endswith(".run()"):  # what was built has failed in the run
            return f"The config's {found[1]} cannot be built ({fault}); {repair}"
    for cause in chain:
        if any(words in str(cause) for words in _NOT_FOUND):
            return f"The config cannot be read ({str(cause).rstrip('.;')}); {repair}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def is_debug() -> bool:
    """Whether tracebacks were asked for: ``--debug`` is a word of the command."""
    return any(word.partition("=")[0] == "--debug" for word in sys.argv[1:])


def _say(message: str, error: BaseException) -> None:
    if int(os.environ.get("RANK", "0")) > 0:
        if isinstance(error, KeyboardInterrupt):
            return
        # torchrun ends this process soon after rank 0 stops on the same error; alone, it speaks a little later.
        time.sleep(10)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        # On a terminal a progress bar may be in the line.
        print("\n" * sys.stderr.isatty() + message, file=sys.stderr, flush=True)


def _handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """A training does not end because nobody reads its log any more."""
    stream = getattr(handler, "stream", None)
    if isinstance(sys.exc_info()[1], BrokenPipeError) and stream in (sys.stdout, sys.stderr):
        _close_pipe(stream.fileno())
    else:
        _LOGGING_ERROR(handler, record)


def _close_pipe(descriptor: int) -> None:
    """Send what is written to ``descriptor`` from now on nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

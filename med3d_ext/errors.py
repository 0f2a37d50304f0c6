"""The one exception for what a user can repair: a file, a folder, a key, an option."""

from __future__ import annotations


class InputError(ValueError):
    """Something that a user gave is wrong.

    The message is one sentence that names the file or key, the fault and the repair. Commands print it alone, without a
    traceback, and end with a non-zero exit code (see :func:`med3d_ext.run.start.one_line_errors`).
    """

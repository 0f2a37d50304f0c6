"""The one exception for what a user can repair: a file, a folder, a key, an option."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """Something that a user gave is wrong: one sentence that names the file or key, the fault and the repair.

    Commands print it alone and end with a non-zero exit code (see :func:`med3d_ext.run.start.one_line_errors`).
    """


class FaultyCases(InputError):
    """Cases of a data set that were refused: each of ``sentences`` in a line, and a last line with the repair."""

    def __init__(self, sentences: Sequence[str], total: int) -> None:
        self.sentences = list(sentences)
        last = (
            f"{len(sentences)} of {total} cases are faulty and nothing was written; repair them, or leave them out by "
            "--skip_bad (of prepare and evaluate)."
        )
        super().__init__("\n".join([*sentences, last] if len(sentences) > 1 else sentences))


class Faults:
    """Collects what is wrong with single cases in ``sentences``, so that all of it is said at once.

    Args:
        skip_bad: continue without the faulty cases instead of refusing.
    """

    def __init__(self, skip_bad: bool = False) -> None:
        self.skip_bad = skip_bad
        self.sentences: list[str] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Note an :class:`InputError` of the block; what follows the block has to do without its result."""
        try:
            yield
        except InputError as error:
            self.sentences.append(str(error))

    def settle(self, total: int, logger: logging.Logger) -> None:
        """Log each case that is left out; FaultyCases if ``skip_bad`` is off, or no case is left."""
        if self.sentences and (not self.skip_bad or len(self.sentences) >= total):
            raise FaultyCases(self.sentences, total)
        for sentence in self.sentences:
            logger.warning(f"left out: {sentence}")

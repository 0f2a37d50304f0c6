"""Which epoch's weights are kept: the best validation, where there are cases enough to tell."""

from __future__ import annotations

from collections.abc import Sized


class BestEpoch:
    """``metric_cmp_fn`` of MONAI's Evaluator: the epoch with the highest figure, of equal ones the latest.

    With fewer than ``minimum`` cases it is the latest epoch, which a schedule that ends at zero makes the likely best:
    the figure of a dozen cases jumps from epoch to epoch, and its maximum picks a lucky one in the middle of the
    schedule.

    Args:
        cases: the validation cases.
        minimum: number of cases from which on the figure chooses. Defaults to 30, where an AUC has a standard error of
            about 0.08.
    """

    def __init__(self, cases: Sized, minimum: int = 30) -> None:
        self.chooses = len(cases) >= minimum

    def __call__(self, current: float, best: float) -> bool:
        """Whether an epoch with the figure ``current`` takes the place of the one with ``best``."""
        return not self.chooses or current >= best

from __future__ import annotations

import pytest

from med3d_ext.metrics import BestEpoch


def chosen(figures: list[float], cases: int, **options) -> int:
    """The epoch that is kept in the end, from 1 on, as MONAI's evaluator keeps it."""
    better = BestEpoch(range(cases), **options)
    best, epoch = figures[0], 1
    for number, figure in enumerate(figures[1:], start=2):
        if better(figure, best):
            best, epoch = figure, number
    return epoch


@pytest.mark.parametrize(("cases", "epoch"), [(30, 2), (29, 5), (1, 5)])
def test_few_cases_do_not_choose(cases, epoch):
    assert chosen([0.5, 0.9, 0.7, 0.8, 0.8], cases) == epoch


def test_of_equal_epochs_the_latest_is_kept():
    assert chosen([0.5, 0.9, 0.9, 0.8], cases=30) == 3
    assert chosen([0.5, 0.9, 0.7], cases=4, minimum=4) == 2

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from med3d_ext.metrics.classification import auc
from med3d_ext.metrics.classification_plots import draw_reliability, draw_roc, roc_points, wilson_interval


def drawn(n: int = 60) -> tuple[list[int], list[float]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    return labels.tolist(), np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1).tolist()


def test_the_area_under_the_drawn_curve_is_the_auc():
    labels, probabilities = (np.array(values) for values in drawn())
    false, true = roc_points(labels, probabilities.round(1))  # with ties
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    area = float(((true[1:] + true[:-1]) / 2 * np.diff(false)).sum())
    assert area == pytest.approx(float(auc(labels, probabilities.round(1))))


def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1():
    assert wilson_interval(0.0, 1) == (0.0, pytest.approx(0.793, abs=1e-3))
    assert wilson_interval(1.0, 10)[1] == 1.0
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))


@pytest.mark.parametrize("cases", [1, 60])
def test_both_pictures_are_drawn_also_of_a_single_case(cases, tmp_path):
    labels, probabilities = drawn(cases)
    draw_reliability(tmp_path / "reliability.png", labels, probabilities)
    draw_roc(tmp_path / "roc.png", {"network": (labels, probabilities), "size only": ([], [])})
    for name in ("reliability.png", "roc.png"):
        picture = imread(tmp_path / name)
        assert picture.shape[:2] == (550, 550) and picture[..., :3].std() > 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"reliability.png", "roc.png"}

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from med3d_ext.metrics.classification import auc
from med3d_ext.metrics.size_baseline import SizeBaseline


def drawn(slope: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Volumes of a log-normal spread and labels that follow a logistic law of their logarithm."""
    rng = np.random.default_rng(0)
    logarithms = rng.normal(6.0, 1.5, n)
    return np.exp(logarithms), (rng.random(n) < expit(0.5 + slope * (logarithms - 6.0))).astype(int)


def test_the_fit_finds_the_law_that_drew_the_labels():
    volumes, labels = drawn(slope=1.2)
    baseline = SizeBaseline.fit(volumes, labels)
    asked = np.exp([4.0, 6.0, 8.0])
    np.testing.assert_allclose(baseline.probabilities(asked), expit(0.5 + 1.2 * np.array([-2.0, 0.0, 2.0])), atol=0.05)
    assert baseline.n == 4000


def test_it_is_calibrated_on_what_it_was_fitted_to_and_orders_by_size():
    volumes, labels = drawn(slope=0.8)
    baseline = SizeBaseline.fit(volumes, labels)
    assert baseline.probabilities(volumes).mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert auc(labels, baseline.probabilities(volumes)) == pytest.approx(float(auc(labels, volumes)), abs=1e-6)


def test_smaller_malignant_nodules_turn_the_slope():
    volumes, labels = drawn(slope=1.0)
    assert SizeBaseline.fit(volumes, 1 - labels).slope < 0


def test_sizes_without_meaning_give_the_frequency_of_the_class():
    baseline = SizeBaseline.fit([5.0] * 8, [0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(baseline.probabilities([1.0, 5.0]), 0.75, atol=1e-3)


def test_perfectly_separated_sizes_give_a_finite_slope():
    baseline = SizeBaseline.fit([1.0, 2.0, 30.0, 40.0], [0, 0, 1, 1])
    assert np.isfinite(baseline.slope) and baseline.slope < 20
    assert (baseline.probabilities([1.0, 40.0]) > 0.5).tolist() == [False, True]

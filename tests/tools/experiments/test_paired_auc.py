"""AUC and DeLong's test against scipy's Mann-Whitney, counting by hand, and what must hold under chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from med3d_ext.tools.experiments.figures import describe_auc, pair_scores, paired_auc_test


def test_the_mean_of_the_pairs_is_the_auc_of_mann_and_whitney() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 40)
    scores = generator.integers(0, 8, 40) / 8  # with ties
    expected = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic / (labels.sum() * (1 - labels).sum())
    assert pair_scores(labels, [scores]).mean() == pytest.approx(expected)


def test_the_pairs_of_several_trainings_are_their_mean() -> None:
    labels, first, second = [1, 0, 1], [0.9, 0.5, 0.2], [0.5, 0.5, 0.6]
    np.testing.assert_array_equal(pair_scores(labels, [first, second]), [[0.75], [0.5]])


def test_a_perfect_and_a_constant_classifier_are_described() -> None:
    labels = [0, 0, 1, 1, 1]
    assert describe_auc(pair_scores(labels, [[0, 0.1, 0.9, 0.8, 0.7]])) == {
        "n": 5,
        "mean": 1.0,
        "interval_95": [1.0, 1.0],
        "undefined": 0,
    }
    assert describe_auc(pair_scores(labels, [[0.5] * 5]))["mean"] == 0.5


def test_cases_of_one_class_have_no_auc() -> None:
    pairs = pair_scores([1, 1], [[0.1, 0.2]])
    assert describe_auc(pairs) == {"n": 2, "mean": None, "interval_95": None, "undefined": 2}
    test = paired_auc_test(pairs, pairs)
    assert (test["mean_difference"], test["interval_95"], test["p_value"]) == (None, None, None)
    assert "fewer than two" in test["note"]


def test_delongs_variance_is_the_one_counted_by_hand() -> None:
    # two positive and two negative cases; the first run orders one pair wrong, the other is undecided everywhere
    pairs, others = np.array([[1.0, 1.0], [1.0, 0.0]]), np.full((2, 2), 0.5)
    test = paired_auc_test(pairs, others)
    assert test["mean_difference"] == 0.25
    # means over the negatives: 0.5, 0; over the positives: 0.5, 0. Variance of each: 0.125, by two cases: 0.0625
    assert test["p_value"] == pytest.approx(2 * (1 - _normal(0.25 / np.sqrt(0.125))))


def _normal(z: float) -> float:
    from math import erf, sqrt

    return (1 + erf(z / sqrt(2))) / 2


def test_equal_runs_do_not_differ_and_opposite_ones_do() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(60) % 2
    good = labels + generator.normal(0, 0.5, 60)
    pairs = pair_scores(labels, [good])
    same, worse = (
        paired_auc_test(pairs, pairs),
        paired_auc_test(pairs, pair_scores(labels, [generator.normal(size=60)])),
    )
    assert (same["p_value"], same["mean_difference"], same["interval_95"], same["differing"]) == (1.0, 0.0, [0, 0], 0)
    assert worse["p_value"] < 0.001
    assert 0 < worse["interval_95"][0] < worse["mean_difference"] < worse["interval_95"][1]


def test_under_chance_five_percent_of_the_tests_are_below_five_percent() -> None:
    generator = np.random.default_rng(2)
    labels = np.arange(50) % 2
    runs = [[pair_scores(labels, [labels + generator.normal(0, 1, 50)]) for _ in range(2)] for _ in range(400)]
    p_values = [paired_auc_test(*pair, resamples=2)["p_value"] for pair in runs]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_runs_on_other_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        paired_auc_test(np.zeros((2, 3)), np.zeros((3, 2)))

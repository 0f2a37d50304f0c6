"""Figures of two classes against MONAI's, scikit-like definitions by hand, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc

from med3d_ext.metrics.classification import (
    MEASURES,
    accuracy,
    auc,
    brier,
    calibration_error,
    measure_classes,
    sensitivity,
    specificity,
)

LABELS = np.array([0, 0, 0, 1, 1])
PROBABILITIES = np.array([0.1, 0.5, 0.4, 0.9, 0.3])


def drawn(seed: int, n: int = 40, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1).round(digits)


def test_each_measure_is_what_is_computed_by_hand():
    assert accuracy(LABELS, PROBABILITIES) == pytest.approx(3 / 5)  # 0.5 counts as malignant
    assert sensitivity(LABELS, PROBABILITIES) == pytest.approx(1 / 2)
    assert specificity(LABELS, PROBABILITIES) == pytest.approx(2 / 3)
    assert brier(LABELS, PROBABILITIES) == pytest.approx((0.01 + 0.25 + 0.16 + 0.01 + 0.49) / 5)
    assert auc(LABELS, PROBABILITIES) == pytest.approx((3 + 1) / 6)  # 0.9 beats three, 0.3 beats one


@pytest.mark.parametrize("seed", range(5))
def test_the_auc_is_monais_also_with_ties(seed):
    labels, probabilities = drawn(seed, digits=1)
    theirs = compute_roc_auc(torch.as_tensor(probabilities), torch.as_tensor(labels))
    assert auc(labels, probabilities) == pytest.approx(theirs)


def test_the_auc_is_the_share_of_pairs_in_order_and_knows_only_the_order():
    labels, probabilities = drawn(7)
    pairs = probabilities[labels == 1][:, None] - probabilities[labels == 0][None]
    assert auc(labels, probabilities) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert auc(labels, probabilities**3) == pytest.approx(float(auc(labels, probabilities)))
    assert auc(1 - labels, probabilities) == pytest.approx(1 - float(auc(labels, probabilities)))


def test_one_class_has_no_auc_and_no_share_of_the_other():
    ones = np.ones(4, int)
    assert np.isnan(auc(ones, np.linspace(0, 1, 4))) and np.isnan(specificity(ones, np.zeros(4)))
    facts = measure_classes(ones.tolist(), [0.1, 0.6, 0.7, 0.9])
    assert facts["auc"] == {"n": 4, "mean": None, "interval_95": None}
    assert facts["specificity"] == {"n": 0, "mean": None, "interval_95": None}
    assert facts["sensitivity"]["mean"] == 0.75


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    labels = np.array([0, 1, 1, 1])
    probabilities = np.array([0.22, 0.28, 0.91, 1.0])  # bins 2 and 9: gaps |0.25 - 0.5| and |0.955 - 1|
    assert calibration_error(labels, probabilities) == pytest.approx(0.5 * 0.25 + 0.5 * 0.045)
    assert calibration_error(np.array([0, 1]), np.array([0.0, 1.0])) == 0


def test_every_measure_takes_many_samples_at_once():
    stacked = [np.stack(rows) for rows in zip(*(drawn(seed) for seed in range(3)))]
    for name, (measure, _) in MEASURES.items():
        one_by_one = [float(measure(labels, probabilities)) for labels, probabilities in zip(*stacked)]
        np.testing.assert_allclose(measure(*stacked), one_by_one, err_msg=name)


def test_each_figure_has_its_n_and_an_interval_around_it():
    labels, probabilities = drawn(3)
    facts = measure_classes(labels.tolist(), probabilities.tolist())
    assert list(facts) == ["accuracy", "auc", "sensitivity", "specificity", "brier", "calibration_error"]
    assert [facts[name]["n"] for name in ("accuracy", "auc", "brier")] == [40] * 3
    assert (facts["sensitivity"]["n"], facts["specificity"]["n"]) == (int(labels.sum()), int((1 - labels).sum()))
    for name in ("accuracy", "auc", "sensitivity", "specificity", "brier"):
        low, high = facts[name]["interval_95"]
        assert low <= facts[name]["mean"] <= high and high - low > 0.01
    assert measure_classes(labels.tolist(), probabilities.tolist()) == facts


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """A classifier whose true accuracy is 0.8, drawn 60 times."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        labels = rng.integers(0, 2, 50)
        right = rng.random(50) < 0.8
        facts = measure_classes(labels.tolist(), np.where(right, labels, 1 - labels).tolist(), resamples=400)
        low, high = facts["accuracy"]["interval_95"]
        covered += low <= 0.8 <= high
    assert 52 <= covered <= 60


def test_a_single_case_has_no_interval_and_none_has_no_figures():
    assert measure_classes([1], [0.7])["accuracy"] == {"n": 1, "mean": 1.0, "interval_95": None}
    assert all(facts == {"n": 0, "mean": None, "interval_95": None} for facts in measure_classes([], []).values())


@pytest.mark.parametrize(
    ("labels", "probabilities"), [([0, 1], [0.5]), ([0, 2], [0.5, 0.5]), ([0, 1], [0.5, 1.5]), ([0, 1], [0.5, np.nan])]
)
def test_what_is_no_label_or_probability_is_refused(labels, probabilities):
    with pytest.raises(ValueError, match="must be"):
        measure_classes(labels, probabilities)


def test_figures_and_intervals_do_not_depend_on_the_order_of_the_cases():
    generator = np.random.default_rng(3)
    labels, probabilities = np.arange(11) % 2, generator.uniform(size=11)
    order = generator.permutation(11)
    assert measure_classes(labels, probabilities) == measure_classes(labels[order], probabilities[order])

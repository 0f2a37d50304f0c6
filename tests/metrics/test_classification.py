"""Figures of two classes against scikit-learn's, MONAI's and those by hand; their intervals, size alone, pictures."""

from __future__ import annotations

import matplotlib.axes
import numpy as np
import pytest
import sklearn.metrics
import torch
from matplotlib.image import imread
from monai.metrics import compute_roc_auc
from scipy.special import expit

from med3d_ext.metrics.classification import (
    MEASURES,
    auc,
    calibration_error,
    draw_reliability,
    draw_roc,
    measure_classes,
    size_baseline,
)

LABELS = np.array([0, 0, 0, 1, 1])
PROBABILITIES = np.array([0.1, 0.5, 0.4, 0.9, 0.3])


def drawn(seed: int, n: int = 40, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1).round(digits)


def test_each_measure_is_what_is_computed_by_hand():
    facts = {name: figure["mean"] for name, figure in measure_classes(LABELS, PROBABILITIES).items()}
    assert facts["accuracy"] == 0.6  # 0.5 counts as malignant
    assert facts["sensitivity"] == 0.5
    assert facts["specificity"] == round(2 / 3, 4)
    assert facts["brier"] == round((0.01 + 0.25 + 0.16 + 0.01 + 0.49) / 5, 4)
    assert facts["auc"] == round((3 + 1) / 6, 4)  # 0.9 beats three, 0.3 beats one


@pytest.mark.parametrize("seed", range(5))
def test_each_measure_is_scikit_learns(seed):
    labels, probabilities = drawn(seed, digits=1)
    theirs = {
        "accuracy": sklearn.metrics.accuracy_score(labels, probabilities >= 0.5),
        "auc": sklearn.metrics.roc_auc_score(labels, probabilities),
        "sensitivity": sklearn.metrics.recall_score(labels, probabilities >= 0.5),
        "specificity": sklearn.metrics.recall_score(labels, probabilities >= 0.5, pos_label=0),
        "brier": sklearn.metrics.brier_score_loss(labels, probabilities),
    }
    ours = measure_classes(labels, probabilities)
    assert {name: ours[name]["mean"] for name in theirs} == pytest.approx(theirs, abs=6e-5)


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
    assert np.isnan(auc(ones, np.linspace(0, 1, 4)))
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
def test_other_labels_and_probabilities_are_refused(labels, probabilities):
    with pytest.raises(ValueError, match="must be"):
        measure_classes(labels, probabilities)


def test_figures_and_intervals_do_not_depend_on_the_order_of_the_cases():
    generator = np.random.default_rng(3)
    labels, probabilities = np.arange(11) % 2, generator.uniform(size=11)
    order = generator.permutation(11)
    assert measure_classes(labels, probabilities) == measure_classes(labels[order], probabilities[order])


def sizes(slope: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Volumes of a log-normal spread and labels that follow a logistic law of their logarithm."""
    rng = np.random.default_rng(0)
    logarithms = rng.normal(6.0, 1.5, n)
    return np.exp(logarithms), (rng.random(n) < expit(0.5 + slope * (logarithms - 6.0))).astype(int)


@pytest.mark.parametrize("slope", [1.2, -0.8])
def test_the_size_baseline_finds_the_law_that_drew_the_labels(slope):
    baseline = size_baseline(*sizes(slope))
    expected = expit(0.5 + slope * np.array([-2.0, 0.0, 2.0]))
    np.testing.assert_allclose(baseline(np.exp([4.0, 6.0, 8.0])), expected, atol=0.05)


def test_the_size_baseline_is_calibrated_on_what_it_was_fitted_to_and_orders_by_size():
    volumes, labels = sizes(slope=0.8)
    probabilities = size_baseline(volumes, labels)(volumes)
    assert probabilities.mean() == pytest.approx(labels.mean(), abs=1e-3)
    assert auc(labels, probabilities) == pytest.approx(float(auc(labels, volumes)), abs=1e-6)


def test_sizes_without_meaning_give_the_frequency_of_the_class():
    baseline = size_baseline([5.0] * 8, [0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(baseline([1.0, 5.0]), 0.75, atol=1e-3)


def test_perfectly_separated_sizes_give_a_finite_slope():
    volumes = np.array([1.0, 2.0, 30.0, 40.0])
    probabilities = size_baseline(volumes, [0, 0, 1, 1])(volumes)
    assert (probabilities > 0.5).tolist() == [False, False, True, True]
    logits = np.log(probabilities / (1 - probabilities))
    slope = (logits[3] - logits[0]) / (np.log(40) - np.log(1)) * np.log(volumes).std()
    # where the gradient of the penalized likelihood is zero: slope / 25 = sum of residuals times standardized sizes
    standard = (np.log(volumes) - np.log(volumes).mean()) / np.log(volumes).std()
    assert slope / 25 == pytest.approx(float(((np.array([0, 0, 1, 1]) - probabilities) * standard).sum()), abs=1e-3)


def lines_of(monkeypatch) -> list[tuple]:
    """What is plotted from now on."""
    plotted: list[tuple] = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda self, *a, **k: (plotted.append(a), plot(self, *a, **k))[1])
    return plotted


def test_the_drawn_curve_is_scikit_learns_and_its_area_the_auc(tmp_path, monkeypatch):
    labels, probabilities = drawn(0, n=60, digits=1)  # with ties
    plotted = lines_of(monkeypatch)
    draw_roc(tmp_path / "roc.png", {"network": (labels, probabilities)})
    false, true = map(np.array, plotted[1])
    theirs = sklearn.metrics.roc_curve(labels, probabilities, drop_intermediate=False)
    np.testing.assert_allclose([false, true], theirs[:2])
    area = float(((true[1:] + true[:-1]) / 2 * np.diff(false)).sum())
    assert area == pytest.approx(float(auc(labels, probabilities)))


def test_the_reliability_plot_has_each_tenth_with_its_interval(tmp_path, monkeypatch):
    plotted = lines_of(monkeypatch)
    draw_reliability(tmp_path / "reliability.png", [0] + [0, 1] * 50, [0.05] + [0.55] * 100)
    single, hundred = plotted[1], plotted[3]
    assert single[1] == [0.0, pytest.approx(0.793, abs=1e-3)]  # Wilson's, also of one case
    assert hundred == ([pytest.approx(0.55)] * 2, [pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3)])
    assert [plotted[2][:2], plotted[4][:2]] == [(0.05, 0.0), (pytest.approx(0.55), 0.5)]


@pytest.mark.parametrize("cases", [1, 60])
def test_both_pictures_are_drawn_also_of_a_single_case(cases, tmp_path):
    labels, probabilities = drawn(0, n=cases)
    draw_reliability(tmp_path / "reliability.png", labels, probabilities)
    draw_roc(tmp_path / "roc.png", {"network": (labels, probabilities), "size only": ([], [])})
    for name in ("reliability.png", "roc.png"):
        picture = imread(tmp_path / name)
        assert picture.shape[:2] == (550, 550) and picture[..., :3].std() > 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"reliability.png", "roc.png"}

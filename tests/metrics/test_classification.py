"""Figures of two classes against scikit-learn's, MONAI's and those by hand; their intervals, size alone, pictures."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import matplotlib.axes
import numpy as np
import pytest
import sklearn.metrics
import torch
from matplotlib.image import imread
from monai.metrics import compute_roc_auc
from scipy.special import expit

from med3d_ext.metrics import BestEpoch, ClassificationScore
from med3d_ext.metrics.classification import (
    MEASURES,
    auc,
    calibration_error,
    draw_reliability,
    draw_roc,
    measure_classes,
    size_baseline,
)

NOTHING = {"mean": None, "interval_95": None}


def drawn(seed: int, n: int = 40, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0, 1).round(digits)


def test_each_measure_is_what_is_computed_by_hand():
    found = measure_classes([0, 0, 0, 1, 1], [0.1, 0.5, 0.4, 0.9, 0.3])
    facts = {name: figure["mean"] for name, figure in found.items()}
    assert facts["accuracy"] == 0.6  # 0.5 counts as malignant
    assert facts["sensitivity"] == 0.5
    assert facts["specificity"] == round(2 / 3, 4)
    assert facts["brier"] == round((0.01 + 0.25 + 0.16 + 0.01 + 0.49) / 5, 4)
    assert facts["auc"] == round((3 + 1) / 6, 4)  # 0.9 beats three, 0.3 beats one


@pytest.mark.parametrize("seed", range(5))
def test_each_measure_is_scikit_learns_and_the_auc_monais_with_ties(seed):
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
    monais = compute_roc_auc(torch.as_tensor(probabilities), torch.as_tensor(labels))
    assert auc(labels, probabilities) == pytest.approx(monais)


def test_one_class_has_no_auc_one_case_no_interval_and_none_no_figures():
    facts = measure_classes([1] * 4, [0.1, 0.6, 0.7, 0.9])
    assert facts["auc"] == {"n": 4, **NOTHING} and facts["specificity"] == {"n": 0, **NOTHING}
    assert facts["sensitivity"]["mean"] == 0.75
    assert measure_classes([1], [0.7])["accuracy"] == {"n": 1, "mean": 1.0, "interval_95": None}
    assert all(facts == {"n": 0, **NOTHING} for facts in measure_classes([], []).values())


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


def test_each_figure_has_its_n_and_an_interval_around_it_in_whatever_order_the_cases_come():
    labels, probabilities = drawn(3)
    facts = measure_classes(labels.tolist(), probabilities.tolist())
    assert list(facts) == ["accuracy", "auc", "sensitivity", "specificity", "brier", "calibration_error"]
    positive = int(labels.sum())
    assert [figure["n"] for figure in facts.values()] == [40, 40, positive, 40 - positive, 40, 40]
    for name in ("accuracy", "auc", "sensitivity", "specificity", "brier"):
        low, high = facts[name]["interval_95"]
        assert low <= facts[name]["mean"] <= high and high - low > 0.01
    order = np.random.default_rng(3).permutation(40)
    assert measure_classes(labels[order], probabilities[order]) == facts


@pytest.mark.parametrize(
    ("labels", "probabilities"), [([0, 1], [0.5]), ([0, 2], [0.5, 0.5]), ([0, 1], [0.5, 1.5]), ([0, 1], [0.5, np.nan])]
)
def test_other_labels_and_probabilities_are_refused(labels, probabilities):
    with pytest.raises(ValueError, match="must be"):
        measure_classes(labels, probabilities)


def metrics_after(cases: list[tuple[float, int]], batch: int = 2) -> dict[str, float]:
    """The engine's metrics after cases (probability of class 1, label) that came in batches."""
    engine = SimpleNamespace(state=SimpleNamespace(output=[], metrics={}, device=torch.device("cpu")))
    metric = ClassificationScore()
    for first in range(0, len(cases), batch):
        engine.state.output = [
            {"pred": torch.tensor([1 - p, p]), "label": torch.tensor(label)}
            for p, label in cases[first : first + batch]
        ]
        metric.iteration_completed(engine)
    metric.completed(engine, "val_auc")
    assert metric.compute() == pytest.approx(engine.state.metrics["val_auc"])
    return engine.state.metrics


def test_auc_accuracy_and_loss_of_a_validation_are_over_all_batches():
    cases = [(0.2, 0), (0.6, 0), (0.7, 1), (0.4, 1), (0.9, 1)]
    labels, probabilities = np.array([y for _, y in cases]), np.array([p for p, _ in cases])
    expected = torch.nn.functional.binary_cross_entropy(torch.tensor(probabilities), torch.tensor(labels).double())
    figures = {"val_auc": float(auc(labels, probabilities)), "val_accuracy": 3 / 5, "val_loss": float(expected)}
    assert metrics_after(cases) == pytest.approx(figures)
    assert np.isfinite(metrics_after([(1.0, 0), (0.5, 1)])["val_loss"])  # a certain mistake


def test_a_validation_of_one_class_is_judged_by_its_likelihood_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        better, worse = (metrics_after([(p, 1), (0.5, 1)])["val_auc"] for p in (0.9, 0.6))
    assert better == pytest.approx(np.sqrt(0.9 * 0.5)) and better > worse
    assert any("of one class" in record.message for record in caplog.records)


@pytest.mark.parametrize(("cases", "figures", "epoch"), [(30, 0.7, 2), (29, 0.7, 5), (1, 0.7, 5), (30, 0.9, 3)])
def test_few_cases_do_not_choose_the_epoch_and_of_equal_ones_the_latest_is_kept(cases, figures, epoch):
    better = BestEpoch(range(cases))
    best, kept = 0.5, 1
    for number, figure in enumerate([0.9, figures, 0.8, 0.8], start=2):
        if better(figure, best):
            best, kept = figure, number
    assert kept == epoch


def sizes(slope: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Volumes of a log-normal spread and labels that follow a logistic law of their logarithm."""
    rng = np.random.default_rng(0)
    logarithms = rng.normal(6.0, 1.5, n)
    return np.exp(logarithms), (rng.random(n) < expit(0.5 + slope * (logarithms - 6.0))).astype(int)


@pytest.mark.parametrize("slope", [1.2, -0.8])
def test_the_size_baseline_finds_the_law_that_drew_the_labels(slope):
    volumes, labels = sizes(slope)
    baseline = size_baseline(volumes, labels)
    expected = expit(0.5 + slope * np.array([-2.0, 0.0, 2.0]))
    np.testing.assert_allclose(baseline(np.exp([4.0, 6.0, 8.0])), expected, atol=0.05)
    assert baseline(volumes).mean() == pytest.approx(labels.mean(), abs=1e-3)


def test_sizes_without_meaning_give_the_frequency_and_separated_ones_a_finite_slope():
    baseline = size_baseline([5.0] * 8, [0, 0, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(baseline([1.0, 5.0]), 0.75, atol=1e-3)
    volumes = np.array([1.0, 2.0, 30.0, 40.0])
    probabilities = size_baseline(volumes, [0, 0, 1, 1])(volumes)
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
    draw_roc(tmp_path / "none.png", {"size only": ([], [])})
    for name in ("roc.png", "none.png"):
        assert imread(tmp_path / name).shape[:2] == (550, 550)


def test_the_reliability_plot_has_each_tenth_with_its_interval(tmp_path, monkeypatch):
    plotted = lines_of(monkeypatch)
    draw_reliability(tmp_path / "reliability.png", [0] + [0, 1] * 50, [0.05] + [0.55] * 100)
    single, hundred = plotted[1], plotted[3]
    assert single[1] == [0.0, pytest.approx(0.793, abs=1e-3)]  # Wilson's, also of one case
    assert hundred == ([pytest.approx(0.55)] * 2, [pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3)])
    assert [plotted[2][:2], plotted[4][:2]] == [(0.05, 0.0), (pytest.approx(0.55), 0.5)]
    picture = imread(tmp_path / "reliability.png")
    assert picture.shape[:2] == (550, 550) and picture[..., :3].std() > 0.01

"""Figures against counting by hand and scipy: test cases, AUC and DeLong's test, curves, iterations, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from experiment_stubs import arm_result
from matplotlib import image as images
from matplotlib.axes import Axes
from scipy.stats import mannwhitneyu, norm

from med3d_ext.errors import InputError
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.tools.evaluate import paired_test
from med3d_ext.tools.experiments.engine import ArmResult
from med3d_ext.tools.experiments.figures import (
    LOSS,
    Curve,
    arm_figures,
    describe_auc,
    is_small_good,
    iterations_to_reach,
    loss_curves,
    metric_curves,
    pair_scores,
    paired_auc_test,
)
from med3d_ext.tools.experiments.report import draw_curves, draw_overlays

GENERATOR = np.random.default_rng(0)
CASES = [("liver", f"case_{number}.nii") for number in range(8)]
VALUES = {
    (arm, seed): (base + GENERATOR.normal(0, 0.05, 8)).tolist()
    for arm, base in (("scratch_0.01", 0.5), ("scratch_0.001", 0.6), ("med3d", 0.7))
    for seed in (0, 1)
}


def result(arm: str, seed: int, cases: dict[tuple[str, str], dict[str, float]], **facts) -> ArmResult:
    rows = [{"domain": where, "case": name, "sha256": f"hash of {name}", **one} for (where, name), one in cases.items()]
    return arm_result(arm, cases=rows, seed=seed, **facts)


def segmentation(cases=CASES) -> list[ArmResult]:
    return [
        result(arm, seed, {case: {"val_mean_dice": value} for case, value in zip(cases, values)})
        for (arm, seed), values in VALUES.items()
    ]


def test_n_is_the_number_of_cases_each_the_mean_of_its_seeds_and_the_better_scratch_is_the_reference() -> None:
    (entry,) = arm_figures(segmentation(), "val_mean_dice")
    means = {arm: np.mean([VALUES[arm, 0], VALUES[arm, 1]], axis=0) for arm in entry["arms"]}
    for arm, figures in entry["arms"].items():
        described = describe_metric(means[arm])
        assert described == {key: figures[key] for key in described} and figures["n"] == 8
        assert figures["per_seed"] == {str(seed): round(float(np.mean(VALUES[arm, seed])), 4) for seed in (0, 1)}
        assert figures["cases"]["case_3.nii"] == round(means[arm][3], 4)
    assert entry["reference"] == "scratch_0.001"
    tested = {arm: one["against_reference"] for arm, one in entry["arms"].items() if "against_reference" in one}
    assert tested.keys() == {"scratch_0.01", "med3d"}
    wilcoxon = paired_test(means["med3d"], means["scratch_0.001"])
    assert tested["med3d"] == {"test": "Wilcoxon signed-rank", **wilcoxon}


def test_of_a_metric_whose_small_values_are_good_the_smaller_is_the_better() -> None:
    rates = (("scratch_0.01", 0.1), ("scratch_0.001", 0.2))
    results = [result(arm, 0, {case: {"val_brier": value} for case in CASES}) for arm, value in rates]
    assert arm_figures(results, "val_brier")[0]["reference"] == "scratch_0.01"
    assert is_small_good("val_hd95_mm") and not is_small_good("val_mean_dice")


def test_each_domain_has_its_figures_and_all_together_too_and_excluded_cases_have_none() -> None:
    entries = arm_figures(segmentation([("CT" if n < 5 else "MR", name) for n, (_, name) in enumerate(CASES)]), "x")
    assert {entry["domain"]: entry["arms"]["med3d"]["n"] for entry in entries} == {"CT": 5, "MR": 3, "all": 8}
    hashes = [f"hash of {name}" for _, name in CASES]
    (entry,) = arm_figures(segmentation(), "val_mean_dice", frozenset(hashes[:3]))
    assert {figures["n"] for figures in entry["arms"].values()} == {5}
    assert arm_figures(segmentation(), "val_mean_dice", frozenset(hashes)) == []


def test_a_case_without_a_value_in_one_seed_has_that_of_the_other_and_two_images_of_one_name_are_two_cases() -> None:
    results = segmentation()
    results[0].cases.loc[0, "val_mean_dice"] = float("nan")
    arm = arm_figures(results, "val_mean_dice")[0]["arms"]["scratch_0.01"]
    assert (arm["n"], arm["cases"]["case_0.nii"]) == (8, round(VALUES["scratch_0.01", 1][0], 4))
    twins = [
        arm_result(arm, cases=[{"domain": "CT", "case": "ct.nii", "sha256": sha, "val_dice": value}], fold=fold)
        for arm in ("scratch_0.01", "med3d")
        for fold, (sha, value) in enumerate((("abcdefgh1", 0.2), ("12345678x", 0.4)))
    ]
    figures = arm_figures(twins, "val_dice")[0]["arms"]["med3d"]
    assert figures["cases"] == {"ct.nii (12345678)": 0.4, "ct.nii (abcdefgh)": 0.2} and figures["mean"] == 0.3


def test_without_a_metric_nothing_is_compared() -> None:
    with pytest.raises(InputError, match="no column that begins with val_"):
        arm_figures([result("scratch_0.01", 0, {CASES[0]: {"other": 1.0}})], "val_mean_dice")


def test_the_auc_is_that_of_the_cases_of_all_folds_together() -> None:
    labels = [0, 1, 0, 1, 1, 0]
    scores = {"scratch_0.01": [0.4, 0.5, 0.6, 0.4, 0.3, 0.2], "scratch_0.001": [0.5] * 6, "med3d": labels}
    results = []
    for arm, seed, fold in ((arm, seed, fold) for arm in scores for seed in (0, 1) for fold in (0, 1)):
        rows = {n: {"label": labels[n], "probability": scores[arm][n], "val_accuracy": 1.0} for n in range(fold, 6, 2)}
        results.append(result(arm, seed, {("CT", f"{n}.nii"): row for n, row in rows.items()}, fold=fold))
    entries = {entry["metric"]: entry for entry in arm_figures(results, "val_auc")}
    assert set(entries) == {"val_accuracy", "auc"}
    auc = entries["auc"]["arms"]
    assert {figures["n"] for figures in auc.values()} == {6}
    # positives 0.5, 0.4, 0.3 against negatives 0.4, 0.6, 0.2: 2 + 1.5 + 1 of 9
    assert auc["scratch_0.01"]["mean"] == 0.5
    assert (auc["med3d"]["mean"], auc["med3d"]["per_seed"]) == (1.0, {"0": 1.0, "1": 1.0})
    assert auc["med3d"]["against_reference"]["test"] == "DeLong"


def test_the_mean_of_the_pairs_is_the_auc_of_mann_and_whitney_and_that_of_trainings_their_mean() -> None:
    labels = GENERATOR.integers(0, 2, 40)
    scores = GENERATOR.integers(0, 8, 40) / 8  # with ties
    expected = mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic / (labels.sum() * (1 - labels).sum())
    assert pair_scores(labels, [scores]).mean() == pytest.approx(expected)
    np.testing.assert_array_equal(pair_scores([1, 0, 1], [[0.9, 0.5, 0.2], [0.5, 0.5, 0.6]]), [[0.75], [0.5]])


def test_perfect_and_constant_classifiers_are_described_and_one_class_has_no_auc() -> None:
    perfect = describe_auc(pair_scores([0, 0, 1, 1, 1], [[0, 0.1, 0.9, 0.8, 0.7]]))
    assert perfect == {"n": 5, "mean": 1.0, "interval_95": [1.0, 1.0], "undefined": 0}
    assert describe_auc(pair_scores([0, 0, 1], [[0.5] * 3]))["mean"] == 0.5
    pairs = pair_scores([1, 1], [[0.1, 0.2]])
    assert describe_auc(pairs) == {"n": 2, "mean": None, "interval_95": None, "undefined": 2}
    test = paired_auc_test(pairs, pairs)
    assert (test["mean_difference"], test["interval_95"], test["p_value"]) == (None, None, None) and test["note"]


def test_delongs_variance_is_the_one_counted_by_hand() -> None:
    # two positive and two negative cases; the first run orders one pair wrong, the other is undecided everywhere
    test = paired_auc_test(np.array([[1.0, 1.0], [1.0, 0.0]]), np.full((2, 2), 0.5))
    # means over the negatives: 0.5, 0; over the positives: 0.5, 0. Variance of each: 0.125, by two cases: 0.0625
    assert test["mean_difference"] == 0.25 and test["p_value"] == pytest.approx(2 * norm.sf(0.25 / np.sqrt(0.125)))


def test_equal_runs_do_not_differ_and_opposite_ones_do() -> None:
    labels = np.arange(60) % 2
    pairs, others = (pair_scores(labels, [run + GENERATOR.normal(0, 0.5, 60)]) for run in (labels, 0 * labels))
    same, worse = paired_auc_test(pairs, pairs), paired_auc_test(pairs, others)
    assert (same["p_value"], same["mean_difference"], same["interval_95"], same["differing"]) == (1.0, 0.0, [0, 0], 0)
    assert worse["p_value"] < 0.001
    assert 0 < worse["interval_95"][0] < worse["mean_difference"] < worse["interval_95"][1]
    with pytest.raises(ValueError, match="shape"):
        paired_auc_test(np.zeros((2, 3)), np.zeros((3, 2)))


def test_under_chance_five_percent_of_the_tests_are_below_five_percent() -> None:
    generator = np.random.default_rng(2)
    labels = np.arange(50) % 2
    runs = [[pair_scores(labels, [labels + generator.normal(0, 1, 50)]) for _ in range(2)] for _ in range(400)]
    p_values = [paired_auc_test(*pair, resamples=2)["p_value"] for pair in runs]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def reached(scores: dict[str, list], **facts) -> dict:
    """By arm, from a history of each, or one for each seed."""
    results = [
        arm_result(name, scores=one, seed=seed)
        for name, given in scores.items()
        for seed, one in enumerate(given if isinstance(given[0], list) else [given])
    ]
    return iterations_to_reach(metric_curves(results, "dice"), "dice")


def test_each_arm_is_told_when_it_is_as_good_as_the_better_arm_from_scratch_at_its_end() -> None:
    scores = {
        "scratch_0.01": [0.1, 0.3, 0.5, 0.7, 0.6],
        "scratch_0.001": [0.0, 0.1, 0.2, 0.3, 0.4],
        "med3d": [0.5, 0.65, 0.8, 0.8, 0.8],
        "kinetics": [0.2, 0.3, 0.4, 0.5, 0.59],
    }
    reach = reached(scores)
    assert (reach["reference"], reach["level"]) == ("scratch_0.01", 0.6)
    # the reference passes its last level earlier, at iteration 40, and is given credit for it
    assert {name: (arm["iteration"], arm["times_faster"]) for name, arm in reach["arms"].items()} == {
        "scratch_0.01": (40, 1.0),
        "scratch_0.001": (None, None),
        "med3d": (20, 2.0),
        "kinetics": (None, None),
    }
    assert all(arm["of"] == 50 and arm["iteration_95"] is None for arm in reach["arms"].values())  # single trainings
    both = {"scratch_0.01": [[0.1, 0.4], [0.3, 0.6]], "med3d": [[0.1, 0.2], [0.9, 0.9]]}
    arms = reached(both)["arms"]
    assert arms["scratch_0.01"]["per_seed"] == {"0": None, "1": 20}
    assert (arms["med3d"]["iteration"], arms["med3d"]["per_seed"]) == (10, {"0": None, "1": 10})


def test_a_level_of_the_loss_is_reached_from_above() -> None:
    losses = {"scratch_0.01": np.linspace(1, 0.5, 20), "med3d": np.linspace(0.6, 0.1, 20)}
    curves, window = loss_curves([arm_result(name, losses=values, epochs=10) for name, values in losses.items()])
    assert window == 2
    arm = iterations_to_reach(curves, LOSS)["arms"]["med3d"]
    smooth = (losses["med3d"][1:] + losses["med3d"][:-1]) / 2
    expected = 2 + int(np.argmax(smooth <= (losses["scratch_0.01"][-1] + losses["scratch_0.01"][-2]) / 2))
    assert arm["iteration"] == expected and arm["times_faster"] == pytest.approx(20 / expected, abs=0.01)


@pytest.mark.parametrize(("iterations", "epochs", "window"), [(100, 20, 5), (100, 4, 25), (200, 100, 10), (3, 1, 3)])
def test_the_window_is_an_epoch_or_a_twentieth(iterations, epochs, window) -> None:
    curves, found = loss_curves([arm_result("scratch_0.01", losses=range(iterations), epochs=epochs)])
    ends = list(range(window, iterations + 1))
    assert found == window and curves["scratch_0.01"].iterations.tolist() == ends
    np.testing.assert_allclose(curves["scratch_0.01"].mean, [np.mean(range(end - window, end)) for end in ends])


def test_folds_are_averaged_within_a_seed_as_far_as_all_go_and_only_where_they_were_validated() -> None:
    scores = {(0, 0): [0.0, 0.2, 0.9], (0, 1): [0.2, 0.4], (1, 0): [0.5, 0.5], (1, 1): [0.7, 0.9]}
    results = [arm_result("scratch_0.01", scores=one, seed=seed, fold=fold) for (seed, fold), one in scores.items()]
    curve = metric_curves(results, "dice")["scratch_0.01"]
    np.testing.assert_allclose(curve.per_seed, [[0.1, 0.3], [0.6, 0.7]])
    np.testing.assert_allclose(curve.mean, [0.35, 0.5])
    assert list(curve.seeds) == [0, 1]
    late = metric_curves([arm_result("scratch_0.01", scores=[float("nan"), 0.4])], "dice")["scratch_0.01"]
    assert (late.iterations.tolist(), late.mean.tolist()) == ([20], [0.4])
    never = metric_curves([arm_result("scratch_0.01"), arm_result("med3d")], "dice")
    assert iterations_to_reach(never, "dice") == {"quantity": "dice", "level": None, "reference": None, "arms": {}}


def test_the_interval_holds_the_figure_and_widens_with_the_trainings_differences() -> None:
    widths = []
    for spread in (0.05, 0.2):
        generator, epochs = np.random.default_rng(0), np.arange(1, 41)
        trainings = [
            arm_result(name, scores=1 - np.exp(-epochs * speed * generator.lognormal(0, spread)), seed=seed, fold=fold)
            for name, speed in (("scratch_0.01", 0.1), ("med3d", 0.3))
            for seed in range(3)
            for fold in range(4)
        ]
        arm = iterations_to_reach(metric_curves(trainings, "dice"), "dice")["arms"]["med3d"]
        low, high = arm["times_faster_95"]
        assert arm["iteration_95"][0] <= arm["iteration"] <= arm["iteration_95"][1]
        assert 1 < low <= arm["times_faster"] <= high
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_the_interval_of_seeds_alone_is_that_of_all_their_samples() -> None:
    """Two seeds give four samples of equal weight: both, twice the first, twice the second."""
    scores = {"scratch_0.01": [[0.1, 0.2, 0.4], [0.1, 0.2, 0.4]], "med3d": [[0.4, 0.5, 0.5], [0.1, 0.2, 0.3]]}
    arm = reached(scores)["arms"]["med3d"]
    assert (arm["iteration"], arm["iteration_95"]) == (30, [10, None])  # the second seed alone never arrives
    assert (arm["times_faster"], arm["times_faster_95"]) == (1.0, [None, 3.0])


def test_a_curve_is_the_mean_of_its_seeds_in_a_band(tmp_path, monkeypatch) -> None:
    lines, bands = [], []
    plot, fill = Axes.plot, Axes.fill_between
    monkeypatch.setattr(Axes, "plot", lambda s, *a, **k: (lines.append((*a, k["label"])), plot(s, *a, **k))[1])
    monkeypatch.setattr(Axes, "fill_between", lambda s, *a, **k: (bands.append(a), fill(s, *a, **k))[1])
    curves = {
        "scratch_0.01": Curve(np.array([5, 10]), [0, 1], np.array([[[0.1, 0.2]], [[0.3, 0.6]]])),
        "med3d": Curve(np.array([5, 10]), [0], np.array([[[0.5, 0.9]]])),
    }
    draw_curves(tmp_path / "curves.png", [[("all", "dice", curves, {"level": 0.4, "reference": "scratch_0.01"})]])
    (x, mean, label), (_, alone, other) = lines
    assert (x.tolist(), label, other) == ([5, 10], "scratch_0.01 (2 seeds)", "med3d (1 seed)")
    np.testing.assert_allclose([mean, alone], [[0.2, 0.4], [0.5, 0.9]])
    ((_, *band),) = bands  # one seed has none
    np.testing.assert_allclose(band, [[0.1, 0.2], [0.3, 0.6]])
    assert images.imread(tmp_path / "curves.png").std() > 0


def save(folder: Path, epochs, case: str = "a.nii", fill: int | None = None) -> ArmResult:
    (folder / "snapshots").mkdir(parents=True)
    label = np.zeros((12, 10), np.uint8)
    label[3:9, 2:6] = 1
    for epoch in epochs:
        prediction = np.roll(label, epoch, axis=1) if fill is None else np.full_like(label, fill)
        arrays = {"image": label.astype(np.float16), "label": label, "prediction": prediction}
        np.savez(folder / "snapshots" / f"epoch_{epoch:04d}.npz", **arrays, aspect=1.5, case=case)
    return arm_result(folder.name, folder=folder)


def test_overlays_show_the_epochs_that_all_arms_have(tmp_path, monkeypatch) -> None:
    titles, contours = [], []
    contour, title = Axes.contour, Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda s, text, **k: (titles.append(text), title(s, text, **k))[1])
    monkeypatch.setattr(Axes, "contour", lambda s, m, **k: (contours.append((m, k["colors"])), contour(s, m, **k))[1])
    assert draw_overlays(tmp_path / "a.png", [save(tmp_path / "scratch_0.01", (1, 2, 4)), save(tmp_path / "b", (2, 4))])
    assert titles == [f"{arm}, epoch {epoch}" for epoch in (2, 4) for arm in ("scratch_0.01", "b")]
    assert [color for _, color in contours] == ["lime", "red"] * 4
    np.testing.assert_array_equal(contours[1][0], np.roll(contours[0][0], 2, axis=1))
    assert images.imread(tmp_path / "a.png").std() > 0


def test_empty_and_full_predictions_are_drawn_and_other_cases_or_no_snapshots_are_not(tmp_path) -> None:
    for value in (0, 1):
        assert draw_overlays(tmp_path / "full.png", [save(tmp_path / f"full{value}", (1,), fill=value)])
    first, other = save(tmp_path / "a", (1, 2)), save(tmp_path / "b", (1, 2), case="b.nii")
    assert not draw_overlays(tmp_path / "overlays.png", [first, other])
    assert not draw_overlays(tmp_path / "overlays.png", [first, save(tmp_path / "c", ())])
    assert not (tmp_path / "overlays.png").exists()

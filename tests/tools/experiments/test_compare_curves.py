"""Curves and the iteration at which a level is first reached, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from experiment_stubs import arm_result

from med3d_ext.tools.experiments.figures import LOSS, iterations_to_reach, loss_curves, metric_curves


def test_each_arm_is_told_when_it_is_as_good_as_the_better_arm_from_scratch_at_its_end() -> None:
    scores = {
        "scratch_0.01": [0.1, 0.3, 0.5, 0.7, 0.6],
        "scratch_0.001": [0.0, 0.1, 0.2, 0.3, 0.4],
        "med3d": [0.5, 0.65, 0.8, 0.8, 0.8],
        "kinetics": [0.2, 0.3, 0.4, 0.5, 0.59],
    }
    reach = iterations_to_reach(
        metric_curves([arm_result(item[0], scores=item[1]) for item in scores.items()], "dice"), "dice"
    )
    assert (reach["reference"], reach["level"]) == ("scratch_0.01", 0.6)
    # the reference passes its last level earlier, at iteration 40, and is given credit for it
    assert {name: (arm["iteration"], arm["times_faster"]) for name, arm in reach["arms"].items()} == {
        "scratch_0.01": (40, 1.0),
        "scratch_0.001": (None, None),
        "med3d": (20, 2.0),
        "kinetics": (None, None),
    }
    assert all(arm["of"] == 50 for arm in reach["arms"].values())


def test_a_level_of_the_loss_is_reached_from_above() -> None:
    losses = {"scratch_0.01": np.linspace(1, 0.5, 20), "med3d": np.linspace(0.6, 0.1, 20)}
    curves, window = loss_curves([arm_result(name, losses=values, epochs=10) for name, values in losses.items()])
    assert window == 2
    reach = iterations_to_reach(curves, LOSS)
    smooth = (losses["med3d"][1:] + losses["med3d"][:-1]) / 2
    expected = 2 + int(np.argmax(smooth <= (losses["scratch_0.01"][-1] + losses["scratch_0.01"][-2]) / 2))
    assert reach["arms"]["med3d"]["iteration"] == expected
    assert reach["arms"]["med3d"]["times_faster"] == pytest.approx(20 / expected, abs=0.01)


@pytest.mark.parametrize(("iterations", "epochs", "window"), [(100, 20, 5), (100, 4, 25), (200, 100, 10), (3, 1, 3)])
def test_the_window_is_an_epoch_or_a_twentieth(iterations, epochs, window) -> None:
    curves, found = loss_curves([arm_result("scratch_0.01", losses=range(iterations), epochs=epochs)])
    assert found == window
    curve = curves["scratch_0.01"]
    assert curve.iterations.tolist() == list(range(window, iterations + 1))
    np.testing.assert_allclose(curve.mean, [np.mean(range(end - window, end)) for end in range(window, iterations + 1)])


def test_folds_are_averaged_within_a_seed_as_far_as_all_go() -> None:
    results = [
        arm_result("scratch_0.01", scores=[0.0, 0.2, 0.9], seed=0, fold=0),
        arm_result("scratch_0.01", scores=[0.2, 0.4], seed=0, fold=1),
        arm_result("scratch_0.01", scores=[0.5, 0.5], seed=1, fold=0),
        arm_result("scratch_0.01", scores=[0.7, 0.9], seed=1, fold=1),
    ]
    curve = metric_curves(results, "dice")["scratch_0.01"]
    np.testing.assert_allclose(curve.per_seed, [[0.1, 0.3], [0.6, 0.7]])
    np.testing.assert_allclose(curve.mean, [0.35, 0.5])
    assert list(curve.seeds) == [0, 1]


def test_the_seeds_are_also_told_one_by_one() -> None:
    results = [
        arm_result("scratch_0.01", scores=[0.1, 0.4], seed=0),
        arm_result("scratch_0.01", scores=[0.3, 0.6], seed=1),
        arm_result("med3d", scores=[0.1, 0.2], seed=0),
        arm_result("med3d", scores=[0.9, 0.9], seed=1),
    ]
    arms = iterations_to_reach(metric_curves(results, "dice"), "dice")["arms"]
    assert arms["scratch_0.01"]["per_seed"] == {"0": None, "1": 20}
    assert (arms["med3d"]["iteration"], arms["med3d"]["per_seed"]) == (10, {"0": None, "1": 10})


def test_epochs_that_were_not_validated_have_no_point() -> None:
    curve = metric_curves([arm_result("scratch_0.01", scores=[float("nan"), 0.4])], "dice")["scratch_0.01"]
    assert (curve.iterations.tolist(), curve.mean.tolist()) == ([20], [0.4])


def test_a_quantity_that_was_never_measured_has_no_level() -> None:
    curves = metric_curves([arm_result("scratch_0.01"), arm_result("med3d")], "dice")
    assert iterations_to_reach(curves, "dice") == {"quantity": "dice", "level": None, "reference": None, "arms": {}}


def trainings(speeds: dict[str, float], spread: float, seeds: int = 3, folds: int = 4) -> dict:
    """Curves that rise to 1, as fast as their arm and some noise say, and nearly stand still at the end."""
    generator = np.random.default_rng(0)
    epochs = np.arange(1, 41)
    return metric_curves(
        [
            arm_result(name, scores=1 - np.exp(-epochs * speed * generator.lognormal(0, spread)), seed=seed, fold=fold)
            for name, speed in speeds.items()
            for seed in range(seeds)
            for fold in range(folds)
        ],
        "dice",
    )


def test_the_interval_holds_the_figure_and_widens_with_the_trainings_differences() -> None:
    widths = []
    for spread in (0.05, 0.2):
        arm = iterations_to_reach(trainings({"scratch_0.01": 0.1, "med3d": 0.3}, spread), "dice")["arms"]["med3d"]
        low, high = arm["times_faster_95"]
        assert arm["iteration_95"][0] <= arm["iteration"] <= arm["iteration_95"][1]
        assert 1 < low <= arm["times_faster"] <= high
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_the_interval_of_seeds_alone_is_that_of_all_their_samples() -> None:
    """Two seeds give four samples of equal weight: both, twice the first, twice the second."""
    results = [
        arm_result("scratch_0.01", scores=[0.1, 0.2, 0.4], seed=0),
        arm_result("scratch_0.01", scores=[0.1, 0.2, 0.4], seed=1),
        arm_result("med3d", scores=[0.4, 0.5, 0.5], seed=0),
        arm_result("med3d", scores=[0.1, 0.2, 0.3], seed=1),
    ]
    arm = iterations_to_reach(metric_curves(results, "dice"), "dice")["arms"]["med3d"]
    assert (arm["iteration"], arm["iteration_95"]) == (30, [10, None])  # the second seed alone never arrives
    assert (arm["times_faster"], arm["times_faster_95"]) == (1.0, [None, 3.0])


def test_a_single_training_has_no_interval() -> None:
    curves = trainings({"scratch_0.01": 0.1, "med3d": 0.3}, 0.1, seeds=1, folds=1)
    for arm in iterations_to_reach(curves, "dice")["arms"].values():
        assert (arm["iteration_95"], arm["times_faster_95"]) == (None, None)

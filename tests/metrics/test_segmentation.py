"""Measures of two masks against geometry by hand, and against MONAI's own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree
from scipy.stats import wilcoxon

from med3d_ext.metrics.intervals import bootstrap_interval
from med3d_ext.metrics.segmentation import ClassMeasures, global_dice, measure_class
from med3d_ext.tools.evaluate import paired_test

EMPTY = np.zeros((6, 6, 8), dtype=bool)


def block(*ranges: tuple[int, int], shape: tuple[int, int, int] = (6, 6, 8)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*each) for each in ranges)] = True
    return mask


def bars(z_pred: tuple[int, int], z_label: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two bars of one voxel's thickness along z: all their voxels are surface."""
    return block((2, 3), (2, 3), z_pred), block((2, 3), (2, 3), z_label)


def test_bars_shifted_by_one_thick_slice():
    #        z  0 1 2 3 4 5 6 7    5 mm apart
    # label     . # # # # . . .
    # pred      . . # # # # . .    only the two ends lie 5 mm off, six voxels lie on the other surface
    found = measure_class(*bars((2, 6), (1, 5)), spacing=(1, 2, 5), tolerance_mm=2)
    assert found.outcome == "found"
    assert found.dice == 2 * 3 / 8
    assert found.assd_mm == pytest.approx((5 + 5) / 8)
    assert found.surface_dice == 6 / 8
    # 95th percentile of 0 0 0 5: at 2.85 of the 3 steps between them
    assert found.hd95_mm == pytest.approx(0.85 * 5)


def test_cubes_shifted_by_one_voxel_along_the_thick_axis():
    # Slices of the 3 x 3 x 3 cubes: a full slice (F) has 9 surface voxels, the middle one (M) a ring of 8.
    #        z  0 1 2 3 4 5 6 7    4 mm apart, 1 mm in the slice
    # label     . F M F . . . .
    # pred      . . F M F . . .
    # pred to label: its slice 2 (9): 8 on the ring, the center is 1 mm from the ring;
    #                slice 3 (8): on the full slice; slice 4 (9): 4 mm from it. The other way is the mirror image.
    found = measure_class(
        block((1, 4), (1, 4), (2, 5)), block((1, 4), (1, 4), (1, 4)), spacing=(1, 1, 4), tolerance_mm=1
    )
    assert found.assd_lits_mm == found.assd_mm  # no voxel but the middle has all its 18 neighbors
    assert found.dice == 2 * 18 / 54
    assert found.assd_mm == pytest.approx((1 + 9 * 4) / 26)
    assert found.surface_dice == pytest.approx(17 / 26)
    assert found.hd95_mm == pytest.approx(4)


@pytest.mark.parametrize(("tolerance", "share"), [(0.69, 6 / 8), (0.7, 1.0)])
def test_a_distance_of_exactly_the_tolerance_is_right(tolerance, share):
    assert measure_class(*bars((2, 6), (1, 5)), spacing=(1, 1, 0.7), tolerance_mm=tolerance).surface_dice == share


def test_measures_equal_monais():
    generator = np.random.default_rng(0)
    spacing = [0.7, 1.3, 2.5]
    for _ in range(5):
        pred, label = (generator.random((7, 9, 8)) < 0.2 for _ in range(2))
        tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, label)]
        found = measure_class(pred, label, spacing, tolerance_mm=1.0)
        assert found.dice == pytest.approx(compute_dice(*tensors).item())
        options = {"include_background": True, "spacing": spacing}
        assert found.assd_mm == pytest.approx(
            compute_average_surface_distance(*tensors, symmetric=True, **options).item(), rel=1e-5
        )
        assert found.hd95_mm == pytest.approx(
            compute_hausdorff_distance(*tensors, percentile=95, **options).item(), rel=1e-5
        )
        assert found.surface_dice == pytest.approx(
            compute_surface_dice(*tensors, class_thresholds=[1.0], **options).item(), rel=1e-5
        )


def surface_points(mask, neighbors):
    """Voxels of a mask with such a neighbor outside it, one by one; neighbors 1: faces, 2: edges, too."""
    padded = np.pad(mask, 1)
    steps = [step for step in np.ndindex(3, 3, 3) if 0 < np.abs(np.subtract(step, 1)).sum() <= neighbors]
    inside = [voxel for voxel in np.argwhere(mask) if all(padded[tuple(voxel + step)] for step in steps)]
    return np.array([voxel for voxel in np.argwhere(mask) if not any((voxel == other).all() for other in inside)])


def test_surface_distances_are_those_between_points_and_the_lits_challenges():
    """Its scoring takes face and edge neighbors and the nearest points of both surfaces."""
    generator = np.random.default_rng(1)
    spacing = np.array([0.7, 0.8, 5.0])
    for _ in range(5):
        pred, label = (binary_dilation(generator.random((9, 10, 7)) < 0.02, iterations=3) for _ in range(2))
        found = measure_class(pred, label, spacing.tolist(), 1.0, [3.0])
        for neighbors, measured in ((1, found.assd_mm), (2, found.assd_lits_mm)):
            ours, theirs = (surface_points(mask, neighbors) * spacing for mask in (pred, label))
            both = np.concatenate([cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]])
            assert measured == pytest.approx(both.mean(), rel=1e-5)
            if neighbors == 1:
                assert [found.surface_dice, *found.surface_dice_further] == [(both <= mm).mean() for mm in (1.0, 3.0)]
        assert found.assd_lits_mm != found.assd_mm


def test_equal_masks_are_perfect_also_at_the_faces_of_the_volume():
    mask = block((0, 6), (0, 6), (0, 3))
    found = measure_class(mask, mask, (1, 1, 5), tolerance_mm=0)
    assert (found.dice, found.surface_dice, found.assd_mm, found.hd95_mm) == (1, 1, 0, 0)
    assert (found.volume_error_ml, found.volume_error_relative) == (0, 0)


def test_volumes_are_in_ml():
    # 12 and 16 voxels of 250 mm3
    found = measure_class(block((0, 2), (0, 2), (0, 3)), block((0, 2), (0, 2), (0, 4)), spacing=(5, 5, 10))
    assert (found.pred_ml, found.label_ml, found.volume_error_ml) == (3, 4, -1)
    assert found.volume_error_relative == -0.25


@pytest.mark.parametrize("outcome", ["missed", "falsely_found"])
def test_a_missed_structure_costs_the_diagonal_and_a_false_find_the_same(outcome):
    pair = EMPTY, block((1, 2), (1, 2), (1, 3))
    found = measure_class(*(pair if outcome == "missed" else pair[::-1]), spacing=(1, 2, 3))
    assert (found.outcome, found.dice, found.surface_dice) == (outcome, 0, 0)
    assert found.assd_mm == found.hd95_mm == found.assd_lits_mm == pytest.approx(math.sqrt(6**2 + 12**2 + 24**2))
    assert found.volume_error_relative == -1 if outcome == "missed" else math.isnan(found.volume_error_relative)
    assert abs(found.volume_error_ml) == 0.012


def test_two_empty_masks_are_not_counted():
    found = measure_class(EMPTY, EMPTY, spacing=(1, 1, 1))
    assert found.outcome == "empty"
    assert all(math.isnan(value) for value in (found.dice, found.surface_dice, found.assd_mm, found.volume_error_ml))


@pytest.mark.parametrize(
    ("label", "tolerance", "message"),
    [(EMPTY[1:], 2, "as large as label"), (EMPTY, -1, "at least 0"), (EMPTY, math.nan, "at least 0")],
)
def test_masks_of_two_shapes_and_negative_tolerances_are_refused(label, tolerance, message):
    with pytest.raises(ValueError, match=message):
        measure_class(EMPTY, label, (1, 1, 1), tolerance)


def test_the_global_dice_weighs_cases_by_their_voxels():
    large = ClassMeasures(pred_voxels=100, label_voxels=100, overlap_voxels=90, dice=0.9)
    small = ClassMeasures(pred_voxels=4, label_voxels=6, overlap_voxels=1, dice=0.2)
    false = ClassMeasures(pred_voxels=10, label_voxels=0, overlap_voxels=0, dice=0.0)
    assert global_dice([large, small]) == 2 * 91 / 210
    assert global_dice([large, small, false, ClassMeasures()]) == 2 * 91 / 220
    assert global_dice([ClassMeasures()]) is None


def test_the_paired_test_is_wilcoxons_by_hand():
    # Differences 1 2 3 4 5 6 -7: the ranks of the negative ones add up to 7. Of 2^7 sign patterns, those with a sum
    # of at most 7 are the subsets of 1..7 with such a sum: 1 1 1 2 2 3 4 5 for the sums 0 to 7, 19 in all.
    others = np.arange(7.0)
    values = others + np.array([1, 2, 3, 4, 5, 6, -7])
    found = paired_test(values.tolist(), others.tolist())
    assert found["p_value"] == pytest.approx(2 * 19 / 128)
    assert found["p_value"] == wilcoxon(values, others).pvalue
    assert (found["n"], found["differing"], found["excluded"], found["note"]) == (7, 7, 0, None)
    assert found["mean_difference"] == 2
    assert found["interval_95"] == list(bootstrap_interval((values - others).tolist()))


def test_few_pairs_say_that_they_prove_nothing():
    five = paired_test([1, 2, 3, 4, 5], [0, 0, 0, 0, 0])
    assert five["p_value"] == 2 / 2**5 and "cannot reach" in five["note"]
    six = paired_test([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0])
    assert six["p_value"] == 2 / 2**6 and six["note"] is None


def test_equal_pairs_do_not_count_for_the_test():
    found = paired_test([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 6])
    assert (found["n"], found["differing"]) == (6, 5) and "5 differing" in found["note"]
    same = paired_test([1, 2], [1, 2])
    assert (same["p_value"], same["mean_difference"]) == (1, 0)


def test_pairs_with_one_value_are_excluded_and_counted():
    found = paired_test([1, math.nan, 2, math.nan], [0, 1, math.nan, math.nan])
    assert (found["n"], found["excluded"], found["interval_95"]) == (1, 2, None)
    nothing = paired_test([math.nan], [math.nan])
    assert (nothing["n"], nothing["mean_difference"], nothing["p_value"]) == (0, None, None)


def test_runs_of_two_lengths_are_no_pairs():
    with pytest.raises(ValueError, match="must hold 2 values, got 1"):
        paired_test([1, 2], [1])

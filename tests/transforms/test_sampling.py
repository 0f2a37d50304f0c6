"""One interpolation per sample: geometry held against corners, volumes and centroids in mm."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, Invertd, Spacingd
from scipy.spatial.transform import Rotation

from med3d_ext.transforms import sampling
from med3d_ext.transforms.sampling import (
    MedianSpacingd,
    RandTargetCropd,
    ResampleToGridd,
    axis_spacing,
    box_to_ras,
    needed_part,
    target_box,
    to_ras,
)

FIXED = {"rotate_degrees": 0.0, "scale": (1.0, 1.0), "translate": 0.0}


def random_affine(generator: np.random.Generator, tilt_degrees: float = 20.0) -> np.ndarray:
    """Permuted, flipped, oblique, with a spacing of 0.5 to 5 mm per axis: 10 to 1."""
    signs = np.diag(generator.choice([-1.0, 1.0], 3))[generator.permutation(3)]
    tilt = Rotation.from_euler("xyz", generator.uniform(-tilt_degrees, tilt_degrees, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = tilt @ signs @ np.diag(generator.uniform(0.5, 5.0, 3))
    affine[:3, 3] = generator.uniform(-100, 100, 3)
    return affine


def random_scan(seed: int, margin: int = 0, smallest: int = 2) -> SimpleNamespace:
    """An item with a box of label 1 in a noisy volume, ``margin`` voxels off its faces."""
    generator = np.random.default_rng(seed)
    shape = generator.integers(12, 29, 3)
    first = np.array([generator.integers(margin, size - margin - smallest) for size in shape])
    last = np.array([generator.integers(low + smallest, size - margin + 1) for low, size in zip(first, shape)])
    label = torch.zeros(1, *shape)
    label[:, first[0] : last[0], first[1] : last[1], first[2] : last[2]] = 1
    affine = random_affine(generator)
    image = torch.as_tensor(generator.normal(size=(1, *shape)), dtype=torch.float32) + label * 5
    item = {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}
    return SimpleNamespace(item=item, affine=affine, shape=shape, first=first, last=last)


def crop(seed: int = 0, **options) -> RandTargetCropd:
    transform = RandTargetCropd(("image", "label"), **{"spatial_size": (16, 20, 24), **options})
    return transform.set_random_state(seed=seed)


def corners_of(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The eight outer corners (voxel coordinates) of a box of voxels."""
    ends = [(low - 0.5, high - 0.5) for low, high in zip(first, last)]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


# The target's box, and boxes in RAS order


def test_a_box_of_stored_voxels_is_the_same_box_in_ras_order():
    affine = np.array([[0, 0, 3.0, 0], [-1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])  # stored axes: P, S, R
    ras, shape = to_ras(affine, (10, 20, 30))
    assert shape.tolist() == [30, 10, 20]
    label = torch.zeros(1, 10, 20, 30)
    assert target_box(label) is None
    label[0, 1, 2, 3], label[0, 3, 5, 7] = 1, 2
    first, last = target_box(label)
    assert first.tolist() == [1, 2, 3] and last.tolist() == [4, 6, 8]  # one past the last foreground voxel
    box = box_to_ras((first, last), ras)
    assert box.tolist() == [[3, 6, 2], [8, 9, 6]]  # P counts from the other end: 10 - 4 .. 10 - 1
    np.testing.assert_allclose(axis_spacing(affine @ ras), [3, 1, 2])


# Whole volumes on a grid


@pytest.mark.parametrize("seed", range(12))
def test_the_grid_covers_exactly_the_volume_in_ras_order(seed):
    scan = random_scan(seed)
    size = (16, 12, 20)
    affine = ResampleToGridd("image", size)(scan.item)["image"].affine.numpy()
    ours = apply(affine, corners_of(np.zeros(3), np.array(size)))
    theirs = apply(scan.affine, corners_of(np.zeros(3), scan.shape))
    distance = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    assert distance.min(axis=1).max() < 1e-3 and distance.min(axis=0).max() < 1e-3
    assert nibabel.aff2axcodes(affine) == ("R", "A", "S")


@pytest.mark.parametrize("seed", range(6))
def test_a_grid_of_the_images_own_size_is_the_closest_canonical_image(seed):
    scan = random_scan(seed)
    image = scan.item["image"]
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(image[0].numpy(), scan.affine))
    result = ResampleToGridd("image", canonical.shape)(scan.item)["image"]
    np.testing.assert_allclose(result[0].numpy(), canonical.get_fdata(), atol=1e-4)
    np.testing.assert_allclose(result.affine.numpy(), canonical.affine, atol=1e-4)


def there_and_back(item: dict, size: tuple[int, int, int]) -> MetaTensor:
    transform = Compose([ResampleToGridd("image", size)])
    forward = transform(item)
    forward["pred"] = forward["image"].clone()
    return Invertd("pred", transform, orig_keys="image", nearest_interp=False)(forward)["pred"]


@pytest.mark.parametrize("seed", range(10))
def test_invertd_restores_shape_and_affine_and_brings_a_marked_corner_back(seed):
    scan = random_scan(seed)
    corner = np.random.default_rng(seed).integers(0, 2, 3)
    marked = torch.zeros(1, *scan.shape)
    marked[(0, *[slice(-3, None) if end else slice(0, 3) for end in corner])] = 1
    back = there_and_back({"image": MetaTensor(marked, affine=scan.affine)}, (24, 24, 24))
    assert back.shape[1:] == tuple(scan.shape)
    np.testing.assert_allclose(back.affine.numpy(), scan.affine, atol=1e-5)
    back = back[0].numpy()
    found = np.array(np.unravel_index(back.argmax(), back.shape))
    expected = np.where(corner, scan.shape - 1, 0)
    assert np.abs(found - expected).max() <= 2
    assert back[tuple(expected)] > 0.9


def test_the_size_may_depend_on_the_domain():
    scan = random_scan(0)
    sizes = {"liver": (8, 8, 8), "heart": (12, 8, 4)}
    for transform in (ResampleToGridd(("image", "label"), sizes), crop(spatial_size=sizes)):
        assert transform({**scan.item, "domain": "heart"})["image"].shape == (1, 12, 8, 4)


# The random crop


@pytest.mark.parametrize("factor", [None, 2.0])
def test_the_target_is_always_inside(factor):
    size = np.array([16, 20, 24])
    for seed in range(60):
        scan = random_scan(seed)
        result = crop(seed, target_factor=factor, translate=0.5, rotate_degrees=15.0, scale=(0.5, 2.0))(scan.item)
        grid = result["label"].affine.numpy()
        corners = apply(np.linalg.inv(grid) @ scan.affine, corners_of(scan.first, scan.last))
        assert (corners > -0.5 - 1e-3).all() and (corners < size - 0.5 + 1e-3).all(), f"seed {seed}"


@pytest.mark.parametrize("factor", [None, 2.0])
def test_the_target_keeps_its_volume_in_mm3(factor):
    ratios = []
    for seed in range(30):
        scan = random_scan(seed, margin=2, smallest=6)  # on a face it would go on beyond the volume, as the border does
        label = crop(seed, target_factor=factor, spatial_size=(40, 40, 40))(scan.item)["label"]
        found = float(label.sum()) * abs(np.linalg.det(label.affine.numpy()[:3, :3]))
        ratios.append(found / (np.prod(scan.last - scan.first) * abs(np.linalg.det(scan.affine[:3, :3]))))
    assert np.mean(ratios) == pytest.approx(1, abs=0.03)
    assert np.abs(np.array(ratios) - 1).max() < 0.25


@pytest.mark.parametrize("transform", [crop(), ResampleToGridd(("image", "label"), (8, 8, 8), ("bilinear", "nearest"))])
def test_each_key_is_interpolated_exactly_once(transform, monkeypatch):
    real, calls = torch.nn.functional.grid_sample, []
    monkeypatch.setattr(
        torch.nn.functional,
        "grid_sample",
        lambda *args, **kwargs: calls.append(kwargs["mode"]) or real(*args, **kwargs),
    )
    transform(random_scan(1).item)
    assert [str(mode) for mode in calls] == ["bilinear", "nearest"]


def test_labels_stay_integers_of_the_same_set():
    scan = random_scan(2)
    scan.item["label"][0, 3:6, 3:6, 3:6] = 5
    scan.item["label"][0, 7:9] *= 3
    values = set(scan.item["label"].unique().tolist())
    for seed in range(20):
        result = crop(seed)(scan.item)["label"]
        assert set(result.unique().tolist()) <= values
    assert result.dtype == torch.float32


def windows(volume: np.ndarray, box: np.ndarray | None, draws: int = 400, **options) -> list[tuple]:
    transform = crop(**options)
    return [transform.draw_window(volume, box) for _ in range(draws)]


VOLUME, BOX = np.array([300.0, 200, 100]), np.array([[120.0, 90, 30], [160, 110, 60]])


def fills(values: np.ndarray, low: float, high: float) -> bool:
    """Whether values are in a range and come within 5 % of both its ends along each axis."""
    room = 0.05 * (high - low)
    ends = np.min(values, axis=0), np.max(values, axis=0)
    inside = (ends[0] >= low - 1e-6).all() and (ends[1] <= high + 1e-6).all()
    return bool(inside and (ends[0] < low + room).all() and (ends[1] > high - room).all())


def test_rotations_scales_and_translations_fill_their_ranges():
    angles = [Rotation.from_matrix(axes).as_euler("XYZ", degrees=True) for _, _, axes in windows(VOLUME, BOX)]
    assert fills(angles, -5, 5)
    drawn = windows(VOLUME, BOX, target_factor=None, **{**FIXED, "scale": (0.8, 1.2)})
    magnification = np.array([VOLUME / extent for _, extent, _ in drawn])
    assert fills(magnification, 0.8, 1.2) and np.ptp(magnification, axis=1).max() < 1e-9  # one for the three axes
    drawn = windows(VOLUME, BOX, target_factor=None, **{**FIXED, "translate": 0.1})
    assert fills([(center - VOLUME / 2) / (BOX[1] - BOX[0]) for center, _, _ in drawn], -0.1, 0.1)


def test_crops_reach_from_twice_the_targets_box_to_the_whole_volume_and_stay_in_it():
    drawn = windows(VOLUME, BOX, **FIXED)
    extent, center = np.array([each[1] for each in drawn]), np.array([each[0] for each in drawn])
    smallest = 2 * (BOX[1] - BOX[0])
    assert fills((extent - smallest) / (VOLUME - smallest), 0, 1)
    assert (center - extent / 2 >= -1e-9).all() and (center + extent / 2 <= VOLUME + 1e-9).all()
    assert (center - extent / 2 <= BOX[0] + 1e-9).all() and (center + extent / 2 >= BOX[1] - 1e-9).all()
    assert (np.ptp(center, axis=0) > 0.1 * VOLUME).all()  # not always around the target


def test_scaling_stops_where_it_would_cut_the_target():
    box = np.array([[2.0, 2, 2], [298, 198, 98]])
    for center, extent, axes in windows(VOLUME, box, scale=(3.0, 3.0)):
        reach = np.abs((corners_of(box[0] + 0.5, box[1] + 0.5) - center) @ axes)
        assert (reach <= extent / 2 + 1e-6).all()


@pytest.mark.parametrize("factor", [None, 2.0])
def test_an_empty_label_gives_the_whole_volume(factor):
    scan = random_scan(4)
    scan.item["label"] *= 0
    whole = ResampleToGridd(("image", "label"), (16, 20, 24), ("bilinear", "nearest"))(scan.item)
    result = crop(target_factor=factor, **{**FIXED, "translate": 0.1})(scan.item)
    np.testing.assert_allclose(result["image"].numpy(), whole["image"].numpy(), atol=1e-4)
    np.testing.assert_allclose(result["image"].affine.numpy(), whole["image"].affine.numpy(), atol=1e-6)


def test_half_the_volumes_without_target_are_shown_in_part_and_the_parts_lie_anywhere():
    drawn = windows(VOLUME, None, draws=2000, part_share=0.5, **FIXED)
    share, center = np.array([each[1] for each in drawn]) / VOLUME, np.array([each[0] for each in drawn]) / VOLUME
    parts = (share < 1).any(axis=1)
    assert abs(parts.mean() - 0.5) < 0.04
    assert share.min() >= 0.2 - 1e-9 and (share[parts].min(axis=0) < 0.21).all()
    assert (center - share / 2 >= -1e-9).all() and (center + share / 2 <= 1 + 1e-9).all()
    assert ((center - share / 2)[parts].max(axis=0) > 0.7).all() and ((center + share / 2).min(axis=0) < 0.3).all()
    with_target = windows(VOLUME, BOX, draws=50, part_share=1.0, **FIXED)
    assert all((extent >= 2 * (BOX[1] - BOX[0]) - 1e-9).all() for _, extent, _ in with_target)


def test_image_and_label_share_one_grid():
    scan = random_scan(6)
    scan.item["image"] = scan.item["label"].clone()
    for seed in range(10):
        result = crop(seed, mode="nearest")(scan.item)
        assert torch.equal(result["image"].as_tensor(), result["label"].as_tensor())
        assert torch.equal(result["image"].affine, result["label"].affine)


def test_a_known_box_stands_for_the_labels_until_a_transform_has_moved_the_label(monkeypatch):
    scan = random_scan(7)
    box = [scan.first.tolist(), scan.last.tolist()]
    expected = crop(3)(scan.item)["image"]
    whole = crop(3)({**scan.item, "label": scan.item["label"] * 0})["image"]
    flipped = Flipd(("image", "label"), 0)({**scan.item, "target_box": box})
    moved = crop(3)(flipped)
    assert torch.equal(moved["image"], crop(3)({key: flipped[key] for key in ("image", "label")})["image"])
    assert "target_box" not in moved
    monkeypatch.setattr(sampling, "target_box", None)  # the label is not searched
    for known, result in ((box, expected), (None, whole), (sampling.NO_TARGET, whole)):
        assert torch.equal(crop(3)({**scan.item, "target_box": known})["image"], result)


def test_reading_only_the_needed_part_changes_nothing(monkeypatch):
    parts, full = [], []
    for seed in range(25):
        scan = random_scan(seed)
        scan.item["image"] = MetaTensor(scan.item["image"].as_tensor().half(), affine=scan.affine)
        parts.append(crop(seed)(scan.item))
    monkeypatch.setattr(sampling, "needed_part", lambda volume, grid, size: volume)
    for seed in range(25):
        scan = random_scan(seed)
        scan.item["image"] = MetaTensor(scan.item["image"].as_tensor().half(), affine=scan.affine)
        full.append(crop(seed)(scan.item))
    for part, whole in zip(parts, full):
        np.testing.assert_allclose(part["image"].numpy(), whole["image"].numpy(), atol=2e-3)
        assert (part["label"].as_tensor() == whole["label"].as_tensor()).float().mean() > 0.999
        np.testing.assert_allclose(part["image"].affine.numpy(), whole["image"].affine.numpy(), atol=1e-9)


def test_a_grid_outside_the_volume_repeats_its_border():
    volume = MetaTensor(torch.arange(8.0).reshape(1, 8, 1, 1).expand(1, 8, 8, 8).clone(), affine=torch.eye(4))
    grid = np.eye(4)
    grid[:3, 3] = [20, 0, 0]
    part = needed_part(volume, grid, (2, 2, 2))
    assert min(part.shape[1:]) >= 2 and part.max() == 7
    part = needed_part(MetaTensor(torch.zeros(1, 40, 40, 40), affine=torch.eye(4)), grid, (4, 4, 4))
    assert max(part.shape[1:]) <= 8
    np.testing.assert_array_equal(part.affine.numpy()[:3, 3], [19, 0, 0])


@pytest.mark.parametrize("flips", [(1,), (1, 2), (1, 2, 3)])
def test_a_mirrored_copy_of_an_image_gives_the_identical_sample(flips):
    for seed in range(8):
        scan = random_scan(seed)
        mirror = np.eye(4)
        for axis in flips:
            mirror[axis - 1, axis - 1], mirror[axis - 1, 3] = -1, scan.shape[axis - 1] - 1
        affine = scan.affine @ mirror
        copy = {key: MetaTensor(scan.item[key].as_tensor().flip(flips), affine=affine) for key in ("image", "label")}
        ours, theirs = crop(seed)(scan.item), crop(seed)(copy)
        np.testing.assert_allclose(ours["image"].affine.numpy(), theirs["image"].affine.numpy(), atol=1e-4)
        np.testing.assert_allclose(ours["image"].numpy(), theirs["image"].numpy(), atol=2e-3)
        assert (ours["label"].as_tensor() == theirs["label"].as_tensor()).float().mean() > 0.999


def crops(**options):
    """Extents (share of the volume) and centers of many crops of a target that fills a tenth of each axis."""
    transform = RandTargetCropd(["image", "label"], [8, 8, 8], **{**FIXED, **options})
    transform.set_random_state(seed=0)
    box = np.array([[45.0] * 3, [55.0] * 3])
    windows = [transform.draw_window(np.full(3, 100.0), box) for _ in range(2000)]
    return np.array([window[1] for window in windows]) / 100, np.array([window[0] for window in windows])


@pytest.mark.parametrize(
    ("options", "smallest", "mean", "whole"),
    [
        ({"target_factor": 2.0}, 0.2, 0.6, 0),
        ({"target_factor": 2.0, "skew": 2.0}, 0.2, 0.2 + 0.8 / 3, 0),
        ({"target_factor": 1.0, "margin_mm": 20.0}, 0.5, 0.75, 0),
        ({"target_factor": 1.0, "margin_mm": 80.0}, 1, 1, 1),  # never beyond the volume
        ({"target_factor": 2.0, "whole_share": 0.1}, 0.2, 0.9 * 0.6 + 0.1, 0.1),
    ],
)
def test_the_size_of_crops_follows_skew_margin_and_the_share_of_whole_volumes(options, smallest, mean, whole):
    extents = crops(**options)[0]
    assert smallest - 1e-9 <= extents.min() < smallest + 0.01 and 0.99 < extents.max() <= 1
    assert abs(extents.mean() - mean) < 0.02
    assert abs((extents == 1).all(axis=1).mean() - whole) < 0.02


def test_a_crop_may_cut_the_target_by_its_translation_where_it_is_not_kept():
    def cut(**options):
        extents, centers = crops(target_factor=1.1, translate=0.5, skew=8.0, **options)
        return (np.abs(centers - 50) + 5 - extents * 50).max()

    assert cut() <= 1e-9
    assert 0 < cut(keep_target=False) <= 5 + 1e-9


# Crops of fixed voxel size


@pytest.mark.parametrize("spacing", [3.0, (2.0, 3.0, 4.0), {"liver": (2.0, 3.0, 4.0), "heart": None}])
def test_crops_of_fixed_voxel_size_have_it_whatever_the_images_own_grid(spacing):
    expected = (2.0, 3.0, 4.0) if spacing != 3.0 else (3.0, 3.0, 3.0)
    for seed in range(20):
        item = {**random_scan(seed).item, "domain": "liver"}
        result = crop(seed, spacing=spacing, scale=(1.0, 1.0))(item)["image"]
        np.testing.assert_allclose(axis_spacing(result.affine.numpy()), expected, rtol=1e-5)


def test_a_fixed_window_holds_the_target_or_lies_in_it_and_stays_in_the_volume():
    size = np.array([16, 20, 24])
    for extent in (size * 1.0, size * 3.0, size * 30.0):
        transform = crop(**FIXED)
        for box in (BOX, np.array([[10.0, 20, 0], [280, 90, 100]]), None):
            first, last = (np.zeros(3), VOLUME) if box is None else box
            centers = []
            for _ in range(100):
                center, window, _ = transform.draw_window(VOLUME, box, extent)
                assert np.array_equal(window, extent)
                low, high = center - window / 2, center + window / 2
                larger = window >= VOLUME
                assert np.all(
                    (low >= -1e-9) & (high <= VOLUME + 1e-9) | larger & (low <= 1e-9) & (high >= VOLUME - 1e-9)
                )
                overlap = np.minimum(high, last) - np.maximum(low, first)
                np.testing.assert_allclose(overlap, np.minimum(window, last - first))
                centers.append(center)
            play = np.minimum(np.abs(last - first - extent), np.abs(VOLUME - extent))
            assert np.all((np.ptp(centers, axis=0) > 0.5 * play) | (play < 1e-9) | (extent > VOLUME))


def test_the_share_of_fixed_voxel_sizes_is_kept_and_the_others_are_the_papers():
    transform = crop(spacing=1.0, spacing_share=0.25, **FIXED)
    extent = np.array([16.0, 20, 24])
    drawn = [transform.draw_window(VOLUME, BOX, extent)[1] for _ in range(2000)]
    fixed = np.array([np.array_equal(window, extent) for window in drawn])
    assert abs(fixed.mean() - 0.25) < 0.04
    papers = np.array([window for window, own in zip(drawn, fixed) if not own])
    assert (papers >= 2 * (BOX[1] - BOX[0]) - 1e-9).all()


def test_a_share_of_the_crops_of_fixed_voxel_size_lies_anywhere_in_the_volume():
    transform = crop(spacing=1.0, anywhere_share=0.5, **FIXED)
    extent = np.array([16.0, 20, 24])
    starts = np.array([transform.draw_window(VOLUME, BOX, extent)[0] - extent / 2 for _ in range(2000)])
    misses = ((starts >= BOX[1]) | (starts + extent <= BOX[0])).any(axis=1)  # which none around the target does
    free = np.random.default_rng(0).uniform(size=(20000, 3)) * (VOLUME - extent)
    expected = ((free >= BOX[1]) | (free + extent <= BOX[0])).any(axis=1).mean()
    assert abs(misses.mean() - 0.5 * expected) < 0.04 and expected > 0.5
    assert (starts >= -1e-9).all() and (starts + extent <= VOLUME + 1e-9).all()


@pytest.mark.parametrize(
    "options",
    [{"spacing": 0}, {"spacing": (1, 2)}, {"spacing": {"liver": -1}}, {"spacing_share": 2}, {"anywhere_share": -1}],
)
def test_a_voxel_size_or_share_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        crop(**options)


# Median spacing


def waves(spacing: tuple[float, float, float], shape: tuple[int, int, int] = (20, 24, 10)) -> MetaTensor:
    """A smooth volume, in LPS, rotated by 10 degrees about z."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 10, degrees=True).as_matrix() @ np.diag([-1, -1, 1]) @ np.diag(spacing)
    affine[:3, 3] = (12.0, -30.0, 7.0)
    points = torch.stack(torch.meshgrid(*[torch.linspace(0, 3, size) for size in shape], indexing="ij"))
    return MetaTensor(points.sin().sum(0)[None], affine=affine, meta={"filename_or_obj": "case.nii.gz"})


def test_the_size_grows_with_spacing_over_median_and_other_keys_stay():
    # Equation (1) as printed would give 20 * 1 / 0.5 = 40 voxels for spacing 0.5 and median 1.
    item = MedianSpacingd("image", {"only": [1.0, 1.0, 4.0]})({"image": waves((0.5, 1.0, 8.0)), "image_path": "a"})
    assert item["image"].shape[1:] == pytest.approx((20 * 0.5, 24, 10 * 8 / 4), abs=1)
    assert item["image"].pixdim.tolist() == pytest.approx([1.0, 1.0, 4.0], abs=1e-5)
    assert item["image_path"] == "a"


def test_the_median_spacing_equals_spacingd_of_monai():
    item = {"image": waves((0.8, 0.8, 3.0)), "label": (waves((0.8, 0.8, 3.0)) > 1.5).float()}
    ours = MedianSpacingd(["image", "label"], [1.1, 0.9, 2.0], mode=["bilinear", "nearest"])(item)
    theirs = Spacingd(["image", "label"], [1.1, 0.9, 2.0], mode=["bilinear", "nearest"], dtype=torch.float32)(item)
    for key in ("image", "label"):
        assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
        assert torch.allclose(ours[key].affine, theirs[key].affine)


@pytest.mark.parametrize("domain", ["fine", "coarse"])
def test_each_domain_has_its_median_and_the_inverse_restores_shape_and_affine(domain: str):
    median = {"fine": [0.7, 0.7, 0.7], "coarse": [2.0, 2.0, 5.0]}
    chain = Compose([MedianSpacingd("image", median)])
    original = waves((0.9, 0.9, 2.5), shape=(23, 17, 11))
    item = chain({"image": original, "domain": domain})
    assert item["image"].pixdim.tolist() == pytest.approx(median[domain], abs=1e-5)
    item["pred"] = MetaTensor(item["image"].as_tensor().clone(), meta={"filename_or_obj": "case.nii.gz"})
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == original.shape
    assert torch.allclose(back.affine, original.affine, atol=1e-6)
    if domain == "fine":
        assert (back - original).abs().mean() < 0.05


@pytest.mark.parametrize("name", [None, "lung"])
def test_a_domain_without_entry_and_a_spacing_of_two_components_are_refused(name: str | None):
    transform = MedianSpacingd("image", {"heart": [1, 1, 1], "brain": [2, 2, 2]})
    with pytest.raises(KeyError, match=r"spacing must have an entry.*'heart', 'brain'.*got (None|'lung')"):
        transform({"image": waves((1.0, 1.0, 2.0)), "domain": name})
    with pytest.raises(ValueError, match=r"three components \(mm\), got \[1.0, 1.0\]"):
        MedianSpacingd("image", {"heart": [1.0, 1.0]})

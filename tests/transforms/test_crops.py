"""The crop to the target, and the cube around a nodule: right place, right size in mm, one interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose

from med3d_ext.errors import InputError
from med3d_ext.transforms import CropCubed, CropTargetd, PercentileNormalized, RandCropCubed
from med3d_ext.transforms.crops import point_from_corner

STILL = {"translate_mm": 0.0, "rotate_degrees": 0.0, "scale": (1.0, 1.0), "flip": False}


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        (((8, 12), (2, 6), (15, 19)), 5.0, ((3, 17), (0, 9), (13, 20))),  # cut at the faces
        (((8, 12), (6, 9), (5, 9)), 0.0, ((8, 12), (6, 9), (5, 9))),
        (((0, 0), (0, 0), (0, 0)), 5.0, ((0, 20), (0, 20), (0, 20))),  # no foreground
    ],
)
def test_the_crop_is_the_targets_box_and_its_margin_in_mm_in_its_place(box, margin, expected):
    affine = torch.diag(torch.tensor([1.0, 2.0, 4.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([7.0, -3.0, 5.0])
    label, image = torch.zeros(1, 20, 20, 20), torch.arange(8000.0).reshape(1, 20, 20, 20)
    label[(0, *[slice(*each) for each in box])] = 1
    item = {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}
    cropped = CropTargetd(["image", "label"], margin_mm=margin)(item)
    for key, whole in (("image", image), ("label", label)):
        assert torch.equal(cropped[key].as_tensor(), whole[(slice(None), *[slice(*each) for each in expected])])
        corner = affine @ torch.tensor([*[float(low) for low, _ in expected], 1.0], dtype=torch.float64)
        assert torch.equal(cropped[key].affine[:, 3], corner)


def affine_of(seed: int) -> np.ndarray:
    """Permuted, flipped and shifted axes with a spacing of 0.7 to 2.5 mm."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(rng.choice([-1.0, 1.0], 3))[rng.permutation(3)] @ np.diag(rng.uniform(0.7, 2.5, 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def ball(affine: np.ndarray, shape: tuple[int, ...], center: np.ndarray, radius: float) -> MetaTensor:
    """A soft-edged ball of ``radius`` mm at a world point."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(grid @ affine[:3, :3].T + affine[:3, 3] - center, axis=-1)
    voxels = torch.as_tensor(np.clip(radius - distance, 0, 1)[None], dtype=torch.float32)
    return MetaTensor(voxels, affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


def world_of(affine: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ voxel + affine[:3, 3]


def center_of_mass(image: MetaTensor) -> np.ndarray:
    """In voxels."""
    weights = image[0].numpy()
    return np.array([(weights * index).sum() for index in np.indices(weights.shape)]) / weights.sum()


@pytest.mark.parametrize("seed", range(8))
def test_the_point_comes_to_lie_in_the_middle_and_millimeters_stay_millimeters(seed):
    affine, shape = affine_of(seed), (40, 44, 48)
    point = world_of(affine, np.random.default_rng(seed).uniform(14, 26, 3))
    item = {"image": ball(affine, shape, point, 6.0), "center": point.tolist()}
    cube = CropCubed("image", (32, 32, 32), 24.0)(item)["image"]
    assert cube.shape == (1, 32, 32, 32)
    np.testing.assert_allclose(center_of_mass(cube), 15.5, atol=0.25)
    np.testing.assert_allclose(cube.affine[:3, :3], np.diag([0.75] * 3), atol=1e-5)  # RAS, 24 mm / 32
    np.testing.assert_allclose(world_of(cube.affine.numpy(), np.full(3, 15.5)), point, atol=1e-3)
    volume = float(cube.sum()) * 0.75**3
    assert volume == pytest.approx(4 / 3 * np.pi * 5.5**3, rel=0.12)


def test_without_a_point_the_middle_of_the_image_is_taken():
    affine = affine_of(3)
    middle = world_of(affine, np.array([9.5, 10.5, 11.5]))
    image = ball(affine, (20, 22, 24), middle, 5.0)
    cut = CropCubed("image", (16, 16, 16), 12.0)
    given, asked = cut({"image": image})["image"], cut({"image": image, "center": middle.tolist()})["image"]
    torch.testing.assert_close(given.as_tensor(), asked.as_tensor())


def test_a_cube_of_the_images_own_grid_is_the_image_and_repeats_its_border_beyond():
    voxels = torch.rand(1, 16, 16, 16)
    item = {"image": MetaTensor(voxels, affine=np.eye(4), meta={"filename_or_obj": "a"})}
    torch.testing.assert_close(CropCubed("image", (16, 16, 16), 16.0)(item)["image"].as_tensor(), voxels)
    cube = CropCubed("image", (16, 16, 16), 16.0)({**item, "center": [0.0, 7.5, 7.5]})["image"].as_tensor()
    torch.testing.assert_close(cube[:, :8], voxels[:, :1].expand(1, 8, 16, 16))


def test_several_points_make_several_items_of_one_scan_through_compose_and_loader():
    affine = affine_of(5)
    centers = [world_of(affine, np.array(voxel)) for voxel in ([12.0, 14, 16], [26.0, 30, 20])]
    scan = ball(affine, (40, 44, 48), centers[0], 5.0) + 2 * ball(affine, (40, 44, 48), centers[1], 5.0)
    item = {"image": scan, "centers": [center.tolist() for center in centers], "names": ["a", "b"]}
    chain = Compose([CropCubed("image", (16, 16, 16), 12.0), PercentileNormalized("image")])
    made = chain(dict(item))
    assert [one["name"] for one in made] == ["a", "b"] and item["image"] is scan
    assert all("centers" not in one for one in made)
    (batch,) = DataLoader(Dataset([item], chain), batch_size=1)
    assert batch["image"].shape == (2, 1, 16, 16, 16) and batch["name"] == ["a", "b"]
    np.testing.assert_allclose(batch["center"].numpy(), centers)
    item.pop("names")
    raw = CropCubed("image", (16, 16, 16), 12.0)(dict(item))
    assert [one["name"] for one in raw] == ["0", "1"]
    assert float(raw[1]["image"].max()) == pytest.approx(2 * float(raw[0]["image"].max()), rel=0.05)


def test_a_point_outside_of_the_image_is_refused_with_the_files_name():
    image = ball(np.eye(4), (20, 20, 20), np.full(3, 10.0), 4.0)
    assert point_from_corner(np.eye(4), (20, 20, 20), [19.4, 0, 0]).tolist() == [19.9, 0.5, 0.5]
    assert point_from_corner(np.eye(4), (20, 20, 20), [19.6, 0, 0]) is None
    with pytest.raises(InputError, match=r"center \[0.0, 0.0, -1.0\] .* is outside 'scan.nii.gz'"):
        CropCubed("image", (8, 8, 8), 8.0)({"image": image, "center": [0, 0, -1]})


# Augmentation


def random_cube(seed: int, item: dict, **options) -> MetaTensor:
    transform = RandCropCubed("image", (32, 32, 32), 24.0, **options).set_random_state(seed=seed)
    return transform(dict(item))["image"]


@pytest.fixture
def scan() -> dict:
    affine = affine_of(1)
    center = world_of(affine, np.array([20.0, 22, 24]))
    return {"image": ball(affine, (40, 44, 48), center, 6.0), "center": center.tolist()}


def test_without_play_it_is_the_cube_itself_and_half_precision_gives_float32(scan):
    expected = CropCubed("image", (32, 32, 32), 24.0)(dict(scan))["image"]
    torch.testing.assert_close(random_cube(0, scan, **STILL).as_tensor(), expected.as_tensor())
    assert random_cube(0, {**scan, "image": scan["image"].half()}).dtype == torch.float32


def test_translation_and_scale_stay_within_their_limits_in_mm(scan):
    places, volumes = [], []
    for seed in range(12):
        cube = random_cube(seed, scan)
        places.append((center_of_mass(cube) - 15.5) * 0.75)
        volumes.append(float(cube.sum()))
    assert 0.5 < np.abs(places).max() < 2.0 * 1.1 * np.sqrt(3)  # a rotation turns the shift, scale stretches it
    still = float(CropCubed("image", (32, 32, 32), 24.0)(dict(scan))["image"].sum())
    shares = np.array(volumes) / still
    assert shares.min() > 0.9**3 - 0.03 and shares.max() < 1.1**3 + 0.03 and np.ptp(shares) > 0.2


def test_flips_mirror_each_axis_in_about_half_of_the_draws():
    transform = RandCropCubed("image", (8, 8, 8), 8.0, rotate_degrees=0.0).set_random_state(seed=0)
    signs = np.array([np.diag(transform.draw()[2]) for _ in range(200)])
    assert set(np.unique(signs)) == {-1, 1}
    assert (np.abs((signs < 0).mean(axis=0) - 0.5) < 0.12).all()
    voxels = torch.rand(1, 16, 16, 16)
    item = {"image": MetaTensor(voxels, affine=np.eye(4), meta={"filename_or_obj": "a"})}
    for seed in range(8):
        cut = RandCropCubed("image", (16, 16, 16), 16.0, **{**STILL, "flip": True}).set_random_state(seed=seed)
        cube = cut(dict(item))["image"]
        mirrored = [axis + 1 for axis in range(3) if cube.affine[axis, axis] < 0]
        torch.testing.assert_close(cube.as_tensor(), voxels.flip(mirrored), atol=1e-5, rtol=0)


def test_the_same_draw_repeats_and_each_item_is_interpolated_once(scan, monkeypatch):
    assert torch.equal(random_cube(4, scan).as_tensor(), random_cube(4, scan).as_tensor())
    calls, real = [], torch.nn.functional.grid_sample
    monkeypatch.setattr(
        torch.nn.functional, "grid_sample", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs)
    )
    random_cube(5, scan)
    assert len(calls) == 1

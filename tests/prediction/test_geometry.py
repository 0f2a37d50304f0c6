"""Whatever the image's grid, the label map lies on it: never shifted, never mirrored. From file to file."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from perfect import PerfectNetwork, body, random_weights, segmentation_bundles, with_network
from scipy.spatial.transform import Rotation

from med3d_ext.io.label_maps import write_label_map
from med3d_ext.tools.predict import BundlePredictor
from med3d_ext.transforms.load import load_volume

FORMATS = (".nii.gz", ".nii", ".mha", ".nrrd")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CASES = 200
FAST = 20

pytestmark = pytest.mark.filterwarnings("ignore")


def random_grid(seed: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine: any order and direction of the axes, oblique in two of three cases, spacing up to 10:1."""
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.6, 2.5) * np.array([1.0, rng.uniform(1, 1.3), rng.uniform(1, 10)])
    shape = np.array([*rng.integers(34, 46, 2), rng.integers(14, 30)])
    order = rng.permutation(3)
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    if seed % 3:
        axes = Rotation.random(random_state=seed).as_matrix() @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing[order]
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return tuple(shape[order].tolist()), affine


def write_image(path: Path, label: np.ndarray, affine: np.ndarray) -> Path:
    """The label as a CT: the ends of the window."""
    voxels = np.where(label, 250, -200).astype(np.int16)
    if path.name.endswith((".nii", ".nii.gz")):
        image = nibabel.Nifti1Image(voxels, affine)
        only = path.suffix == ".nii"  # the two forms by turns
        image.set_sform(affine, code=0 if only else 1)
        image.set_qform(affine, code=1 if only else 0)
        nibabel.save(image, path)
        return path
    import itk

    image = itk.image_from_array(np.ascontiguousarray(voxels.T))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    itk.imwrite(image, str(path))
    return path


def check(image: Path, label_map: Path, label: np.ndarray) -> float:
    """Assert that a map stands on the image's grid and is the label; returns the Dice."""
    found = nibabel.load(label_map)
    grid = load_volume(image).affine.numpy()
    assert found.shape == label.shape
    np.testing.assert_allclose(found.affine, grid, atol=1e-3)
    mask = np.asarray(found.dataobj) > 0
    dice = 2 * (mask & label).sum() / (mask.sum() + label.sum())
    shift = np.abs(np.argwhere(mask).mean(axis=0) - np.argwhere(label).mean(axis=0)).max()
    assert dice >= 0.97, dice
    assert shift < 0.25, shift
    return float(dice)


def segment(predictor: BundlePredictor, folder: Path, seed: int) -> tuple[Path, Path, np.ndarray]:
    """One random case from file to file: the image's, the map's, and the true label."""
    shape, affine = random_grid(seed)
    label = body(shape)
    image = write_image(folder / f"scan{FORMATS[seed % len(FORMATS)]}", label, affine)
    result = predictor(str(image))
    path = folder / "map.nii.gz"
    write_label_map(path, result.labels, result.affine, {1: "body"}, image)
    return image, path, label


@pytest.fixture(scope="module", params=segmentation_bundles(), ids=lambda path: path.name)
def predictor(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.name)
    options = random_weights(request.param, folder)
    return with_network(BundlePredictor(request.param, "cpu", options), PerfectNetwork())


@pytest.mark.parametrize(
    "seeds", [range(FAST), pytest.param(range(FAST, CASES), marks=pytest.mark.slow)], ids=["some", "others"]
)
def test_the_label_map_of_a_perfect_network_is_the_label_on_any_grid(predictor, seeds, tmp_path):
    for seed in seeds:
        check(*segment(predictor, tmp_path, seed))


def test_the_random_grids_hold_what_they_are_for():
    grids = [random_grid(seed) for seed in range(CASES)]
    spacings = np.array([np.linalg.norm(affine[:3, :3], axis=0) for _, affine in grids])
    codes = {"".join(nibabel.aff2axcodes(affine)) for _, affine in grids}
    assert len(codes) == 48 and "LPS" in codes
    assert (spacings.max(axis=1) / spacings.min(axis=1)).max() > 9
    assert sum(np.count_nonzero(np.abs(affine[:3, :3]) > 1e-9) > 3 for _, affine in grids) > 100
    assert sum(np.linalg.det(affine) < 0 for _, affine in grids) > 50


SPOILED = {
    "mirrored along the first axis": lambda logits: logits.flip(2),
    "mirrored along the second axis": lambda logits: logits.flip(3),
    "mirrored along the third axis": lambda logits: logits.flip(4),
    "shifted": lambda logits: logits.roll(3, 2),
    "with two axes swapped": lambda logits: logits.transpose(2, 3) if logits.shape[2] == logits.shape[3] else -logits,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_result_that_is_wrong_somewhere_would_be_found(predictor, spoil, tmp_path):
    network = predictor._make.keywords["network"]
    network.spoil = spoil
    try:
        for seed in range(4):
            with pytest.raises(AssertionError):
                check(*segment(predictor, tmp_path, seed))
    finally:
        network.spoil = lambda logits: logits


def test_a_header_that_is_mirrored_would_be_found(predictor, tmp_path):
    image, path, label = segment(predictor, tmp_path, 0)
    found = nibabel.load(path)
    mirrored = found.affine @ np.diag([-1.0, 1, 1, 1])
    nibabel.save(nibabel.Nifti1Image(np.asarray(found.dataobj), mirrored), path)
    with pytest.raises(AssertionError):
        check(image, path, label)

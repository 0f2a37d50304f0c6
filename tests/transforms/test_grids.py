"""A label is where its header says: on the image's voxels in any order, or refused."""

from __future__ import annotations

import importlib
import itertools
import logging

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from med3d_ext.errors import InputError
from med3d_ext.io.grids import Grid, on_image_grid
from med3d_ext.transforms import LoadVolumed, MergeLabelsd, PercentileNormalized, RandTargetCropd
from med3d_ext.transforms.load import load_volume

ORDERS = [
    np.column_stack([axes, signs])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def random_affine(generator: np.random.Generator) -> np.ndarray:
    """Oblique, of another spacing along each axis, anywhere."""
    affine = np.eye(4)
    rotation = Rotation.random(random_state=int(generator.integers(1 << 30))).as_matrix()
    affine[:3, :3] = rotation @ np.diag(generator.uniform(0.5, 5, 3) * generator.choice([-1, 1], 3))
    affine[:3, 3] = generator.uniform(-200, 200, 3)
    return affine


def written(path, voxels, affine):
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return str(path)


def reordered(voxels, affine, order):
    return apply_orientation(voxels, order).copy(), affine @ inv_ornt_aff(order, voxels.shape)


@pytest.fixture
def scan():
    """Voxels of an image and its label: no two orders of the axes are alike."""
    generator = np.random.default_rng(0)
    label = np.zeros((9, 9, 9), np.uint8)
    label[1:5, 2:5, 5:8] = 1
    label[3, 3, 6] = 2
    return generator.normal(size=label.shape).astype(np.float32) + 3 * label, label


@pytest.mark.parametrize("number", range(0, len(ORDERS), 5))
def test_the_training_sees_the_same_sample_whatever_the_order_of_the_labels_voxels(number, scan, tmp_path):
    """Orders of a cube, where the shape says nothing, through the whole preprocessing of a training."""
    image, label = scan
    affine = random_affine(np.random.default_rng(number))
    files = {"image": written(tmp_path / "image.nii.gz", image, affine)}
    plain = written(tmp_path / "plain.nii.gz", label, affine)
    other = written(tmp_path / "other.nii.gz", *reordered(label, affine, ORDERS[number]))

    def sample(path):
        item = LoadVolumed()({**files, "label": path, "domain": "x"})
        item = PercentileNormalized("image")(item)
        item = MergeLabelsd("label", {"x": {"0": 0, "1": 1, "2": 2}})(item)
        crop = RandTargetCropd(["image", "label"], [8, 8, 8])
        crop.set_random_state(seed=1)
        return crop(item)

    expected, found = sample(plain), sample(other)
    for key in ("image", "label"):
        assert torch.equal(expected[key].as_tensor(), found[key].as_tensor())
    assert expected["label"].max() > 0
    np.testing.assert_array_equal(LoadVolumed()({**files, "label": other})["label"][0].numpy(), label)


def test_all_48_orders_of_permuted_axes_come_back_and_4d_labels_of_one_volume_too(tmp_path):
    generator = np.random.default_rng(0)
    label, affine = (generator.random((5, 6, 7)) > 0.5).astype(np.uint8), np.diag([1.0, 2, 3, 1])
    image = written(tmp_path / "image.nii.gz", generator.normal(size=label.shape).astype(np.float32), affine)
    for order in ORDERS:
        voxels, own = reordered(label, affine, order)
        path = written(tmp_path / "label.nii.gz", voxels[..., None], own)
        np.testing.assert_array_equal(LoadVolumed()({"image": image, "label": path})["label"][0].numpy(), label)


@pytest.mark.parametrize("seed", range(6))
def test_a_label_that_is_elsewhere_is_refused(seed, scan, tmp_path):
    image, label = scan
    generator = np.random.default_rng(seed)
    affine = random_affine(generator)
    files = {"image": written(tmp_path / "image.nii.gz", image, affine)}
    size = np.linalg.norm(affine[:3, :3], axis=0)
    shifted, scaled, sheared, turned = affine.copy(), affine.copy(), affine.copy(), affine.copy()
    shifted[:3, 3] += generator.choice([-1, 1], 3) * generator.uniform(0.12, 30)
    scaled[:3, :3] *= generator.choice([0.5, 0.9, 1.1, 2.0])
    sheared[:3, 0] += affine[:3, 1] / size[1] * generator.uniform(0.1, 1)
    turned[:3, :3] = (
        Rotation.from_rotvec(generator.uniform(0.1, 0.5) * np.eye(3)[seed % 3]).as_matrix() @ affine[:3, :3]
    )
    for name, wrong in {"shifted": shifted, "scaled": scaled, "sheared": sheared, "turned": turned}.items():
        order = ORDERS[generator.integers(len(ORDERS))]
        path = written(tmp_path / f"{name}.nii.gz", *reordered(label, wrong, order))
        with pytest.raises(InputError) as error:
            LoadVolumed()({**files, "label": path})
        message = str(error.value)
        assert path in message and files["image"] in message and " mm" in message and message.endswith("."), message


@pytest.mark.parametrize("spacing", [0.3, 1.0, 5.0])
def test_the_tolerance_is_a_tenth_of_a_voxel_and_of_a_millimeter_at_every_corner(spacing):
    shape, affine = (512, 512, 800), np.diag([spacing, spacing, spacing, 1.0])
    voxels = np.broadcast_to(np.uint8(0), shape)
    limit = min(0.1, 0.1 * spacing)
    image = Grid.of("image", shape, affine)
    for fraction in (0.98, 1.02):
        shifted, stretched = affine.copy(), affine.copy()
        shifted[1, 3] = fraction * limit
        stretched[2, 2] += fraction * limit / (shape[2] - 1)
        for other in (shifted, stretched):
            label = Grid.of("label", shape, other, "label")
            if fraction < 1:
                assert on_image_grid(voxels, label, image).shape == shape
            else:
                with pytest.raises(InputError, match="mm"):
                    on_image_grid(voxels, label, image)


def test_headers_rounded_to_float32_are_one_grid():
    generator = np.random.default_rng(0)
    shape = (512, 512, 700)
    for _ in range(20):
        affine = random_affine(generator)
        label = Grid.of("label", shape, affine.astype(np.float32), "label")
        on_image_grid(np.broadcast_to(np.uint8(0), shape), label, Grid.of("image", shape, affine))


@pytest.mark.parametrize("identity", [np.eye(4), np.diag([-1.0, -1, 1, 1]), None])
def test_a_label_without_geometry_keeps_its_voxels_with_one_warning(identity, scan, tmp_path, caplog):
    """LiTS has labels with an identity affine; ITK's identity is another; None writes codes of 0."""
    image, label = scan
    files = {"image": written(tmp_path / "image.nii.gz", image, random_affine(np.random.default_rng(3)))}
    files["label"] = written(tmp_path / "label.nii.gz", label, identity)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(LoadVolumed()(files)["label"][0].numpy(), label)
    assert len(caplog.messages) == 1
    assert files["label"] in caplog.text and " mm" in caplog.text
    short = written(tmp_path / "short.nii.gz", label[1:], identity)
    with pytest.raises(InputError, match="is 8x9x9, its image .* is 9x9x9"):
        LoadVolumed()({**files, "label": short})


def test_an_image_without_geometry_takes_a_label_of_its_shape_with_a_warning(scan, tmp_path, caplog):
    image, label = scan
    files = {"image": written(tmp_path / "image.nii.gz", image, None)}
    files["label"] = written(tmp_path / "label.nii.gz", label, np.diag([1.0, 1, 1, 1]))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(LoadVolumed()(files)["label"][0].numpy(), label)
    assert files["image"] in caplog.text
    caplog.clear()
    alike = written(tmp_path / "alike.nii.gz", label, None)
    LoadVolumed()({**files, "label": alike})
    assert "med3d_ext.labels" not in {each.name for each in caplog.records}  # neither states a place, both are alike


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_label_of_another_format_is_placed_by_its_own_header(suffix, scan, tmp_path):
    itk = pytest.importorskip("itk")
    image, label = scan
    affine = random_affine(np.random.default_rng(7))
    files = {"image": written(tmp_path / "image.nii.gz", image, affine), "label": str(tmp_path / f"label{suffix}")}
    voxels, own = reordered(label, affine, ORDERS[29])
    lps = np.diag([-1.0, -1, 1, 1]) @ own
    stored = itk.image_from_array(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    size = np.linalg.norm(lps[:3, :3], axis=0)
    stored.SetSpacing(size.tolist())
    stored.SetOrigin(lps[:3, 3].tolist())
    stored.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / size)))
    itk.imwrite(stored, files["label"])
    np.testing.assert_array_equal(LoadVolumed()(files)["label"][0].numpy(), label)


def test_an_nrrd_without_a_space_states_no_place(scan, tmp_path, caplog):
    pytest.importorskip("itk")
    image, label = scan
    files = {"image": written(tmp_path / "image.nii.gz", image, random_affine(np.random.default_rng(7)))}
    files["label"] = str(tmp_path / "label.nrrd")
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 9 9 9\nspacings: 2 2 2\nencoding: raw\n\n"
    (tmp_path / "label.nrrd").write_bytes(header + label.tobytes(order="F"))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(LoadVolumed()(files)["label"][0].numpy(), label)
    assert "no place" in caplog.text


def test_a_label_on_either_form_of_the_images_header_is_on_its_grid(scan, tmp_path):
    """sform and qform may disagree, and ITK reads the qform where nibabel reads the sform."""
    image, label = scan
    qform = np.diag([2.0, 2, 2, 1])
    sform = qform.copy()
    sform[:3, 3] = [40, 0, 0]
    nifti = nibabel.Nifti1Image(image, sform)
    nifti.set_qform(qform, 1)
    nibabel.save(nifti, tmp_path / "image.nii.gz")
    for affine in (sform, qform):
        path = written(tmp_path / "label.nii.gz", *reordered(label, affine, ORDERS[5]))
        item = LoadVolumed()({"image": str(tmp_path / "image.nii.gz"), "label": path})
        np.testing.assert_array_equal(item["label"][0].numpy(), label)


@pytest.mark.parametrize("number", [0, 46])
def test_a_nifti_label_belongs_to_a_dicom_series_in_any_order_of_its_voxels(number, scan, tmp_path):
    pytest.importorskip("pydicom")
    write_series = importlib.import_module("dicom_files").write_series
    _, label = scan
    folder = write_series(tmp_path / "ct", label.astype(np.int16) * 100, (1.0, 1.3, 2.5), (5.0, -6.0, 7.0))
    image = load_volume(folder)
    stored = (image[0].numpy() > 0).astype(np.uint8)
    path = written(tmp_path / "label.nii.gz", *reordered(stored, image.affine.numpy(), ORDERS[number]))
    item = LoadVolumed()({"image": str(folder), "label": path})
    np.testing.assert_array_equal(item["label"][0].numpy(), stored)

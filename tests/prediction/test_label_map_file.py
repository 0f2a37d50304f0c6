"""Label maps on disk: the image's grid for every reader, the names in the header."""

from __future__ import annotations

from functools import partial
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from med3d_ext.io.label_maps import LabelMapWriter, read_label_names, write_label_map

LABELS = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.int32)
NAMES = {1: "liver & bile <duct>", 2: "Tumör"}
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.linalg.qr(np.array([[0.1, 1.0, 0.2], [1.0, -0.1, 0.3], [-0.2, -0.3, 1.0]]))[0] * [1.5, 1.0, 2.0]
AFFINE[:3, 3] = 5, -6, 7


def image(path, qform=0, sform=0, pixdim=(1.5, 1.0, 2.0)):
    """A NIfTI file with these forms' codes."""
    made = nibabel.Nifti1Image(np.zeros(LABELS.shape, np.int16), np.diag([*pixdim, 1.0]))
    made.set_qform(np.diag([*pixdim, 1.0]), code=qform)
    made.set_sform(AFFINE, code=sform)
    nibabel.save(made, path)
    return path


@pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 2), (3, 1), (1, 4)])
def test_the_header_says_of_the_grid_what_the_images_says(tmp_path, qform, sform):
    """Nibabel and ITK place a file without forms differently: only the same header gives both one grid."""
    itk = pytest.importorskip("itk")
    source = image(tmp_path / "image.nii.gz", qform, sform)
    affine = nibabel.load(source).affine
    write_label_map(tmp_path / "map.nii.gz", LABELS, affine, NAMES, source)
    headers = [nibabel.load(path).header for path in (source, tmp_path / "map.nii.gz")]
    assert [(int(each["qform_code"]), int(each["sform_code"])) for each in headers] == [(qform, sform)] * 2
    np.testing.assert_array_equal(*[each.get_best_affine() for each in headers])
    np.testing.assert_array_equal(*[each["pixdim"][:4] for each in headers])
    found = [itk.imread(str(path)) for path in (source, tmp_path / "map.nii.gz")]
    for fact in ("GetOrigin", "GetSpacing"):
        np.testing.assert_array_equal(*[np.array(getattr(each, fact)()) for each in found])
    np.testing.assert_array_equal(*[itk.array_from_matrix(each.GetDirection()) for each in found])


def test_without_a_nifti_image_the_affine_is_the_grid(tmp_path):
    write_label_map(tmp_path / "map.nii.gz", LABELS, AFFINE, NAMES, tmp_path / "scan.mha")
    found = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(found.dataobj), LABELS)
    assert found.get_data_dtype() == np.uint8


def test_names_of_any_letters_are_read_back(tmp_path):
    path = tmp_path / "map.nii.gz"
    write_label_map(path, LABELS, AFFINE, NAMES)
    assert read_label_names(path) == NAMES
    header = nibabel.load(path).header
    assert header.get_intent()[0] == "label"
    table = ElementTree.fromstring(header.extensions[0].get_content().rstrip(b"\0"))
    colors = [tuple(label.get(channel) for channel in ("Red", "Green", "Blue")) for label in table.iter("Label")]
    assert len(set(colors)) == 2
    nibabel.save(nibabel.Nifti1Image(LABELS.astype(np.uint8), AFFINE), path)
    assert read_label_names(path) == {}


def test_many_or_long_names_fit(tmp_path):
    names = {value: f"structure number {value}" for value in range(1, 120)}
    write_label_map(tmp_path / "map.nii", LABELS, AFFINE, names)
    assert read_label_names(tmp_path / "map.nii") == names


def test_large_values_are_kept(tmp_path):
    write_label_map(tmp_path / "map.nii.gz", LABELS * 300, AFFINE, {})
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "map.nii.gz").dataobj), LABELS * 300)


def test_a_map_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "map.nii.gz"
    write_label_map(path, LABELS, AFFINE, NAMES)
    before = path.read_bytes()

    def torn(content, target):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nibabel, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        write_label_map(path, LABELS * 0, AFFINE, NAMES)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["map.nii.gz"]


def test_monais_save_image_writes_the_same_file(tmp_path):
    """As the bundles' configs have it, with values as JSON has them."""
    source = image(tmp_path / "scan.nii.gz", sform=1)
    affine = nibabel.load(source).affine
    meta = {"filename_or_obj": str(source), "original_affine": affine, "spatial_shape": LABELS.shape}
    prediction = MetaTensor(torch.from_numpy(LABELS)[None], affine=torch.from_numpy(affine), meta=meta)
    writer = partial(LabelMapWriter, names={"0": "background", **{str(key): name for key, name in NAMES.items()}})
    save = SaveImage(
        tmp_path / "out", "seg", output_dtype=torch.uint8, resample=True, separate_folder=False, writer=writer
    )
    save(prediction)
    write_label_map(tmp_path / "map.nii.gz", LABELS, affine, NAMES, source)
    found, expected = (nibabel.load(path) for path in (tmp_path / "out" / "scan_seg.nii.gz", tmp_path / "map.nii.gz"))
    assert found.to_bytes() == expected.to_bytes()


def test_a_map_on_another_grid_is_brought_to_the_images(tmp_path):
    source = image(tmp_path / "scan.nii.gz", sform=1)
    affine = nibabel.load(source).affine
    turned = affine @ nibabel.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], LABELS.shape)
    meta = {"filename_or_obj": str(source), "original_affine": affine, "spatial_shape": LABELS.shape}
    flipped = torch.from_numpy(LABELS[::-1].copy())[None]
    prediction = MetaTensor(flipped, affine=torch.from_numpy(turned), meta=meta)
    options = {"resample": True, "separate_folder": False, "mode": "nearest"}
    SaveImage(tmp_path / "out", "seg", writer=partial(LabelMapWriter, names=NAMES), **options)(prediction)
    found = nibabel.load(tmp_path / "out" / "scan_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), LABELS)
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)

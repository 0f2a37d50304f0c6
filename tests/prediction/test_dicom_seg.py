"""DICOM in, on any grid; DICOM segmentations that lie on their slices."""

from __future__ import annotations

import importlib
import json
import sys

import nibabel
import numpy as np
import pytest
from perfect import body

from med3d_ext.io.dicom_series import single_series
from med3d_ext.tools.predict.dicom_seg import write_dicom_seg
from med3d_ext.transforms.load import load_volume

pytest.importorskip("pydicom")
write_series = importlib.import_module("dicom_files").write_series

pytestmark = pytest.mark.filterwarnings("ignore")

SAGITTAL = np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])  # rows to posterior, columns to inferior
OBLIQUE = np.linalg.qr(np.array([[1.0, 0.1, 0.2], [-0.1, 1.0, 0.3], [-0.2, -0.3, 1.0]]))[0]
FLIP_Z = np.diag([1.0, 1.0, -1.0])
DIRECTIONS = [np.eye(3), FLIP_Z, SAGITTAL, SAGITTAL @ FLIP_Z, OBLIQUE]
LABEL = body((20, 17, 14))
TAGS = {"FrameOfReferenceUID": "1.2.9", "PatientID": "p1", "PatientName": "A^B", "SeriesNumber": 4}


def series(folder, directions=DIRECTIONS[0], tags=TAGS):
    stored = np.where(LABEL, 250, -200).astype(np.int16)
    return write_series(folder, stored, (1.0, 1.3, 2.5), (5.0, -6.0, 7.0), directions, tags=tags)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_series_on_any_grid_gives_a_map_on_that_grid(predict, tmp_path, directions):
    folder = series(tmp_path / "ct", directions)
    assert predict(folder) == 0
    found, source = nibabel.load(tmp_path / "out" / "ct_seg.nii.gz"), load_volume(folder)
    np.testing.assert_array_equal(np.asarray(found.dataobj), source[0].numpy() > 0)
    np.testing.assert_allclose(found.affine, source.affine.numpy(), atol=1e-4)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_each_frame_of_a_segmentation_is_the_mask_of_the_slice_that_it_names(predict, tmp_path, directions):
    pytest.importorskip("highdicom")
    import pydicom

    folder = series(tmp_path / "ct", directions)
    assert predict(folder, "--dicom_seg") == 0
    segmentation = pydicom.dcmread(tmp_path / "out" / "ct_seg.dcm")
    (segment,) = segmentation.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentedPropertyTypeCodeSequence[0].CodeValue) == ("liver", "10200004")
    assert (segmentation.PatientID, segmentation.FrameOfReferenceUID) == ("p1", "1.2.9")
    slices = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, single_series(folder).files)}
    assert len(segmentation.PerFrameFunctionalGroupsSequence) == LABEL.any(axis=(0, 1)).sum()
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence):
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        source = slices.pop(reference)
        np.testing.assert_array_equal(frame > 0, source.pixel_array > 0)
        assert groups.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    assert not any((source.pixel_array > 0).any() for source in slices.values())


def test_an_empty_map_is_a_segmentation_too(predict, tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    folder = write_series(tmp_path / "head", np.full((9, 8, 7), 40, np.int16), tags=TAGS)
    assert predict(folder, "--dicom_seg") == 0
    assert pydicom.dcmread(tmp_path / "out" / "head_seg.dcm").pixel_array.sum() == 0


def test_an_anonymized_series_has_a_segmentation_and_one_without_a_place_has_a_sentence(predict, tmp_path):
    pytest.importorskip("highdicom")
    assert predict(series(tmp_path / "a", tags={"FrameOfReferenceUID": "1.2.9"}), "--dicom_seg") == 0
    assert predict(series(tmp_path / "b", tags={}), "--dicom_seg") == 1
    (failed,) = json.loads((tmp_path / "out" / "summary.json").read_text())["failed"]
    assert "No DICOM segmentation of" in failed["reason"] and "leave out --dicom_seg" in failed["reason"]
    assert not list((tmp_path / "out").glob("b_*"))


def test_a_segmentation_is_added_to_a_result_that_is_there_and_only_for_dicom(predict, tmp_path, nifti):
    pytest.importorskip("highdicom")
    inputs = series(tmp_path / "ct"), nifti(tmp_path / "scan.nii.gz", np.where(LABEL, 250, -200).astype(np.int16))
    assert predict(*inputs) == 0
    assert predict(*inputs, "--dicom_seg") == 0
    content = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert ([each["case"] for each in content["done"]], content["skipped"]) == (["ct"], ["scan"])
    assert [path.name for path in (tmp_path / "out").glob("*.dcm")] == ["ct_seg.dcm"]


def test_without_highdicom_the_command_says_what_to_install(predict, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert predict(series(tmp_path / "ct"), "--dicom_seg") == 2
    assert "pip install highdicom" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("liver", "123037004", "10200004"),
        ("left lung", "123037004", "44029006"),
        ("Right_Lung", "123037004", "3341006"),
        ("liver tumor", "49755003", "108369006"),
        ("something else", "85756007", "85756007"),
        ("", "85756007", "85756007"),
    ],
)
def test_structures_have_the_codes_of_snomed(name, category, kind):
    from med3d_ext.tools.predict.dicom_seg import _codes

    assert tuple(code.value for code in _codes(name)) == (category, kind)


def test_values_with_gaps_become_segments_without(tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    folder = series(tmp_path / "ct")
    labels = np.where(LABEL, 300, 0).astype(np.uint16)
    labels[np.nonzero(LABEL)[0][0]] = np.where(LABEL[np.nonzero(LABEL)[0][0]], 7, 0)
    write_dicom_seg(tmp_path / "a.dcm", labels, {7: "spleen", 300: "liver", 9: "gall bladder"}, folder, "x", "0")
    segmentation = pydicom.dcmread(tmp_path / "a.dcm")
    names = {int(segment.SegmentNumber): segment.SegmentLabel for segment in segmentation.SegmentSequence}
    assert names == {1: "spleen", 2: "gall bladder", 3: "liver"}
    counts = dict.fromkeys(names, 0)
    for frame, groups in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence):
        counts[int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)] += np.count_nonzero(frame)
    assert counts == {1: np.count_nonzero(labels == 7), 2: 0, 3: np.count_nonzero(labels == 300)}

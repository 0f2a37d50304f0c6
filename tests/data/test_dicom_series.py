"""DICOM series: found, checked and read in the right order, or refused by name."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_frames, write_series, write_slice

from med3d_ext.data.datalists import list_images
from med3d_ext.errors import InputError
from med3d_ext.io.dicom_series import check_series, find_series, read_series, single_series
from med3d_ext.transforms.load import LoadVolumed, load_volume

VOXELS = np.random.default_rng(0).integers(-2000, 2000, (5, 6, 7)).astype(np.int16)
SPACING, ORIGIN = (0.5, 0.75, 2.5), (-10.0, 20.0, -300.5)
FLIP_Z = np.diag([1.0, 1.0, -1.0])
SAGITTAL = np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])  # rows to posterior, columns to inferior
OBLIQUE = np.linalg.qr(np.array([[1.0, 0.1, 0.2], [-0.1, 1.0, 0.3], [-0.2, -0.3, 1.0]]))[0]


def refusal(place: Path, named: str = "") -> str:
    with pytest.raises(InputError) as error:
        check_series(single_series(place))
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and (named or str(place)) in message, message
    return message


def test_a_real_series_is_read_in_the_order_of_its_positions(real_data: Path) -> None:
    folder = real_data / "dicom_hippocampus"
    series = single_series(folder)
    check_series(series)
    assert [file.name for file in series.files] == [f"{number}.dcm" for number in range(1, 33)]
    assert (series.modality, series.description, len(series.files)) == ("MR", "HippoCrop", 32)
    assert series.spacing == (1.0, 1.0, 1.0)
    volume = load_volume(folder)
    assert volume.shape == (1, 35, 51, 32)
    np.testing.assert_allclose(volume.affine.numpy(), [[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
    assert volume.std() > 0


@pytest.mark.parametrize("directions", [np.eye(3), FLIP_Z, SAGITTAL, SAGITTAL @ FLIP_Z, OBLIQUE])
def test_every_voxel_lies_where_its_header_puts_it(tmp_path: Path, directions: np.ndarray) -> None:
    voxels = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    write_series(tmp_path, voxels, SPACING, ORIGIN, directions)
    volume = load_volume(tmp_path)
    for corner in itertools.product((0, 4), (0, 5), (0, 6)):
        stored = np.unravel_index(int(volume[(0, *corner)]), voxels.shape)
        lps = np.array(ORIGIN) + directions @ (np.array(SPACING) * stored)
        found = volume.affine.numpy() @ [*corner, 1]
        np.testing.assert_allclose(found[:3], lps * [-1, -1, 1], atol=1e-4)


def test_both_orders_of_slices_and_names_give_one_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "up", VOXELS, SPACING, ORIGIN)
    last = (*ORIGIN[:2], ORIGIN[2] + 6 * SPACING[2])
    write_series(tmp_path / "down", VOXELS[:, :, ::-1], SPACING, last, FLIP_Z, names="z{}.dcm")
    up, down = load_volume(tmp_path / "up"), load_volume(tmp_path / "down")
    np.testing.assert_array_equal(up[0].numpy(), VOXELS)
    np.testing.assert_array_equal(up.numpy(), down.numpy())
    np.testing.assert_allclose(up.affine.numpy(), down.affine.numpy(), atol=1e-6)


@pytest.mark.parametrize("stored", [VOXELS, (VOXELS.astype(int) + 30000).astype(np.uint16)])
def test_values_are_those_after_slope_and_intercept(tmp_path: Path, stored: np.ndarray) -> None:
    for slope, skip in (("0.5", [3]), ("0.25", [0, 1, 2, 4, 5, 6])):  # each slice has its own
        write_series(tmp_path, stored, tags={"RescaleSlope": slope, "RescaleIntercept": "-1024"}, skip=skip)
    expected = stored * np.where(np.arange(7) == 3, 0.25, 0.5) - 1024
    np.testing.assert_array_equal(load_volume(tmp_path)[0].numpy(), expected)


def test_files_need_no_extension_and_may_lie_deeper_among_others(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "series", VOXELS, names="IM{}")
    (tmp_path / "study" / "notes.txt").write_text("hello")
    (tmp_path / "study" / "readers.xml").write_text("<a/>")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "study" / "._IM0").write_bytes(b"\0" * 128 + b"DICM")
    write_slice(
        tmp_path / "report.dcm", VOXELS[:, :, 0], {"Modality": "SR", "SOPInstanceUID": "1.9", "PixelData": None}
    )
    assert single_series(tmp_path).folder == tmp_path / "study" / "series"
    np.testing.assert_array_equal(load_volume(tmp_path)[0].numpy(), VOXELS)


def test_the_checks_of_every_volume_hold_for_dicom(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS, tags={"PixelSpacing": None})
    with pytest.raises(InputError, match="no usable voxel spacing"):
        LoadVolumed("image")({"image": tmp_path / "a"})
    volume = load_volume(write_series(tmp_path / "b", VOXELS, SPACING))
    assert volume.meta["filename_or_obj"] == str(tmp_path / "b")
    assert volume.meta["spatial_shape"].tolist() == [5, 6, 7]


def test_two_series_are_refused_with_both_named(tmp_path: Path) -> None:
    write_series(tmp_path, VOXELS, uid="1.2.3", names="a{}")
    write_series(tmp_path, VOXELS, uid="1.2.4", names="b{}", tags={"SeriesDescription": "SCOUT"})
    assert [series.uid for series in find_series(tmp_path)] == ["1.2.3", "1.2.4"]
    message = refusal(tmp_path)
    assert "1.2.3 (CT, CHEST, 7 files) and 1.2.4 (CT, SCOUT, 7 files)" in message
    with pytest.raises(InputError, match="holds 2 DICOM series"):
        load_volume(tmp_path)


def test_missing_slices_are_counted_and_named(tmp_path: Path) -> None:
    write_series(tmp_path / "one", VOXELS, SPACING, skip=[3])
    message = refusal(tmp_path / "one")
    assert "misses 1 slice between '2.dcm' and '4.dcm' (5.00 and 10.00 mm)" in message
    write_series(tmp_path / "two", VOXELS, SPACING, ORIGIN, FLIP_Z, skip=[2, 3])
    assert "misses 2 slices between '4.dcm' and '1.dcm'" in refusal(tmp_path / "two")


def test_uneven_spacing_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS, SPACING)
    write_series(tmp_path / "a", VOXELS, SPACING, origin=(0, 0, 1.0), skip=range(5))
    assert "uneven slice spacing: '4.dcm' and '5.dcm'" in refusal(tmp_path / "a")
    stack = np.zeros((4, 4, 100), np.int16)  # no gap is far off, but they add up
    write_series(tmp_path / "b", stack, (1, 1, 1.0), skip=range(50, 100))
    write_series(tmp_path / "b", stack, (1, 1, 1.06), (0, 0, -3.0), skip=range(50))
    assert "uneven slice spacing" in refusal(tmp_path / "b")
    for number, place in enumerate([0, 3, 6, 9, 12, 18, 24, 30]):  # a spacing that changes is no missing slice
        write_series(tmp_path / "c", VOXELS[:, :, :1], (1, 1, 1), (0, 0, place), names=f"{number}")
    assert "uneven slice spacing" in refusal(tmp_path / "c")
    for number in range(12):  # positions are often rounded to a tenth of a millimeter
        place = (0, 0, round(0.625 * number, 1))
        write_series(tmp_path / "d", VOXELS[:, :, :1], (1, 1, 1), place, names=f"{number}")
    series = single_series(tmp_path / "d")
    check_series(series)
    assert series.spacing[2] == pytest.approx(6.9 / 11)


def warned(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is warned of while a folder is read that must give VOXELS."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "med3d_ext"):
        image = LoadVolumed("image")({"image": str(folder)})["image"]
    np.testing.assert_array_equal(image[0].numpy(), VOXELS)
    return [record.getMessage() for record in caplog.records]


def test_two_slices_at_one_position_are_refused_unless_they_are_copies(tmp_path: Path, caplog) -> None:
    write_series(tmp_path, VOXELS, SPACING)
    write_series(tmp_path, VOXELS, SPACING, names="copy{}.dcm")
    (sentence,) = warned(tmp_path, caplog)
    assert "holds copies of slices, of which one is kept: 7, 'copy0.dcm' next to '0.dcm' first" in sentence
    write_series(tmp_path, VOXELS, SPACING, names="new{}.dcm", skip=range(1, 7), tags={"SOPInstanceUID": "1.9"})
    assert "of which one is kept: 8" in warned(tmp_path, caplog)[0]
    write_series(tmp_path, VOXELS + 10, SPACING, names="late{}.dcm")
    assert "two slices at one position: '0.dcm' and 'late0.dcm' (0.00 and 0.00 mm)" in refusal(tmp_path)


OTHERS = {
    "SEG": ("1.2.840.10008.5.1.4.1.1.66.4", {"Modality": "SEG"}),
    "RTDOSE": ("1.2.840.10008.5.1.4.1.1.481.2", {"Modality": "RTDOSE", "NumberOfFrames": 1}),
    "RTSTRUCT": ("1.2.840.10008.5.1.4.1.1.481.3", {"Modality": "RTSTRUCT", "PixelData": None}),
    "SR": ("1.2.840.10008.5.1.4.1.1.88.33", {"Modality": "SR", "PixelData": None}),
    "secondary capture": ("1.2.840.10008.5.1.4.1.1.7", {"ImagePositionPatient": None, "SeriesInstanceUID": "1.2.8"}),
    "localizer": ("1.2.840.10008.5.1.4.1.1.2", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("uid", ["1.2.3", "1.2.8"])
def test_what_is_no_slice_of_the_scan_is_set_aside_with_a_warning(kind, uid, tmp_path: Path, caplog) -> None:
    write_series(tmp_path, VOXELS, SPACING)
    sop_class, tags = OTHERS[kind]
    facts = {"SeriesInstanceUID": uid, "SOPInstanceUID": "1.9", "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    write_slice(tmp_path / "other", VOXELS[:, :, 0], {**facts, "ImagePositionPatient": [0, 0, 0], **tags}, sop_class)
    (sentence,) = warned(tmp_path, caplog)
    assert f"ignored: {kind} ('other')" in sentence
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "other").rename(alone / "other")
    refusal(alone)


def frames_of(tmp_path: Path, order: list[int], **options) -> Path:
    return write_frames(tmp_path / "frames.dcm", VOXELS, order, SPACING, **options)


@pytest.mark.parametrize("seed", range(2))
def test_frames_of_a_file_are_read_as_the_slices_of_a_series_whatever_their_order(seed, tmp_path: Path) -> None:
    """With slopes of their own: the stored values differ from frame to frame."""
    write_series(tmp_path / "series", VOXELS, SPACING, ORIGIN, tags={"RescaleIntercept": -1024})
    expected = load_volume(tmp_path / "series")
    order = np.random.default_rng(seed).permutation(7).tolist()
    for slopes in (None, (1 + 0.5 * np.arange(7)).tolist()):
        file = frames_of(tmp_path / "file", order, slopes=slopes)
        for place in (file, file.parent):
            volume = load_volume(place)
            factor = np.ones(7)
            factor[order] = slopes or 1
            np.testing.assert_array_equal(volume[0].numpy(), VOXELS * factor.astype(np.float32) - 1024)
            np.testing.assert_allclose(volume.affine.numpy(), expected.affine.numpy(), atol=1e-6)
    bare = file.rename(file.with_name("IM7"))
    np.testing.assert_array_equal(load_volume(bare).numpy(), volume.numpy())


def test_frames_that_are_no_single_stack_are_refused(tmp_path: Path) -> None:
    every = list(range(7))
    assert "misses 2 slices between frame 2 of" in refusal(frames_of(tmp_path, [0, 1, 4, 5, 6]))
    assert "two slices at one position: frame 1 of" in refusal(frames_of(tmp_path, every * 2, slopes=[1] * 7 + [2] * 7))
    halves = [{"StackID": str(number // 4)} for number in every]
    assert "2 stacks or points in time" in refusal(frames_of(tmp_path, every, groups=halves))
    times = [{"TemporalPositionIndex": 1 + number % 2} for number in every]
    assert "2 stacks or points in time" in refusal(frames_of(tmp_path, every, groups=times))
    bare = {"SharedFunctionalGroupsSequence": None, "PerFrameFunctionalGroupsSequence": None}
    assert "without their positions" in refusal(frames_of(tmp_path, every, tags=bare))
    assert "7 frames and describes 2" in refusal(
        frames_of(tmp_path, [0, 1], tags={"NumberOfFrames": 7, "PixelData": VOXELS.T.tobytes()})
    )


@pytest.mark.parametrize(("bits", "kind"), [(16, np.uint16), (12, np.uint16), (16, np.int16)])
def test_monochrome1_says_how_to_show_values_not_what_they_are(bits, kind, tmp_path: Path, caplog) -> None:
    stored = (VOXELS if kind == np.int16 else np.abs(VOXELS) % 4096).astype(kind)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": "0.5", "RescaleIntercept": "-1024"}
    write_series(tmp_path, stored, SPACING, tags={**tags, "PhotometricInterpretation": "MONOCHROME1"})
    np.testing.assert_array_equal(load_volume(tmp_path)[0].numpy(), stored * 0.5 - 1024)
    with caplog.at_level(logging.WARNING, "med3d_ext"):
        LoadVolumed("image")({"image": str(tmp_path)})
    assert len(caplog.records) == 1 and "MONOCHROME1" in caplog.text


def test_files_without_a_preamble_are_found_and_read(tmp_path: Path) -> None:
    for file in list(write_series(tmp_path / "a", VOXELS, SPACING).iterdir()):
        data = pydicom.dcmread(file)
        del data.file_meta
        (tmp_path / "b").mkdir(exist_ok=True)
        pydicom.dcmwrite(
            tmp_path / "b" / file.stem, data, implicit_vr=True, little_endian=True, enforce_file_format=False
        )
    np.testing.assert_array_equal(load_volume(tmp_path / "b")[0].numpy(), VOXELS)
    assert [item["image"] for item in list_images(tmp_path)] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_single_slice_and_frames_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS)
    assert "single slice, '3.dcm'; give the folder of the whole series" in refusal(tmp_path / "a" / "3.dcm", "a")
    write_series(tmp_path / "b", VOXELS[:, :, :1], tags={"NumberOfFrames": 2, "PixelData": VOXELS[:, :, :2].tobytes()})
    assert "0.dcm' holds frames without their positions" in refusal(tmp_path / "b")


def test_mixed_orientations_and_grids_and_a_tilted_gantry_are_refused(tmp_path: Path) -> None:
    tilted = np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1.0]])
    write_series(tmp_path / "c", VOXELS, SPACING, ORIGIN, tilted)
    assert "is sheared: '0.dcm' and '6.dcm' are 4.50 mm out of line" in refusal(tmp_path / "c")
    write_series(tmp_path / "a", VOXELS, skip=[6])
    write_series(tmp_path / "a", VOXELS, directions=SAGITTAL, skip=range(6))
    assert "mixes orientations: those of '0.dcm' and '6.dcm'" in refusal(tmp_path / "a")
    write_series(tmp_path / "b", VOXELS, skip=[6])
    write_series(tmp_path / "b", VOXELS[:4], skip=range(6))
    assert "mixes pixel grids: those of '0.dcm' and '6.dcm'" in refusal(tmp_path / "b")


def test_files_without_position_or_with_a_senseless_one_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS, tags={"ImagePositionPatient": None})
    assert "0.dcm' states no position" in refusal(tmp_path / "a")
    write_series(tmp_path / "b", VOXELS, tags={"ImagePositionPatient": ["1", "2"]})
    assert "0.dcm' states '1\\2' as Image Position (Patient), which must be 3 number(s)" in refusal(tmp_path / "b")
    write_series(tmp_path / "d", VOXELS, origin=(-12.25, 0, 0))
    for file in (tmp_path / "d").iterdir():
        file.write_bytes(file.read_bytes().replace(b"-12.25", b"minus9"))
    assert "0.dcm' states 'minus9\\0.0\\0.0'" in refusal(tmp_path / "d")
    write_series(tmp_path / "c", VOXELS, tags={"SeriesInstanceUID": None})
    assert "without a series UID" in refusal(tmp_path / "c")


def test_damaged_files_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VOXELS)
    whole = (tmp_path / "a" / "4.dcm").read_bytes()
    for content in (whole[: len(whole) - 40], whole[:200], b"hello", b""):
        (tmp_path / "a" / "4.dcm").write_bytes(content)
        assert "4.dcm' cannot be read as a DICOM image" in refusal(tmp_path / "a")
    (tmp_path / "b").mkdir()
    assert "holds no DICOM image" in refusal(tmp_path / "b")
    assert "is not a folder" in refusal(tmp_path / "c")
    series = single_series(write_series(tmp_path / "d", VOXELS))
    (tmp_path / "d" / "4.dcm").write_bytes(b"")  # after the headers were read
    with pytest.raises(InputError, match="4.dcm' cannot be read"):
        read_series(series)

"""Image files: one volume in every format, header and compression, and no damage that goes unnoticed."""

from __future__ import annotations

import bz2
import gzip
import itertools
import logging
import zlib
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest

from med3d_ext.errors import InputError
from med3d_ext.io.image_files import is_dicom, read_header, read_volume
from med3d_ext.transforms.load import LoadVolumed, load_volume

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
AFFINE = np.array([[0.0, -2, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
LPS = np.diag([-1.0, -1, 1, 1])
NRRD_TYPES = {"int8": "int8", "uint8": "uchar", "int16": "short", "uint16": "ushort", "int32": "int"}
NRRD_TYPES |= {"int64": "longlong", "float32": "float", "float64": "double"}


def nrrd(path: Path, voxels: np.ndarray, encoding: str = "gzip", big: bool = False, header: str = "") -> Path:
    """A NRRD file in LPS; ``header`` takes the place of the lines on space."""
    affine = LPS @ AFFINE
    vectors = " ".join("(" + ",".join(map(str, affine[:3, axis])) + ")" for axis in range(3))
    origin = "(" + ",".join(map(str, affine[:3, 3])) + ")"
    space = header or f"space: left-posterior-superior\nspace directions: {vectors}\nspace origin: {origin}\n"
    lines = f"NRRD0004\ntype: {NRRD_TYPES[voxels.dtype.name]}\ndimension: {voxels.ndim}\n{space}"
    lines += (
        f"sizes: {' '.join(map(str, voxels.shape))}\nendian: {'big' if big else 'little'}\nencoding: {encoding}\n\n"
    )
    content = voxels.astype(voxels.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    path.write_bytes(lines.encode() + {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding](content))
    return path


def meta(path: Path, voxels: np.ndarray, compressed: bool, header: str | None = None) -> Path:
    """A MetaImage without the size of its compressed voxels, which ITK itself reads as noise."""
    affine = LPS @ AFFINE
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if header is None:
        numbers = (affine[:3, :3] / spacing).T.ravel()
        header = f"TransformMatrix = {' '.join(map(str, numbers))}\nElementSpacing = {' '.join(map(str, spacing))}\n"
        header += f"Offset = {' '.join(map(str, affine[:3, 3]))}\n"
    lines = f"ObjectType = Image\nNDims = {voxels.ndim}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    lines += f"CompressedData = {compressed}\n{header}DimSize = {' '.join(map(str, voxels.shape))}\n"
    lines += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    content = voxels.astype("<i2").tobytes(order="F")
    path.write_bytes(lines.encode() + (zlib.compress(content) if compressed else content))
    return path


def one_of_each(folder: Path) -> dict[Path, int]:
    """Files that all hold VOXELS, each with the number of bytes of its header."""
    plain = nibabel.Nifti1Image(VOXELS, AFFINE).to_bytes()
    (folder / "a.nii").write_bytes(plain)
    (folder / "b.nii.gz").write_bytes(gzip.compress(plain))
    files = [folder / "a.nii", folder / "b.nii.gz"]
    files += [nrrd(folder / f"{encoding}.nrrd", VOXELS, encoding) for encoding in ("raw", "gzip", "bzip2")]
    files += [meta(folder / f"{number}.mha", VOXELS, bool(number)) for number in (0, 1)]
    return {file: {".nii": 352, ".gz": 40}.get(file.suffix, file.stat().st_size // 2) for file in files}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_volume(path)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and path.name in message, message
    return message


def test_every_format_gives_the_same_volume_at_the_same_place(tmp_path):
    for file in one_of_each(tmp_path):
        voxels, header = read_volume(file)
        np.testing.assert_array_equal(voxels, VOXELS)
        np.testing.assert_allclose(header.affine, AFFINE, atol=1e-6)
        np.testing.assert_allclose(header.spacing, [1.5, 2, 3], atol=1e-6)
        assert header.is_oriented and voxels.dtype == np.float32


@pytest.mark.parametrize("kind", NRRD_TYPES)
def test_every_type_and_byte_order_of_a_nrrd_is_read(kind, tmp_path):
    voxels = (np.arange(6 * 7 * 8).reshape(6, 7, 8) % 120).astype(kind)
    for big in (False, True):
        np.testing.assert_array_equal(read_volume(nrrd(tmp_path / "a.nrrd", voxels, big=big))[0], voxels)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_what_itk_writes_is_read_as_itk_reads_it(ending, compressed, kind, tmp_path):
    image = itk.image_from_array((np.random.default_rng(1).random((5, 4, 3)) * 100).astype(kind))
    image.SetSpacing([0.5, 2, 3])
    image.SetOrigin([1, 2, 3])
    image.SetDirection(itk.matrix_from_array(np.array([[0, 1.0, 0], [0, 0, -1], [1, 0, 0]])))
    itk.imwrite(image, str(tmp_path / f"a{ending}"), compression=compressed)
    voxels, header = read_volume(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(voxels, itk.array_from_image(image).T.astype(np.float32))
    for corner in itertools.product((0, 2), (0, 3), (0, 4)):
        point = np.array(image.TransformIndexToPhysicalPoint([int(each) for each in corner]))
        np.testing.assert_allclose((header.affine @ [*corner, 1])[:3], point * [-1, -1, 1], atol=1e-6)


def test_no_cut_and_no_changed_byte_of_a_compressed_stream_goes_unnoticed(tmp_path):
    """Of 200 places. A byte that was changed may also fill up the stream: then the voxels are still the same."""
    rng = np.random.default_rng(0)
    for file, start in one_of_each(tmp_path).items():
        whole = file.read_bytes()
        for end in rng.integers(start, len(whole), 15):
            file.write_bytes(whole[:end])
            refusal(file)
        if file.name in ("a.nii", "raw.nrrd", "0.mha"):
            continue  # nothing tells a changed voxel from another
        for place in rng.integers(len(whole) - 200, len(whole), 25):
            changed = bytearray(whole)
            changed[place] ^= 0xFF
            file.write_bytes(changed)
            try:
                np.testing.assert_array_equal(load_volume(file)[0].numpy(), VOXELS)
            except InputError as error:
                assert file.name in str(error)


def test_a_stream_of_its_full_length_with_a_wrong_checksum_is_refused(tmp_path):
    content = bytearray(gzip.compress(nibabel.Nifti1Image(VOXELS, AFFINE).to_bytes(), 0))  # level 0 stores
    content[1000] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert "CRC" in refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("rest", [b"garbage", b"\0" * 600, gzip.compress(b"more", mtime=0)])
def test_what_follows_the_voxels_is_refused_unless_it_fills_up_with_zeros(rest, tmp_path):
    for file in one_of_each(tmp_path):
        file.write_bytes(file.read_bytes() + rest)
        if rest.strip(b"\0"):
            refusal(file)
        else:
            np.testing.assert_array_equal(read_volume(file)[0], VOXELS)


def test_names_lie_and_contents_count(tmp_path):
    plain = nibabel.Nifti1Image(VOXELS, AFFINE).to_bytes()
    contents = {"A.NII.GZ": gzip.compress(plain), "plain.nii.gz": plain, "packed.nii": gzip.compress(plain)}
    contents["no_ending"] = plain
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(load_volume(tmp_path / name)[0].numpy(), VOXELS)
        np.testing.assert_allclose(read_header(tmp_path / name).affine, AFFINE)
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress(gzip.compress(plain)))
    assert "compressed twice" in refusal(tmp_path / "twice.nii.gz")
    (tmp_path / "page.nii.gz").write_text("<!DOCTYPE html>" + " " * 1000)
    assert "neither NIfTI, NRRD, MetaImage nor DICOM" in refusal(tmp_path / "page.nii.gz")


@pytest.mark.parametrize("ones", [(1,), (1, 1), (1, 1, 1)])
def test_axes_of_length_one_after_the_third_say_nothing(ones, tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(VOXELS.reshape(*VOXELS.shape, *ones), AFFINE), path)
    assert read_header(path).shape == VOXELS.shape
    np.testing.assert_array_equal(load_volume(path)[0].numpy(), VOXELS)
    lines = "spacings: 1.5 2 3" + " 1" * len(ones) + "\n"
    path = nrrd(tmp_path / "a.nrrd", VOXELS.reshape(*VOXELS.shape, *ones), header=lines)
    np.testing.assert_array_equal(load_volume(path)[0].numpy(), VOXELS)


def test_several_volumes_colors_and_complex_numbers_are_refused_and_real_ones_taken(nifti, tmp_path):
    pair = np.stack([VOXELS] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(pair[:, :, :, None], AFFINE), tmp_path / "a.nii")
    assert "6x7x8x2" in refusal(tmp_path / "a.nii")
    assert "6x7x8x2" in refusal(nrrd(tmp_path / "a.nrrd", pair, header="spacings: 1 1 1 1\n"))
    np.testing.assert_array_equal(load_volume(nifti(tmp_path / "a.nii", pair), 1)[0].numpy(), VOXELS)
    colors = np.zeros(VOXELS.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colors, AFFINE), tmp_path / "c.nii")
    assert "color" in refusal(tmp_path / "c.nii")
    numbers = VOXELS.astype(np.complex64)
    np.testing.assert_array_equal(load_volume(nifti(tmp_path / "d.nii.gz", numbers))[0].numpy(), VOXELS)
    numbers[3, 3, 3] += 1j
    assert "complex" in refusal(nifti(tmp_path / "d.nii.gz", numbers))


@pytest.mark.parametrize(("slope", "intercept", "expected"), [(1, np.nan, (1, 0)), (2, np.nan, (2, 0)), (0, 5, (1, 0))])
def test_a_slope_without_an_intercept_has_none(slope, intercept, expected, nifti, tmp_path):
    path = nifti(tmp_path / "a.nii", VOXELS, AFFINE)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(load_volume(path)[0].numpy(), VOXELS * expected[0] + expected[1])


def warnings_of(path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "med3d_ext"):
        LoadVolumed("image", default_spacing=(1, 2, 3))({"image": str(path)})
    return [record.getMessage() for record in caplog.records]


def test_a_header_without_orientation_or_spacing_is_warned_of_once(nifti, tmp_path, caplog):
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    spaces = (
        "",
        "space: scanner-xyz\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n",
        "space: 3D-right-handed\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n",
    )
    bare = [tmp_path / "a.nii.gz", meta(tmp_path / "a.mha", VOXELS, False, "ElementSpacing = 1 2 3\n")]
    bare += [
        nrrd(tmp_path / f"{number}.nrrd", VOXELS, header=text or "spacings: 1 1 1\n")
        for number, text in enumerate(spaces)
    ]
    for path in bare:
        (sentence,) = warnings_of(path, caplog)
        assert str(path) in sentence and "states no orientation" in sentence
    sizeless = [nifti(tmp_path / "b.nii", VOXELS, pixdim=(0, 1, 1)), meta(tmp_path / "b.mha", VOXELS, True, "")]
    sizeless.append(nrrd(tmp_path / "b.nrrd", VOXELS, header="content: nothing\n"))
    for path in sizeless:
        (sentence,) = warnings_of(path, caplog)
        assert str(path) in sentence and "no usable voxel spacing (0 or NaN): 1.00 x 2.00 x 3.00 mm" in sentence
        with pytest.raises(InputError, match="no usable voxel spacing"):
            LoadVolumed("image")({"image": str(path)})
    for path in one_of_each(tmp_path):
        assert warnings_of(path, caplog) == []


def test_voxels_elsewhere_are_found_or_missed_by_name(tmp_path):
    whole = meta(tmp_path / "a.mha", VOXELS, False).read_bytes()
    header, voxels = whole.split(b"LOCAL\n")
    (tmp_path / "a.mhd").write_bytes(header + b"a b.raw\n")
    assert "'" + str(tmp_path / "a b.raw") + "', which does not exist" in refusal(tmp_path / "a.mhd")
    (tmp_path / "a b.raw").write_bytes(voxels)
    np.testing.assert_array_equal(load_volume(tmp_path / "a.mhd")[0].numpy(), VOXELS)
    (tmp_path / "a.mhd").write_bytes(header + b"LIST\na b.raw\n")
    assert "several files" in refusal(tmp_path / "a.mhd")


def test_dicom_is_known_by_its_mark_its_name_or_its_first_tag(tmp_path):
    implicit, explicit = b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100", b"\x08\0\x05\0CS\x0a\0ISO_IR 100"
    contents = {"mark": b"\0" * 128 + b"DICM", "name.DCM": b"", "implicit": implicit, "explicit": explicit}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert is_dicom(tmp_path / name), name
    for name, content in {"text": b"hello", "zeros": bytes(200), "empty": b"", "numbers": bytes(range(200))}.items():
        (tmp_path / name).write_bytes(content)
        assert not is_dicom(tmp_path / name), name

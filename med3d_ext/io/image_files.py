"""Image files other than DICOM: which format a file has, what its header states, and its voxels to the last byte.

A format is known by its first bytes, not by its name. Every compressed stream is read to its end and its checksum, and
the voxels must be as many as the header says: readers that stop at the last voxel accept a damaged copy in silence.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, correct_nifti_header_if_necessary

from med3d_ext.errors import InputError
from med3d_ext.io import itk_files
from med3d_ext.io.itk_files import CHUNK, Header, as_float32, check_rest

_PAIR = (".hdr", ".img")
_GZIP = b"\x1f\x8b"
# nibabel prints what it repairs in a header; what matters is checked here.
logging.getLogger("nibabel.global").setLevel(logging.ERROR)


def is_nifti(path: str | os.PathLike) -> bool:
    """Whether a file is there and is NIfTI."""
    try:
        return os.path.isfile(path) and _format(path) == "NIfTI"
    except (OSError, EOFError, zlib.error, InputError):
        return False


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file calls itself DICOM: by its mark, its name, or a first tag as files without that mark have it."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM" or str(path).lower().endswith(".dcm"):
        return True
    # Group 0002 or 0008 comes first; the length of its first tag is small, or two capitals name the tag's type.
    is_first = start[:2] in (b"\2\0", b"\x08\0") and start[2:4] in [bytes((n, 0)) for n in (0, 1, 2, 5, 6, 8, 18, 22)]
    return is_first and (start[6:8] == b"\0\0" or (start[4:6].isalpha() and start[4:6].isupper()))


def is_dicom_input(path: str | os.PathLike) -> bool:
    """Whether an input is DICOM: the folder of a series, or a file of frames."""
    return os.path.isdir(path) or (os.path.isfile(path) and is_dicom(path))


def detached(path: str | os.PathLike) -> list[Path]:
    """The file that holds the voxels of a header, such as a .mhd: its content is the image's, too. Most have none."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _PAIR:
        other = _PAIR[suffix == ".hdr"]
        return [name for name in map(path.with_suffix, (other, other.upper())) if name.is_file()][:1]
    if suffix not in (".nrrd", ".nhdr", ".mha", ".mhd") or not path.is_file():
        return []
    try:
        file = itk_files.read_text(path).file
    except (InputError, ValueError):  # whoever reads it says what is wrong
        return []
    return [file] if file != path and file.is_file() else []


def read_header(path: str | os.PathLike) -> Header:
    """What the header of a NIfTI, NRRD or MetaImage file states; voxels stay unread.

    Raises:
        InputError: the file does not exist, is damaged, of another format, or no image of gray values.
    """
    with _one_sentence(path):
        if _format(path) != "NIfTI":
            return itk_files.read_header(path)[0]
        with _nifti(path) as (_, _, header):
            return header()


def read_volume(path: str | os.PathLike) -> tuple[np.ndarray, Header]:
    """The voxels of a file, float32 with slope and intercept applied, in the file's order of axes; and its header.

    Raises:
        InputError: what :func:`read_header` refuses; a stream that is cut short, fails its checksum, or holds more or
            fewer voxels than the header says; complex numbers.
    """
    with _one_sentence(path):
        if _format(path) != "NIfTI":
            stated, voxels_of = itk_files.read_header(path)
            return voxels_of(), stated
        with _nifti(path) as (image, stream, header):
            stated = header()
            voxels = _nifti_voxels(path, image).reshape(stated.shape)
            if stream is not None:
                proxy = image.dataobj  # a file that is not compressed is mapped, not read
                stream.seek(proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize)
                check_rest(path, iter(lambda: stream.read(CHUNK), b""))
        return voxels, stated


def read_image(path: str | os.PathLike) -> tuple[np.ndarray, Header, list[str]]:
    """:func:`read_volume` for DICOM, too: a folder of one series, or a file of frames.

    Returns:
        voxels; the header; and what must be known of how the image was read, a sentence each.
    """
    if not is_dicom_input(path):
        return *read_volume(path), []
    from med3d_ext.io.dicom_series import check_series, read_series, single_series  # which needs this module

    series = single_series(path)
    check_series(series)
    voxels, affine = read_series(series)
    return voxels, Header(voxels.shape, affine, _spacing(affine), True), list(series.remarks)


def nifti_header(path: str | os.PathLike) -> Any:
    """nibabel's header of a NIfTI file, by whatever name."""
    with _one_sentence(path), _nifti(path) as (image, _, _):
        return image.header


@contextmanager
def _one_sentence(path: str | os.PathLike) -> Iterator[None]:
    if not os.path.isfile(path):
        fault = "is a folder" if os.path.isdir(path) else "does not exist"
        raise InputError(f"'{path}' {fault}; check the path.")
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # readers raise many types for a damaged file
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        lines = str(root).strip().splitlines()
        reason = lines[-1][:120].rstrip(".") if lines else type(root).__name__
        raise InputError(f"'{path}' cannot be read ({reason}); it is damaged or not an image.") from error


def _format(path: str | os.PathLike) -> str:
    """NIfTI, or another format of which ITK reads the header, by the first bytes."""
    if str(path).lower().endswith(_PAIR):
        return "NIfTI"
    with _decompressed_nifti(path) as file:
        start = file.read(4096)
        is_compressed = isinstance(file, gzip.GzipFile)
    if start[344:347] == b"n+1" or start[4:7] == b"n+2":
        return "NIfTI"
    if is_compressed and start[:2] == _GZIP:
        raise InputError(f"'{path}' cannot be read (it is compressed twice); decompress it once.")
    if re.search(rb"^(?:NRRD|\s*(?:ObjectType|NDims)\s*=)", start) and not is_compressed:
        return "text"
    raise InputError(
        f"'{path}' cannot be read (it is neither NIfTI, NRRD, MetaImage nor DICOM); it is damaged or not an image."
    )


def usable_spacing(spacing: Sequence[float]) -> bool:
    """Whether every component (mm) is a positive number; 0 and NaN stand for a header without spacing."""
    return bool(np.isfinite(spacing).all() and np.greater(spacing, 0).all())


def stated_spacing(path: str | os.PathLike | MetaTensor, affine: Any) -> list[float]:
    """Spacing (mm) of the stored axes by a file's header, 0 or NaN if it states none; else by the affine (4, 4)."""
    if isinstance(path, MetaTensor) or is_dicom_input(path) or not os.path.isfile(path):
        return _spacing(np.asarray(affine, dtype=float))
    return read_header(path).spacing


def _spacing(affine: np.ndarray) -> list[float]:
    return [float(value) for value in affine_to_spacing(affine, suppress_zeros=False)]


def _tolerant(kind: Any) -> Any:
    """nibabel's image, but a slope without an intercept (NaN) has none, as in the reference library."""

    class Tolerant(kind.header_class):
        def get_slope_inter(self) -> tuple[float | None, float | None]:
            try:
                return super().get_slope_inter()
            except nibabel.spatialimages.HeaderDataError:
                return float(self["scl_slope"]), 0.0

    return type(kind.__name__, (kind,), {"header_class": Tolerant})


_NIFTI_1, _NIFTI_2 = map(_tolerant, (nibabel.Nifti1Image, nibabel.Nifti2Image))


@contextmanager
def _decompressed_nifti(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """The file, decompressed if it is gzip by its first bytes: names lie."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == _GZIP
        file.seek(0)
        if is_compressed:
            with gzip.open(file) as stream:
                yield stream  # type: ignore[misc]
        else:
            yield file


@contextmanager
def _nifti(path: str | os.PathLike) -> Iterator[tuple[Any, IO[bytes] | None, Callable[[], Header]]]:
    """nibabel's image, the stream that it reads from (none for the two files of a pair), and what the header states."""

    def header() -> Header:
        if image.dataobj.dtype.fields:
            raise InputError(f"'{path}' is a color image; give a volume of gray values.")
        codes = [int(image.header[name]) for name in ("qform_code", "sform_code") if name in image.header]
        shape = image.dataobj.shape
        if len(shape) > 4:
            image.header["dim"][0] = 3  # MONAI corrects no header of five axes; the voxels keep their shape
        # The affine that MONAI's reader gives: raw nibabel differs if sform and pixdim disagree.
        affine = np.asarray(correct_nifti_header_if_necessary(image).affine, dtype=float)
        spacing = [value if size else 0.0 for value, size in zip(_spacing(affine), stored_sizes)]
        # An axis of length 1 after the third, a point in time or a channel, says nothing.
        kept = (*(int(size) for size in shape[:3]), *(int(size) for size in shape[3:] if size != 1))
        return Header(kept, affine, spacing, any(codes))

    if str(path).lower().endswith(_PAIR):
        image: Any = nibabel.load(path)
        stored_sizes = np.array(image.header["pixdim"][1:4])
        yield image, None, header
        return
    with _decompressed_nifti(path) as stream:
        start = stream.read(4)
        kind = _NIFTI_2 if 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big")) else _NIFTI_1
        stream.seek(0)
        # nibabel turns a voxel size of 0 into 1 as it reads: whether there is one is in the bytes alone.
        stored_sizes = np.array(kind.header_class.from_fileobj(stream, check=False)["pixdim"][1:4])
        stream.seek(0)
        image = kind.from_stream(stream)
        yield image, stream, header


def _nifti_voxels(path: str | os.PathLike, image: Any) -> np.ndarray:
    """Voxels as float32, to the bit what nibabel reads, which takes 3.4 GB for a scaled CT of 512 x 512 x 800."""
    stored, slope, intercept = image.dataobj.get_unscaled(), image.dataobj.slope, image.dataobj.inter
    if np.iscomplexobj(stored):
        if stored.imag.any():
            raise InputError(f"'{path}' holds complex numbers; give their magnitude.")
        stored = stored.real
    return as_float32(stored, slope, intercept)

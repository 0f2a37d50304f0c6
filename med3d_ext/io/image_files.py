"""Image files other than DICOM: which format a file has, what its header states, and its voxels to the last byte.

A format is known by its first bytes, not by its name. Every compressed stream is read to its end and its checksum, and
the voxels must be as many as the header says: readers that stop at the last voxel accept a damaged copy in silence.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from monai.data.utils import affine_to_spacing, correct_nifti_header_if_necessary

from med3d_ext.errors import InputError

_PAIR = (".hdr", ".img")
_WITH_PARTS = (".nrrd", ".nhdr", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 16  # of zeros, a chunk becomes a thousand times as large
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "gz": lambda: zlib.decompressobj(31),
    "zlib": lambda: zlib.decompressobj(47),  # MetaImage writes zlib's header, some programs gzip's
    "bzip2": bz2.BZ2Decompressor,
    "bz2": bz2.BZ2Decompressor,
}
# nibabel prints what it repairs in a header; what matters is checked here.
logging.getLogger("nibabel.global").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Header:
    """What a header states of its volume.

    Args:
        shape: voxels (X, Y, Z), or (X, Y, Z, channels) for several channels or points in time.
        affine: voxel index to RAS+ mm, (4, 4).
        spacing: mm along the three stored axes; 0 or NaN where the header states none.
        is_oriented: whether it states how the axes lie in the patient.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    spacing: list[float]
    is_oriented: bool


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
    group, tag, kind, length = start[:2], start[2:4], start[4:6], start[6:8]
    is_first = group in (b"\2\0", b"\x08\0") and tag in {
        bytes((number, 0)) for number in (0, 1, 2, 5, 6, 8, 0x12, 0x16)
    }
    return is_first and (length == b"\0\0" or (kind.isalpha() and kind.isupper()))


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
    if suffix not in _WITH_PARTS or not path.is_file():
        return []
    try:
        file = _nrrd(path).file if suffix in (".nrrd", ".nhdr") else _meta(path).file
    except (InputError, ValueError):  # whoever reads it says what is wrong
        return []
    return [file] if file != path and file.is_file() else []


def _format(path: str | os.PathLike) -> str:
    """NIfTI, NRRD or MetaImage, by the first bytes."""
    if str(path).lower().endswith(_PAIR):
        return "NIfTI"
    with _nifti_stream(path) as file:
        start = file.read(4096)
        is_compressed = isinstance(file, gzip.GzipFile)
    if start[344:347] == b"n+1" or start[4:7] == b"n+2":
        return "NIfTI"
    if is_compressed and start[:2] == _GZIP:
        raise InputError(f"'{path}' cannot be read (it is compressed twice); decompress it once.")
    if start.startswith(b"NRRD") and not is_compressed:
        return "NRRD"
    if re.search(rb"^\s*(?:ObjectType|NDims)\s*=", start) and not is_compressed:
        return "MetaImage"
    raise InputError(
        f"'{path}' cannot be read (it is neither NIfTI, NRRD, MetaImage nor DICOM); it is damaged or not an image."
    )


def read_header(path: str | os.PathLike) -> Header:
    """What the header of a NIfTI, NRRD or MetaImage file states; voxels stay unread.

    Raises:
        InputError: the file does not exist, is damaged, of another format, or no image of gray values.
    """
    with _one_sentence(path):
        if (kind := _format(path)) == "NIfTI":
            with _nifti(path) as (image, _):
                return _nifti_header(path, image)
        return _text_header(path, kind)[0]


def read_volume(path: str | os.PathLike) -> tuple[np.ndarray, Header]:
    """The voxels of a file, float32 with slope and intercept applied, in the file's order of axes; and its header.

    Raises:
        InputError: what :func:`read_header` refuses; a stream that is cut short, fails its checksum, or holds more or
            fewer voxels than the header says; complex numbers.
    """
    with _one_sentence(path):
        if (kind := _format(path)) == "NIfTI":
            with _nifti(path) as (image, stream):
                header = _nifti_header(path, image)
                voxels = _nifti_voxels(path, image).reshape(header.shape)
                if stream is not None:
                    proxy = image.dataobj  # a file that is not compressed is mapped, not read
                    stream.seek(proxy.offset + math.prod(proxy.shape) * proxy.dtype.itemsize)
                    _check_rest(path, iter(lambda: stream.read(_CHUNK), b""))
            return voxels, header
        header, payload = _text_header(path, kind)
        return payload.read(path), header


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
    spacing = [float(value) for value in affine_to_spacing(affine, suppress_zeros=False)]
    return voxels, Header(voxels.shape, affine, spacing, True), list(series.remarks)


def nifti_header(path: str | os.PathLike) -> Any:
    """nibabel's header of a NIfTI file, by whatever name."""
    with _one_sentence(path), _nifti(path) as (image, _):
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
        raise InputError(f"'{path}' cannot be read ({last_line(error)}); it is damaged or not an image.") from error


def last_line(error: BaseException) -> str:
    """The last line of what the first cause of an error says."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = str(root).strip().splitlines()
    return lines[-1][:120].rstrip(".") if lines else type(root).__name__


# NIfTI


class _ReadableSlope:
    """A slope without an intercept (NaN) has none, as in the reference library; nibabel refuses such a file."""

    def get_slope_inter(self) -> tuple[float | None, float | None]:
        try:
            return super().get_slope_inter()  # type: ignore[misc]
        except nibabel.spatialimages.HeaderDataError:
            return float(self["scl_slope"]), 0.0  # type: ignore[index]


class _Header1(_ReadableSlope, nibabel.Nifti1Header):
    pass


class _Header2(_ReadableSlope, nibabel.Nifti2Header):
    pass


class _Image1(nibabel.Nifti1Image):
    header_class = _Header1


class _Image2(nibabel.Nifti2Image):
    header_class = _Header2


@contextmanager
def _nifti_stream(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """The file, decompressed where it is gzip by its first bytes: names lie."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == _GZIP
        file.seek(0)
        if is_compressed:
            with gzip.open(file) as stream:
                yield stream  # type: ignore[misc]
        else:
            yield file


@contextmanager
def _nifti(path: str | os.PathLike) -> Iterator[tuple[Any, IO[bytes] | None]]:
    """nibabel's image and the stream that it reads from; none for the two files of a pair."""
    if str(path).lower().endswith(_PAIR):
        yield nibabel.load(path), None
        return
    with _nifti_stream(path) as stream:
        start = stream.read(4)
        stream.seek(0)
        kind: Any = _Image2 if 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big")) else _Image1
        yield kind.from_stream(stream), stream


def _as_monai(image: Any) -> Any:
    """The affine that MONAI's reader gives: raw nibabel differs where sform and pixdim disagree."""
    if len(image.shape) > 4:
        image.header["dim"][0] = 3  # MONAI corrects no header of five axes; the voxels keep their shape
    return correct_nifti_header_if_necessary(image)


def _nifti_header(path: str | os.PathLike, image: Any) -> Header:
    if image.dataobj.dtype.fields:
        raise InputError(f"'{path}' is a color image; give a volume of gray values.")
    codes = [int(image.header[name]) for name in ("qform_code", "sform_code") if name in image.header]
    affine = np.asarray(_as_monai(image).affine, dtype=float)
    spacing = [float(value) for value in affine_to_spacing(affine, suppress_zeros=False)]
    # nibabel turns a voxel size of 0 into 1 as it reads: whether there is one is in the bytes alone.
    stored = _stored_sizes(path, image)
    spacing = [value if size else 0.0 for value, size in zip(spacing, stored)]
    return Header(_without_ones(image.dataobj.shape), affine, spacing, any(codes))


def _stored_sizes(path: str | os.PathLike, image: Any) -> np.ndarray:
    if str(path).lower().endswith(_PAIR):
        return np.asarray(image.header["pixdim"][1:4])
    with _nifti_stream(path) as file:
        return np.asarray(type(image).header_class.from_fileobj(file, check=False)["pixdim"][1:4])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without the axes of length 1 after the third: a point in time, a channel."""
    return (*(int(size) for size in shape[:3]), *(int(size) for size in shape[3:] if size != 1))


def _nifti_voxels(path: str | os.PathLike, image: Any) -> np.ndarray:
    """Voxels as float32, to the bit what nibabel reads.

    nibabel scales all voxels in float64, and MONAI copies that into another order: 3.4 GB for a CT of 512 x 512 x 800
    whose header states a slope or an intercept.
    """
    stored, slope, intercept = image.dataobj.get_unscaled(), image.dataobj.slope, image.dataobj.inter
    if np.iscomplexobj(stored):
        if stored.imag.any():
            raise InputError(f"'{path}' holds complex numbers; give their magnitude.")
        stored = stored.real
    return _as_float32(stored, slope, intercept)


def _as_float32(stored: np.ndarray, slope: float = 1, intercept: float = 0) -> np.ndarray:
    """Scaled values in C order, which resampling wants, some slices at a time: no second copy of the volume."""
    voxels = np.empty(stored.shape, np.float32)
    for first in range(0, stored.shape[-1], 16):
        some = stored[..., first : first + 16]
        is_scaled = slope != 1 or intercept != 0
        voxels[..., first : first + 16] = np.multiply(some, slope, dtype=np.float64) + intercept if is_scaled else some
    return voxels


# NRRD and MetaImage: a header of text, by ITK, and the voxels after it or in a file of their own


@dataclass(frozen=True)
class _Payload:
    """Where the voxels are: file, first byte (None: the last ones of the file), compression ("" for none), type."""

    file: Path
    start: int | None
    compression: str
    dtype: np.dtype
    stored_shape: tuple[int, ...]

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """Voxels as float32, channels last."""
        size = math.prod(self.stored_shape) * self.dtype.itemsize
        if not self.file.is_file():
            raise InputError(f"'{path}' keeps its voxels in '{self.file}', which does not exist; add that file.")
        content, filled = np.empty(size, np.uint8), 0
        with open(self.file, "rb") as file:
            file.seek(max(0, self.file.stat().st_size - size) if self.start is None else self.start)
            for chunk in _decompressed(file, self.compression):
                used = min(len(chunk), size - filled)
                content[filled : filled + used] = np.frombuffer(chunk, np.uint8, used)
                filled += used
                _check_rest(path, iter([chunk[used:]]))
        if filled < size:
            raise InputError(f"'{path}' holds {filled} of the {size} bytes of its voxels; it is cut short: restore it.")
        voxels = content.view(self.dtype).reshape(self.stored_shape, order="F")
        return _as_float32(voxels if voxels.ndim == 3 else np.moveaxis(voxels, 0, -1))


def _decompressed(file: IO[bytes], compression: str) -> Iterator[bytes]:
    """The content of a stream, whose checksums are checked; a stream may follow another, zeros may fill up the end."""
    if not compression:
        yield from iter(lambda: file.read(_CHUNK), b"")
        return
    decompressor = _DECOMPRESSORS[compression]()
    while chunk := file.read(_CHUNK):
        while chunk:
            if decompressor.eof:
                if not chunk.strip(b"\0"):
                    break
                decompressor = _DECOMPRESSORS[compression]()
            yield decompressor.decompress(chunk)
            chunk = decompressor.unused_data if decompressor.eof else b""
    if not decompressor.eof:
        raise EOFError("its compressed stream ends before its end mark")


def _check_rest(path: str | os.PathLike, chunks: Iterator[bytes]) -> None:
    """Zeros after the last voxel fill up a block; anything else says that header and voxels do not belong together."""
    if any(chunk.strip(b"\0") for chunk in chunks):
        raise InputError(f"'{path}' holds more voxels than its header says; restore the file or correct its header.")


def _text_header(path: str | os.PathLike, kind: str) -> tuple[Header, _Payload]:
    import itk  # takes seconds to import; only these formats need it

    reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    count, channels = reader.GetNumberOfDimensions(), int(reader.GetNumberOfComponents())
    sizes = [int(reader.GetDimensions(axis)) for axis in range(count)]
    axes = list(range(count))
    for axis in (*reversed(range(3, count)), 0):  # of more than three axes those of length 1 say nothing
        if len(axes) > 3 and sizes[axis] == 1:
            axes.remove(axis)
    if len(axes) != 3:
        shape = "x".join(map(str, sizes))
        raise InputError(f"'{path}' is not a 3D volume (its shape is {shape}); give a volume of several slices.")
    directions = np.array([reader.GetDirection(axis) for axis in range(count)]).T[np.ix_(axes, axes)]
    spacing = [float(reader.GetSpacing(axis)) for axis in axes]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, [reader.GetOrigin(axis) for axis in axes]
    name = reader.GetComponentTypeAsString(reader.GetComponentType())
    letter = "f" if name in ("float", "double") else "u" if name.startswith("unsigned") else "i"
    shape3 = tuple(sizes[axis] for axis in axes)
    stated = (_nrrd if kind == "NRRD" else _meta)(path)
    if channels > 1 and not stated.channels_first:
        raise InputError(f"'{path}' keeps its channels after its voxels; save it again with the channels first.")
    header = Header(
        shape3 if channels == 1 else (*shape3, channels),
        _LPS_TO_RAS @ affine,
        spacing if stated.has_spacing else [0.0, 0.0, 0.0],
        stated.is_oriented,
    )
    dtype = np.dtype(f"{stated.endian}{letter}{reader.GetComponentSize()}")
    stored = shape3 if channels == 1 else (channels, *shape3)
    return header, _Payload(stated.file, stated.start, stated.compression, dtype, stored)


@dataclass(frozen=True)
class _Stated:
    """What ITK does not hand on of a header: which facts are stated and where the voxels are."""

    has_spacing: bool
    is_oriented: bool
    endian: str
    file: Path
    start: int | None
    compression: str
    channels_first: bool = True


def _lines(path: str | os.PathLike) -> Iterator[tuple[str, int]]:
    """The lines of a text header, each with the byte after it."""
    with open(path, "rb") as file:
        for _ in range(10_000):
            line = file.readline(1 << 16)
            if not line:
                return
            yield line.decode("utf-8", "replace").strip(), file.tell()


def _nrrd(path: str | os.PathLike) -> _Stated:
    fields, start = {}, 0
    for line, after in _lines(path):
        start = after
        key, colon, value = line.partition(":")
        if colon and not value.startswith("=") and not line.startswith("#"):
            fields[re.sub(r"\s", "", key.lower())] = value.strip()
        if not line:
            break
    encoding, file, skip = fields.get("encoding", "").lower(), fields.get("datafile"), int(fields.get("byteskip", 0))
    compression = "" if encoding == "raw" else encoding
    is_several = file is not None and (file.upper().startswith("LIST") or "%" in file)
    is_odd = compression not in ("", *_DECOMPRESSORS) or int(fields.get("lineskip", 0)) or (compression and skip)
    if is_several or is_odd:
        raise InputError(f"'{path}' keeps its voxels in several files or as text; save it again as one NRRD file.")
    # The space of a scanner, or none, says nothing of left and right.
    space = fields.get("space", "").lower().replace("-time", "")
    anatomical = re.fullmatch(r"ras|las|lps|(left|right)-(anterior|posterior)-superior", space)
    sizes = re.findall(r"[-+.\w]+", fields.get("spacings", "") + fields.get("spacedirections", ""))
    kinds = fields.get("kinds", "").split()
    return _Stated(
        has_spacing="".join(sizes).lower().replace("nan", "").replace("none", "") != "",
        is_oriented=anatomical is not None,
        endian=">" if fields.get("endian") == "big" else "<",
        file=Path(path).parent / file if file else Path(path),
        start=None if skip < 0 else skip + (0 if file else start),
        compression=compression,
        channels_first=not kinds or kinds[0] not in ("domain", "space"),
    )


def _meta(path: str | os.PathLike) -> _Stated:
    fields, start = {}, 0
    for line, after in _lines(path):
        start = after
        key, equals, value = line.partition("=")
        if equals:
            fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            break
    file, skip = fields.get("elementdatafile", ""), int(fields.get("headersize", 0))
    if not file or file.upper().startswith("LIST") or "%" in file or fields.get("binarydata", "").lower() == "false":
        raise InputError(f"'{path}' keeps its voxels in several files or as text; save it again as one .mha file.")
    scale = [fields.get(f"elementtointensityfunction{name}", value) for name, value in (("slope", 1), ("offset", 0))]
    if list(map(float, scale)) != [1, 0]:
        raise InputError(
            f"'{path}' states a slope or an offset for its values, which readers ignore; apply them first."
        )
    order = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "")).lower()
    is_local = file.upper() == "LOCAL"
    return _Stated(
        has_spacing="elementspacing" in fields or "elementsize" in fields,
        is_oriented=any(name in fields for name in ("transformmatrix", "orientation", "rotation")),
        endian=">" if order == "true" else "<",
        file=Path(path) if is_local else Path(path).parent / file,
        start=start if is_local else None if skip < 0 else skip,
        compression="zlib" if fields.get("compresseddata", "").lower() == "true" else "",
    )

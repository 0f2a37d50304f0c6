"""NRRD and MetaImage: a header of text, by ITK, and the voxels after it or in a file of their own, to the last byte."""

from __future__ import annotations

import bz2
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from med3d_ext.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CHUNK = 1 << 16  # of zeros, a chunk becomes a thousand times as large
_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("gzip", "gz"), lambda: zlib.decompressobj(31)),
    **dict.fromkeys(("bzip2", "bz2"), bz2.BZ2Decompressor),
    "zlib": lambda: zlib.decompressobj(47),  # MetaImage writes zlib's header, some programs gzip's
}


@dataclass(frozen=True)
class Header:
    """What a header states of its volume.

    Args:
        shape: voxels (X, Y, Z), or (X, Y, Z, channels) for several channels or points in time.
        affine: voxel index to RAS+ mm, (4, 4).
        spacing: mm along the three stored axes; 0 or NaN if the header states none.
        is_oriented: whether it states how the axes lie in the patient.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    spacing: list[float]
    is_oriented: bool


def check_rest(path: str | os.PathLike, chunks: Iterable[bytes]) -> None:
    """Zeros after the last voxel fill up a block; anything else says that header and voxels do not belong together."""
    if any(chunk.strip(b"\0") for chunk in chunks):
        raise InputError(f"'{path}' holds more voxels than its header says; restore the file or correct its header.")


def as_float32(stored: np.ndarray, slope: float = 1, intercept: float = 0) -> np.ndarray:
    """Scaled values in C order, which resampling wants, some slices at a time: no second copy of the volume."""
    voxels = np.empty(stored.shape, np.float32)
    for first in range(0, stored.shape[-1], 16):
        some = stored[..., first : first + 16]
        is_scaled = slope != 1 or intercept != 0
        voxels[..., first : first + 16] = np.multiply(some, slope, dtype=np.float64) + intercept if is_scaled else some
    return voxels


@dataclass(frozen=True)
class Stated:
    """What ITK does not hand on of a header: which facts are stated, and where the voxels are.

    ``start`` is the first byte of the voxels in their file, None if they are its last ones; ``compression`` may be "".
    """

    has_spacing: bool
    is_oriented: bool
    endian: str
    file: Path
    start: int | None
    compression: str
    channels_first: bool = True

    def voxels(self, path: str | os.PathLike, dtype: np.dtype, stored_shape: tuple[int, ...]) -> np.ndarray:
        """Voxels as float32, channels last."""
        size = math.prod(stored_shape) * dtype.itemsize
        if not self.file.is_file():
            raise InputError(f"'{path}' keeps its voxels in '{self.file}', which does not exist; add that file.")
        content, filled = np.empty(size, np.uint8), 0
        with open(self.file, "rb") as file:
            file.seek(max(0, self.file.stat().st_size - size) if self.start is None else self.start)
            for chunk in _decompressed(file, self.compression):
                used = min(len(chunk), size - filled)
                content[filled : filled + used] = np.frombuffer(chunk, np.uint8, used)
                filled += used
                check_rest(path, [chunk[used:]])
        if filled < size:
            raise InputError(f"'{path}' holds {filled} of the {size} bytes of its voxels; it is cut short: restore it.")
        voxels = content.view(dtype).reshape(stored_shape, order="F")
        return as_float32(voxels if voxels.ndim == 3 else np.moveaxis(voxels, 0, -1))


def _decompressed(file: IO[bytes], compression: str) -> Iterator[bytes]:
    """The content of a stream, whose checksums are checked; a stream may follow another, zeros may fill up the end."""
    if not compression:
        yield from iter(lambda: file.read(CHUNK), b"")
        return
    decompressor = _DECOMPRESSORS[compression]()
    while chunk := file.read(CHUNK):
        while chunk:
            if decompressor.eof:
                if not chunk.strip(b"\0"):
                    break
                decompressor = _DECOMPRESSORS[compression]()
            yield decompressor.decompress(chunk)
            chunk = decompressor.unused_data if decompressor.eof else b""
    if not decompressor.eof:
        raise EOFError("its compressed stream ends before its end mark")


def read_header(path: str | os.PathLike) -> tuple[Header, Callable[[], np.ndarray]]:
    """The header, and what reads the voxels."""
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
    stated = read_text(path)
    if channels > 1 and not stated.channels_first:
        raise InputError(f"'{path}' keeps its channels after its voxels; save it again with the channels first.")
    directions = np.array([reader.GetDirection(axis) for axis in range(count)]).T[np.ix_(axes, axes)]
    spacing = [float(reader.GetSpacing(axis)) for axis in axes]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, [reader.GetOrigin(axis) for axis in axes]
    name, grid = reader.GetComponentTypeAsString(reader.GetComponentType()), tuple(sizes[axis] for axis in axes)
    letter = "f" if name in ("float", "double") else "u" if name.startswith("unsigned") else "i"
    dtype = np.dtype(f"{stated.endian}{letter}{reader.GetComponentSize()}")
    several = (channels,) if channels > 1 else ()
    header = Header(
        (*grid, *several), LPS_TO_RAS @ affine, spacing if stated.has_spacing else [0.0] * 3, stated.is_oriented
    )
    return header, lambda: stated.voxels(path, dtype, (*several, *grid))


def read_text(path: str | os.PathLike) -> Stated:
    """What the lines of a header state.

    Raises:
        InputError: the voxels are in several files or text, or a MetaImage scales them, which readers ignore.
        ValueError: a number cannot be read.
    """
    with open(path, "rb") as file:
        is_nrrd = file.read(4) == b"NRRD"
        file.seek(0)
        fields: dict[str, str] = {}
        for _ in range(10_000):
            line = file.readline(1 << 16).decode("utf-8", "replace").strip()
            key, found, value = line.partition(":" if is_nrrd else "=")
            name = re.sub(r"\s", "", key.lower())
            if found and not value.startswith("=") and not line.startswith("#"):
                fields[name] = value.strip()
            if name == ("" if is_nrrd else "elementdatafile"):
                break
        return (_nrrd if is_nrrd else _meta)(Path(path), fields, file.tell())


def _nrrd(path: Path, fields: dict[str, str], start: int) -> Stated:
    encoding, file, skip = fields.get("encoding", "").lower(), fields.get("datafile"), int(fields.get("byteskip", 0))
    compression = "" if encoding == "raw" else encoding
    is_several = file is not None and (file.upper().startswith("LIST") or "%" in file)
    is_odd = compression not in ("", *_DECOMPRESSORS) or int(fields.get("lineskip", 0)) or (compression and skip)
    if is_several or is_odd:
        raise InputError(f"'{path}' keeps its voxels in several files or as text; save it again as one NRRD file.")
    # The space of a scanner, or none, says nothing of left and right.
    space = fields.get("space", "").lower().replace("-time", "")
    sizes = "".join(re.findall(r"[-+.\w]+", fields.get("spacings", "") + fields.get("spacedirections", "")))
    return Stated(
        has_spacing=sizes.lower().replace("nan", "").replace("none", "") != "",
        is_oriented=re.fullmatch(r"ras|las|lps|(left|right)-(anterior|posterior)-superior", space) is not None,
        endian=">" if fields.get("endian") == "big" else "<",
        file=path.parent / file if file else path,
        start=None if skip < 0 else skip + (0 if file else start),
        compression=compression,
        channels_first=(fields.get("kinds", "").split() or [""])[0] not in ("domain", "space"),
    )


def _meta(path: Path, fields: dict[str, str], start: int) -> Stated:
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
    return Stated(
        has_spacing="elementspacing" in fields or "elementsize" in fields,
        is_oriented=any(name in fields for name in ("transformmatrix", "orientation", "rotation")),
        endian=">" if order == "true" else "<",
        file=path if is_local else path.parent / file,
        start=start if is_local else None if skip < 0 else skip,
        compression="zlib" if fields.get("compresseddata", "").lower() == "true" else "",
    )

"""Reading one volume and refusing what no network should see: the same checks for every bundle."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.data.utils import affine_to_spacing
from monai.transforms import LoadImage, MapTransform
from monai.utils import ensure_tuple_rep

from med3d_ext.errors import InputError

NIFTI = (".nii", ".nii.gz")
IN_MEMORY = "image in memory"

# Where pydicom is installed, MONAI warns at every image that a GPU decoder, which is not used here, is missing.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def usable_spacing(spacing: Sequence[float]) -> bool:
    """Whether every component (mm) is a positive number; 0 and NaN stand for a header without spacing."""
    return bool(np.isfinite(spacing).all() and np.greater(spacing, 0).all())


def stated_spacing(path: str | os.PathLike | MetaTensor, affine: Any) -> list[float]:
    """Spacing (mm) of the stored axes by a file's header; 0 or NaN where the header states none.

    Args:
        path: the file, or a volume that was read before.
        affine: the affine that MONAI's reader gives it (4, 4).
    """
    spacing = [float(value) for value in affine_to_spacing(np.asarray(affine, dtype=float), suppress_zeros=False)]
    if isinstance(path, MetaTensor) or not str(path).endswith(NIFTI):
        return spacing
    # nibabel turns a voxel size of 0 into 1 as it reads: whether there is one stands in the bytes alone.
    header_class: Any = nibabel.load(path).header_class
    with nibabel.openers.ImageOpener(str(path)) as file:
        stored = header_class.from_fileobj(file, check=False)["pixdim"][1:4]
    return [value if size else 0.0 for value, size in zip(spacing, stored)]


class _Float32Reader(NibabelReader):
    """MONAI's reader with the voxels as float32 in the file's order of axes, to the bit what nibabel reads.

    nibabel scales all voxels in float64, and MONAI copies that into another order: 3.4 GB for a CT of 512 x 512 x 800
    whose header states a slope or an intercept.
    """

    def _get_array_data(self, img: Any, filename: str) -> np.ndarray:
        stored, slope, intercept = img.dataobj.get_unscaled(), img.dataobj.slope, img.dataobj.inter
        if slope == 1 and intercept == 0:
            return stored.astype(np.float32)
        voxels = np.empty(stored.shape, np.float32, order="F")
        for last in range(stored.shape[-1]):
            voxels[..., last] = np.multiply(stored[..., last], slope, dtype=np.float64) + intercept
        return voxels


def load_volume(path: str | os.PathLike | MetaTensor, channel: int | None = None) -> MetaTensor:
    """Load one 3D volume as a channel-first float32 MetaTensor with its affine.

    NIfTI goes through nibabel and everything else through ITK: the two differ where a file has neither qform nor
    sform, so one reader per format is part of the contract. The slices of a DICOM series are sorted by position and
    its values are those after slope and intercept.

    Args:
        path: file, or folder of a DICOM series; or, as MONAI Deploy hands it over, a volume that was read before:
            (X, Y, Z) or (X, Y, Z, channels) with its affine.
        channel: the channel to take of a 4D file; None wants a 3D file.

    Raises:
        InputError: when the file cannot be read, is not 3D, or holds NaN or infinite voxels; when a folder holds not
            exactly one DICOM series or its slices are no even stack.
    """
    if isinstance(path, MetaTensor):
        return _three_dimensional(path.to(torch.float32), IN_MEMORY, channel)
    if Path(path).is_dir():
        return _three_dimensional(_load_series(path), path, channel)
    reader = _Float32Reader() if str(path).endswith(NIFTI) else ITKReader()
    if not Path(path).exists():
        raise InputError(f"'{path}' does not exist; check the path.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # header remarks of the readers; what matters is checked here
            # The reader goes into the call: named in the constructor, it would only be the first of several, and
            # ITK reads what a truncated .nii.gz still holds.
            volume = LoadImage(image_only=True, dtype=np.float32)(str(path), reader=reader)
    except Exception as error:  # readers raise many types for a damaged file
        raise InputError(f"'{path}' cannot be read ({_last_line(error)}); it is damaged or not an image.") from error
    return _three_dimensional(volume, path, channel)


def _load_series(folder: str | os.PathLike) -> MetaTensor:
    # Imported here: the package of the data readers needs this module.
    from med3d_ext.io.dicom_series import check_series, read_series, single_series

    series = single_series(folder)
    check_series(series)
    voxels, affine = read_series(series)
    return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(affine))


def _three_dimensional(volume: Any, path: Any, channel: int | None) -> MetaTensor:
    if volume.ndim == 4 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim == 4 and channel is not None:
        if channel >= volume.shape[-1]:
            raise InputError(f"'{path}' has {volume.shape[-1]} channels, channel {channel} was asked for; correct it.")
        volume = volume[..., channel]
    if volume.ndim != 3 or min(volume.shape) < 2:
        shape = "x".join(str(size) for size in volume.shape)
        raise InputError(f"'{path}' is not a 3D volume (its shape is {shape}); give a volume of several slices.")
    if not torch.isfinite(volume.as_tensor()).all():
        raise InputError(f"'{path}' holds NaN or infinite voxels; repair them, for example with numpy.nan_to_num.")
    return MetaTensor(volume.as_tensor()[None], affine=volume.affine, meta=_meta(path, volume.affine, volume.shape))


def _meta(path: Any, affine: torch.Tensor, shape: Sequence[int]) -> dict[str, Any]:
    """Of the header, what MONAI's writers need to put a result on the file's own grid, permuted axes included."""
    return {"filename_or_obj": str(path), "original_affine": affine.clone(), "spatial_shape": np.array(shape)}


def _last_line(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = str(root).strip().splitlines()
    return lines[-1][:120] if lines else type(root).__name__


def _empty_label(image: MetaTensor) -> MetaTensor:
    """The label of a scan that is known to hold no target."""
    meta = _meta(image.meta["filename_or_obj"], image.affine, image.shape[1:])
    return MetaTensor(torch.zeros(image.shape), affine=image.affine, meta=meta)


class LoadVolumed(MapTransform):
    """Load volumes channel-first, check them, and give label and image one geometry.

    The label takes the image's affine (both stand on one voxel grid), and its values become integers in float32. A
    label that is None is empty: the scan is known to hold no target.

    Args:
        keys: keys of the files; the first is the image.
        channel: the channel to take of 4D images; an item's own ``channel`` wins. Defaults to None.
        default_spacing: spacing (mm) for an image whose header has none. Defaults to None, which refuses such a file.
        require_foreground: refuse a label file without any foreground. Defaults to False.
        domain: the domain of items that name none, as a labelling server sends them. Defaults to None, no domain.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        channel: int | None = None,
        default_spacing: Sequence[float] | None = None,
        require_foreground: bool = False,
        domain: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channel = channel
        self.default_spacing = default_spacing
        self.require_foreground = require_foreground
        self.domain = domain

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.domain is not None:
            item.setdefault("domain", self.domain)
        image_key, *label_keys = list(self.key_iterator(item))
        image = load_volume(item[image_key], item.get("channel", self.channel))
        self._repair_spacing(image, item[image_key])
        item[image_key] = image
        for key in label_keys:
            label = _empty_label(image) if item[key] is None else self._label(load_volume(item[key]), image)
            item[key] = label
        return item

    def _repair_spacing(self, image: MetaTensor, path: Any) -> None:
        if usable_spacing(stated_spacing(path, image.affine)):
            return
        if self.default_spacing is None:
            name = image.meta["filename_or_obj"]
            raise InputError(f"'{name}' has no usable voxel spacing (0 or NaN); write the spacing into its header.")
        diagonal = torch.tensor([*ensure_tuple_rep(self.default_spacing, 3), 1.0], dtype=torch.float64)
        image.affine = torch.diag(diagonal)
        image.meta["original_affine"] = image.affine.clone()

    def _label(self, label: MetaTensor, image: MetaTensor) -> MetaTensor:
        path = label.meta["filename_or_obj"]
        if label.shape != image.shape:
            shapes = ["x".join(str(size) for size in volume.shape[1:]) for volume in (label, image)]
            raise InputError(f"label '{path}' is {shapes[0]}, its image is {shapes[1]}; give the label of this image.")
        if self.require_foreground and not (label > 0).any():
            raise InputError(f"label '{path}' holds no foreground voxel; remove the case or give its real label.")
        meta = _meta(path, image.affine, image.shape[1:])
        return MetaTensor(label.as_tensor().round(), affine=image.affine, meta=meta)

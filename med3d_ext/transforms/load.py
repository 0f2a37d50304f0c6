"""Reading one volume and refusing what no network should see: the same checks for every bundle."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

from med3d_ext.errors import InputError
from med3d_ext.io.grids import Grid, on_image_grid
from med3d_ext.io.image_files import read_image, stated_spacing, usable_spacing
from med3d_ext.transforms.values import whole_values

IN_MEMORY = "image in memory"
ALL = "all"
"""In place of a channel: all of them."""

logger = logging.getLogger("med3d_ext.load")
# If pydicom is installed, MONAI warns at every image that a GPU decoder, which is not used here, is missing.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


def load_volume(
    path: str | os.PathLike | MetaTensor, channel: int | str | None = None, store: Any = None
) -> MetaTensor:
    """Load one 3D volume as a channel-first float32 MetaTensor with its affine.

    NIfTI goes through nibabel, the headers of NRRD and MetaImage through ITK: the two differ if a file has neither
    qform nor sform, so one reader per format is part of the contract. The slices of a DICOM series, and the frames of a
    DICOM file, are sorted by position and their values are those after slope and intercept.

    Args:
        path: file, or folder of a DICOM series; or, as MONAI Deploy hands it over, a volume that was read before:
            (X, Y, Z) or (X, Y, Z, channels) with its affine.
        channel: the channel to take of a 4D file, or `all`; None wants a 3D file.
        store: see :class:`LoadVolumed`.

    Raises:
        InputError: when the file cannot be read, is not 3D, or holds NaN or infinite voxels; when a folder or a DICOM
            file holds not exactly one DICOM series or its slices are not evenly spaced.
    """
    return _load(path, channel, store)[0]


def _load(
    path: str | os.PathLike | MetaTensor, channel: int | str | None, store: Any
) -> tuple[MetaTensor, list[str], list[float]]:
    """:func:`load_volume`, what must be known of how the volume was read, a sentence each, and its stated spacing."""
    if isinstance(path, MetaTensor):
        volume, affine, remarks = path.as_tensor().to(torch.float32), path.affine, []
        spacing, path = stated_spacing(path, affine), IN_MEMORY
    else:
        voxels, header, remarks = (read_image if store is None else store.image)(path)
        volume, affine, spacing = torch.from_numpy(voxels), torch.from_numpy(header.affine), header.spacing
        if not header.is_oriented and usable_spacing(spacing):
            axes = "".join(map(str, nibabel.aff2axcodes(header.affine)))
            remarks = [
                f"'{path}' states no orientation in its header: its axes are taken as {axes}; compare left and right "
                "with the patient's, and write the orientation into its header."
            ]
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim == 4 and isinstance(channel, int):
        if channel >= volume.shape[-1]:
            raise InputError(f"'{path}' has {volume.shape[-1]} channels, channel {channel} was asked for; correct it.")
        volume = volume[..., channel]
    if volume.ndim == 3 and channel == ALL:
        raise InputError(f"'{path}' has one channel, and the network takes several; give a 4D file with all of them.")
    volume = volume.movedim(-1, 0).contiguous() if volume.ndim == 4 and channel == ALL else volume[None]
    if volume.ndim != 4 or min(volume.shape[1:]) < 2:
        shape = "x".join(map(str, volume.shape[1:]))
        raise InputError(f"'{path}' is not a 3D volume (its shape is {shape}); give a volume of several slices.")
    if not torch.isfinite(volume).all():
        raise InputError(f"'{path}' holds NaN or infinite voxels; repair them, for example with numpy.nan_to_num.")
    return _with_geometry(volume, affine, path), remarks, spacing


def _with_geometry(voxels: torch.Tensor, affine: torch.Tensor, path: Any) -> MetaTensor:
    """Channel-first voxels, with what of the header MONAI's writers need to put a result on the file's own grid."""
    meta = {
        "filename_or_obj": str(path),
        "original_affine": torch.as_tensor(affine).clone(),
        "spatial_shape": np.array(voxels.shape[1:]),
    }
    return MetaTensor(voxels, affine=affine, meta=meta)


class LoadVolumed(MapTransform):
    """Load volumes channel-first, check them, and bring each label onto the voxel grid of the image.

    A label is where its own header says, see :func:`med3d_ext.io.grids.on_image_grid`; it takes the image's
    affine, and its values become whole numbers in float32. A label that is None is empty: the scan is known to hold no
    target. An item's ``case``, the name of its results, goes into the image's metadata. What must be known of how an
    image was read (no orientation, no spacing, DICOM files that were set aside) is a warning.

    Args:
        keys: keys of the files; the first is the image.
        channel: the channel to take of 4D images, or `all`; an item's own ``channel`` wins. Defaults to None.
        default_spacing: spacing (mm) for an image whose header has none. Defaults to None, which refuses such a file.
        require_foreground: refuse a label file without any foreground. Defaults to False.
        domain: the domain of items that name none, as a labelling server sends them. Defaults to None, no domain.
        store: has an ``image`` in place of :func:`med3d_ext.io.image_files.read_image`, as
            :class:`med3d_ext.io.store.Store` has. Defaults to None: every file is read.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        channel: int | str | None = None,
        default_spacing: Sequence[float] | None = None,
        require_foreground: bool = False,
        domain: str | None = None,
        allow_missing_keys: bool = False,
        store: Any = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channel, self.default_spacing, self.require_foreground = channel, default_spacing, require_foreground
        self.domain, self.store = domain, store

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.domain is not None:
            item.setdefault("domain", self.domain)
        image_key, *label_keys = self.key_iterator(item)
        image, remarks, spacing = _load(item[image_key], item.get("channel", self.channel), self.store)
        for remark in remarks:
            logger.warning(remark)
        name = image.meta["filename_or_obj"]
        grid = Grid.of(name, image.shape[1:], image.affine)
        if not usable_spacing(spacing):
            if self.default_spacing is None:
                raise InputError(f"'{name}' has no usable voxel spacing (0 or NaN); write the spacing into its header.")
            diagonal = torch.tensor([*ensure_tuple_rep(self.default_spacing, 3), 1.0], dtype=torch.float64)
            taken = " x ".join(f"{size:.2f}" for size in diagonal[:3].tolist())
            logger.warning(
                f"'{name}' has no usable voxel spacing (0 or NaN): {taken} mm along R, A and S are taken; write the "
                "spacing into its header."
            )
            image.affine = torch.diag(diagonal)
            image.meta["original_affine"] = image.affine.clone()
        if "case" in item:
            image.meta["case"] = item["case"]
        item[image_key] = image
        for key in label_keys:
            path, voxels = name, np.zeros(image.shape[1:], np.float32)
            if item[key] is not None:
                label = load_volume(item[key], None, self.store)
                path = label.meta["filename_or_obj"]
                own = Grid.of(path, label.shape[1:], label.affine, "label")
                voxels = whole_values(on_image_grid(label.as_tensor()[0].numpy(), own, grid), path)
                if self.require_foreground and not voxels.any():
                    raise InputError(f"label '{path}' holds no foreground; remove the case or give its real label.")
            item[key] = _with_geometry(torch.from_numpy(np.ascontiguousarray(voxels))[None], image.affine, path)
        return item

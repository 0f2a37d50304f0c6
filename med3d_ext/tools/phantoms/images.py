"""From a map of tissues to an image: the voxel grid in the world, CT and MR contrast, blur, noise and bias field."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from med3d_ext.tools.phantoms.shapes import smooth_field
from med3d_ext.tools.phantoms.torso import Tissue

# Tissue: (HU without contrast agent, rise in the late portal phase, spread between patients)
CT_VALUES: dict[int, tuple[float, float, float]] = {
    Tissue.AIR: (-1000, 0, 0),
    Tissue.TABLE: (-250, 0, 60),
    Tissue.FAT: (-103, 0, 6),
    Tissue.MUSCLE: (56, 18, 5),
    Tissue.BONE: (560, 0, 70),
    Tissue.MARROW: (190, 20, 40),
    Tissue.RIGHT_LUNG: (-850, 0, 20),
    Tissue.LEFT_LUNG: (-850, 0, 20),
    Tissue.GAS: (-960, 0, 10),
    Tissue.HEART: (46, 44, 6),
    Tissue.BLOOD: (42, 115, 10),
    Tissue.LIVER: (58, 32, 6),
    Tissue.HEPATIC_VESSEL: (44, 112, 8),
    Tissue.LESION: (16, 18, 8),
    Tissue.SPLEEN: (50, 42, 6),
    Tissue.KIDNEY: (36, 110, 10),
    Tissue.STOMACH: (44, 36, 14),
    Tissue.BOWEL: (46, 40, 10),
    Tissue.PANCREAS: (42, 70, 7),
    Tissue.GALLBLADDER: (10, 0, 6),
    Tissue.RIGHT_LUNG_VESSEL: (20, 90, 10),
    Tissue.LEFT_LUNG_VESSEL: (20, 90, 10),
}
# Relative signal of a T1-weighted chest; lungs and bone are dark as air is, so air alone tells no lung.
MR_VALUES: dict[int, tuple[float, float]] = {
    Tissue.AIR: (0.02, 0),
    Tissue.TABLE: (0.02, 0),
    Tissue.FAT: (0.92, 0.06),
    Tissue.MUSCLE: (0.38, 0.05),
    Tissue.BONE: (0.14, 0.04),
    Tissue.MARROW: (0.6, 0.08),
    Tissue.RIGHT_LUNG: (0.11, 0.02),
    Tissue.LEFT_LUNG: (0.11, 0.02),
    Tissue.GAS: (0.03, 0.01),
    Tissue.HEART: (0.44, 0.05),
    Tissue.BLOOD: (0.3, 0.15),
    Tissue.LIVER: (0.52, 0.06),
    Tissue.HEPATIC_VESSEL: (0.3, 0.1),
    Tissue.LESION: (0.36, 0.05),
    Tissue.SPLEEN: (0.4, 0.05),
    Tissue.KIDNEY: (0.42, 0.05),
    Tissue.STOMACH: (0.3, 0.12),
    Tissue.BOWEL: (0.36, 0.1),
    Tissue.PANCREAS: (0.5, 0.05),
    Tissue.GALLBLADDER: (0.22, 0.1),
    Tissue.RIGHT_LUNG_VESSEL: (0.28, 0.1),
    Tissue.LEFT_LUNG_VESSEL: (0.28, 0.1),
}


@dataclass(frozen=True)
class Grid:
    """Where the voxels of one scan lie.

    Args:
        shape: voxels along right, front and head.
        spacing: mm along the same axes.
        center: body coordinates of the middle of the grid, in mm.
        tilt_degrees: rotation about x, y and z of the grid in a patient who stays upright (an oblique scan).
        orientation: axis codes of the stored array, for example "LPS".
        offset: world coordinates of the body's origin, in mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilt_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: str = "RAS"
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def body_affine(self) -> np.ndarray:
        """Voxel index to body coordinates, 4 x 4."""
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", self.tilt_degrees, degrees=True).as_matrix() * self.spacing
        affine[:3, 3] = np.asarray(self.center) - affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2)
        return affine

    def points(self) -> np.ndarray:
        """Body coordinates of all voxels in mm, float32, 3 x X x Y x Z."""
        affine = self.body_affine()
        axes = np.ogrid[tuple(slice(size) for size in self.shape)]
        rows = [sum(step * axis for step, axis in zip(row[:3], axes)) + row[3] for row in affine[:3]]
        return np.stack(rows).astype(np.float32)

    def write(self, voxels: np.ndarray, path: Path) -> None:
        """Write voxels X x Y x Z (x channels) as .nii.gz in the grid's orientation; equal voxels give equal bytes."""
        affine = self.body_affine()
        affine[:3, 3] += self.offset
        turn = orientations.ornt_transform(
            orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(tuple(self.orientation))
        )
        image = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
        image.set_qform(image.affine, 1)
        image.set_sform(image.affine, 1)
        image.header.set_xyzt_units("mm")
        path.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))


def ct_image(tissues: np.ndarray, points: np.ndarray, rng: np.random.Generator, phase: float) -> np.ndarray:
    """CT of a map of tissues as int16 HU.

    Args:
        tissues: map of :class:`~med3d_ext.tools.phantoms.torso.Tissue`.
        points: body coordinates of its voxels, for the slow unevenness of every tissue.
        rng: source of the patient's values and of the noise.
        phase: 0 without contrast agent, 1 in the late portal phase.
    """
    values = {key: base + phase * rise + rng.normal(0, spread) for key, (base, rise, spread) in CT_VALUES.items()}
    # The spleen is drawn around this liver: nobody may tell the two apart by HU.
    values[Tissue.SPLEEN] = values[Tissue.LIVER] + rng.normal(0, 8)
    image = blur(paint(tissues, values), 0.45)
    image += 5 * smooth_field(points, rng, 45) * (image > -200)
    image += noise(tissues.shape, rng) * np.float32(rng.uniform(12, 22))
    return np.clip(np.rint(image), -1024, 2500).astype(np.int16)


def mr_image(signal: np.ndarray, points: np.ndarray, rng: np.random.Generator, level: float = 0.035) -> np.ndarray:
    """int16 MR magnitude, arbitrary scale, of a relative signal: blur, bias field, Rician noise of SD ``level``."""
    bias = np.exp(np.float32(rng.uniform(0.1, 0.22)) * smooth_field(points, rng, 320, 3))
    clean = blur(signal, 0.45) * bias
    real, imaginary = (np.float32(level) * noise(signal.shape, rng) for _ in range(2))
    scale = np.float32(10 ** rng.uniform(2, 3.3))
    return np.clip(np.rint(scale * np.hypot(clean + real, imaginary)), 0, 32000).astype(np.int16)


def mr_values(rng: np.random.Generator) -> dict[int, float]:
    """One patient's relative MR signal per tissue."""
    return {key: max(0.0, base + rng.normal(0, spread)) for key, (base, spread) in MR_VALUES.items()}


def paint(labels: np.ndarray, values: Mapping[int, float]) -> np.ndarray:
    """float32 array with every label replaced by its value."""
    table = np.zeros(max(values) + 1, np.float32)
    for key, value in values.items():
        table[key] = value
    return table[labels]


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """The image smoothed by ``sigma`` voxels, as voxels that hold two tissues show both."""
    return gaussian_filter(image, sigma, truncate=3)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 that neighbors share a little."""
    white = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.6, truncate=3)
    return white / white.std()

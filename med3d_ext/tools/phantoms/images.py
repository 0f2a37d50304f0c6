"""Images of the phantoms: the voxel grid in the world, CT and MR contrast, blur, noise and bias field; nodules."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from med3d_ext.tools.phantoms.anatomy import REGIONS, Space

TORSO = list(REGIONS["torso"]["tissues"])
LUNG_HU, SOLID_HU, WALL_HU = -850.0, 30.0, 45.0  # around a nodule, in it, and of vessels and chest wall


@dataclass(frozen=True)
class Grid:
    """Where the voxels of one scan lie; lengths in mm."""

    shape: tuple[int, ...]  # voxels along right, front and head
    spacing: tuple[float, ...]
    center: tuple[float, ...] = (0.0, 0.0, 0.0)  # body coordinates of the grid's middle
    tilt_degrees: tuple[float, ...] = (0.0, 0.0, 0.0)  # about x, y and z, while the patient stays upright (oblique)
    orientation: str = "RAS"  # axis codes of the stored array
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)  # world coordinates of the body's origin

    def body_affine(self) -> np.ndarray:
        """Voxel index to body coordinates, 4 x 4."""
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", self.tilt_degrees, degrees=True).as_matrix() * self.spacing
        affine[:3, 3] = np.asarray(self.center) - affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2)
        return affine

    def points(self) -> np.ndarray:
        """Body coordinates of all voxels in mm, float32, 3 x X x Y x Z."""
        axes = np.ogrid[tuple(slice(size) for size in self.shape)]
        rows = [sum(step * axis for step, axis in zip(row[:3], axes)) + row[3] for row in self.body_affine()[:3]]
        return np.stack(rows).astype(np.float32)

    def write(self, voxels: np.ndarray, path: Path) -> None:
        """Write voxels X x Y x Z (x channels) as .nii.gz in the grid's orientation; equal voxels give equal bytes."""
        affine = self.body_affine()
        affine[:3, 3] += self.offset
        stored, usual = (orientations.axcodes2ornt(tuple(codes)) for codes in (self.orientation, "RAS"))
        image = nib.Nifti1Image(voxels, affine).as_reoriented(orientations.ornt_transform(usual, stored))
        image.set_qform(image.affine, 1)
        image.set_sform(image.affine, 1)
        image.header.set_xyzt_units("mm")
        path.write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))


def ct_image(tissues: np.ndarray, space: Space, phase: float) -> np.ndarray:
    """CT of a torso as int16 HU, every tissue a little uneven; ``phase`` is 0 without contrast, 1 late portal."""
    rng = space.rng
    base, rise, spread = np.array(list(REGIONS["torso"]["tissues"].values())).T[:3]
    values = base + phase * rise + rng.normal(0, spread)
    # The spleen is drawn around this liver: nobody may tell the two apart by HU.
    values[TORSO.index("spleen")] = values[TORSO.index("liver")] + rng.normal(0, 8)
    image = _blur(values.astype(np.float32)[tissues], 0.45)
    image += 5 * space.field(45) * (image > -200)
    return _hounsfield(image + _noise(tissues.shape, rng) * np.float32(rng.uniform(12, 22)))


def mr_image(tissues: np.ndarray, space: Space, region: str, channel: int = 0) -> np.ndarray:
    """int16 MR magnitude, arbitrary scale, with blur, bias field and Rician noise; of a torso, T1-weighted."""
    rng = space.rng
    table = np.array(list(REGIONS[region]["tissues"].values())).T
    if region == "torso":
        values = np.maximum(0, table[3] + rng.normal(0, table[4]))
    else:
        values = table[channel] * rng.normal(1, 0.05, len(table[channel]))
    bias = np.exp(np.float32(rng.uniform(0.1, 0.22)) * space.field(320, 3))
    clean = _blur(values.astype(np.float32)[tissues], 0.45) * bias
    real, imaginary = (np.float32(0.035) * _noise(tissues.shape, rng) for _ in range(2))
    scale = np.float32(10 ** rng.uniform(2, 3.3))
    return np.clip(np.rint(scale * np.hypot(clean + real, imaginary)), 0, 32000).astype(np.int16)


def nodule(space: Space, radius: float, severity: float) -> tuple[np.ndarray, np.ndarray]:
    """One nodule in lung tissue: malignancy shows in outline and texture, and size tells nothing about it.

    Args:
        space: points around the nodule, 3 x X x Y x Z.
        radius: radius in mm of the ball that has the nodule's volume.
        severity: 0 (round, smooth, even, at times calcified) to 1 (lobulated, spiculated, uneven, with a soft rim).
    """
    rng = space.rng
    center = np.array(space.near((0, 0, 0), 2), np.float32).reshape(3, 1, 1, 1)
    severity = float(np.clip(severity + rng.normal(0, 0.08), 0, 1))
    outline = _outline(Space(space.points - center, rng), severity)
    volume = int(4 / 3 * np.pi * radius**3)  # voxels of 1 mm
    level = np.partition(outline.ravel(), volume)[volume]
    inside = outline < level
    image = LUNG_HU + 30 * space.field(20)
    for _ in range(rng.integers(3, 7)):
        vessel = space.tube((rng.normal(size=(2, 3)) * 30).tolist(), rng.uniform(0.8, 2.2, 2).tolist())
        image[vessel < 0] = WALL_HU
    if rng.random() < 1 / 3:  # the chest wall is close
        side = rng.normal(size=3)
        image[space.ellipsoid((side / np.linalg.norm(side) * (radius - 58)).tolist(), (60, 60, 60)) > 0] = WALL_HU
    texture = space.field(7)
    solid = SOLID_HU + rng.normal(0, 40) + 110 * severity * np.clip(texture, -2.5, 0.5)
    # Ground glass: outwards the nodule fades into the lung, a malignant one further.
    rim = np.clip((level - outline) / level / (rng.uniform(0.05, 0.3) + 0.3 * severity), 0, 1)
    edge = rng.uniform(0.3, 0.7)
    image[inside] = (LUNG_HU + (edge + (1 - edge) * rim) * (solid - LUNG_HU))[inside]
    if rng.random() < 0.5 * (1 - severity) ** 2:
        image[outline < 0.45 * level] = rng.uniform(250, 500)
    noisy = _blur(image, 0.6) + np.float32(rng.uniform(18, 32)) * _noise(image.shape, rng)
    return _hounsfield(noisy), inside.astype(np.uint8)


def _outline(space: Space, severity: float) -> np.ndarray:
    """Distance from the center over the outline's own reach in that direction: lobes, and rays for spicules."""
    rng = space.rng
    stretched = space.points / np.float32(rng.uniform(0.85, 1.18, 3)).reshape(3, 1, 1, 1)
    distance = np.sqrt(np.square(stretched).sum(0)) + np.float32(1e-3)
    direction = stretched / distance
    reach = 1 + np.float32(0.03 + 0.15 * severity) * Space(direction, rng).field(1.6)
    rays = rng.normal(size=(int(round(16 * severity)), 3))
    for ray in (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32):
        cosine = np.tensordot(ray, direction, 1)
        reach += np.float32(0.9 * severity) * np.exp((cosine - 1) / np.float32(0.014))
    return distance / np.clip(reach, 0.3, None)


def _hounsfield(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), -1024, 2500).astype(np.int16)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """The image smoothed by ``sigma`` voxels, as voxels that hold two tissues show both."""
    return gaussian_filter(image, sigma, truncate=3)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 that neighbors share a little."""
    white = _blur(rng.standard_normal(shape, dtype=np.float32), 0.6)
    return white / white.std()

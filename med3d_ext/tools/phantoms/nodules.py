"""Phantom lung nodules: malignancy shows in outline and texture, and size tells nothing about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from med3d_ext.tools.phantoms.images import Grid, blur, noise
from med3d_ext.tools.phantoms.shapes import ellipsoid, near, smooth_field, tube

EDGE = 48  # voxels of 1 mm per axis
# Benign (1-3) and malignant (4, 5) in turn; each such pair gets one volume, so that sizes are equal by construction.
RATINGS = (1, 4, 3, 5, 2, 4, 3, 5, 2, 5)
LUNG_HU, SOLID_HU, WALL_HU = -850.0, 30.0, 45.0


def write_nodules(folder: Path, cases: int, seed: int) -> None:
    """Write images/, masks/ and nodules.csv (nodule, scan, malignancy); every fifth nodule shares its scan."""
    for part in ("images", "masks"):
        (folder / part).mkdir()
    rows = ["nodule,scan,malignancy"]
    for index in range(cases):
        rng = np.random.default_rng([seed, 300, index])
        radius = np.random.default_rng([seed, 301, index // 2]).uniform(4.5, 10)
        rating, second = RATINGS[index % len(RATINGS)], index % 5 == 4
        scan = index - second
        name = f"{scan}_nod{1 + second}_ann0"
        grid = Grid((EDGE,) * 3, (1.0, 1.0, 1.0), offset=tuple(rng.uniform(-100, 100, 3)))
        image, mask = nodule(grid.points(), rng, radius, (rating - 1) / 4)
        grid.write(image, folder / "images" / f"{name}.nii.gz")
        grid.write(mask, folder / "masks" / f"{name}.nii.gz")
        rows.append(f"{name},{scan},{rating}")
    (folder / "nodules.csv").write_text("\n".join(rows) + "\n")


def nodule(
    points: np.ndarray, rng: np.random.Generator, radius: float, severity: float
) -> tuple[np.ndarray, np.ndarray]:
    """One nodule in lung tissue.

    Args:
        points: coordinates around the nodule, 3 x X x Y x Z in mm.
        rng: source of everything else: place, vessels, chest wall, noise.
        radius: radius in mm of the ball that has the nodule's volume.
        severity: 0 (round, smooth, even, at times calcified) to 1 (lobulated, spiculated, uneven, with a soft rim).

    Returns:
        CT as int16 HU and the nodule's mask as uint8.
    """
    center = near(rng, (0, 0, 0), 2)
    severity = float(np.clip(severity + rng.normal(0, 0.08), 0, 1))
    outline = _outline(points - np.array(center, np.float32).reshape(3, 1, 1, 1), rng, severity)
    volume = int(4 / 3 * np.pi * radius**3)  # voxels of 1 mm
    level = np.partition(outline.ravel(), volume)[volume]
    inside = outline < level
    image = _surroundings(points, rng, radius)
    texture = smooth_field(points, rng, 7)
    solid = SOLID_HU + rng.normal(0, 40) + 110 * severity * np.clip(texture, -2.5, 0.5)
    # Ground glass: outwards the nodule fades into the lung, a malignant one further.
    rim = np.clip((level - outline) / level / (rng.uniform(0.05, 0.3) + 0.3 * severity), 0, 1)
    edge = rng.uniform(0.3, 0.7)
    image[inside] = (LUNG_HU + (edge + (1 - edge) * rim) * (solid - LUNG_HU))[inside]
    if rng.random() < 0.5 * (1 - severity) ** 2:
        image[outline < 0.45 * level] = rng.uniform(250, 500)
    image = blur(image, 0.6) + np.float32(rng.uniform(18, 32)) * noise(image.shape, rng)
    return np.clip(np.rint(image), -1024, 2500).astype(np.int16), inside.astype(np.uint8)


def _outline(points: np.ndarray, rng: np.random.Generator, severity: float) -> np.ndarray:
    """Distance from the center over the outline's own reach in that direction."""
    stretched = points / np.float32(rng.uniform(0.85, 1.18, 3)).reshape(3, 1, 1, 1)
    distance = np.sqrt(np.square(stretched).sum(0)) + np.float32(1e-3)
    direction = stretched / distance
    reach = 1 + np.float32(0.03 + 0.15 * severity) * smooth_field(direction, rng, 1.6)
    rays = rng.normal(size=(int(round(16 * severity)), 3))
    for ray in (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32):
        cosine = np.tensordot(ray, direction, 1)
        reach += np.float32(0.9 * severity) * np.exp((cosine - 1) / np.float32(0.014))
    return distance / np.clip(reach, 0.3, None)


def _surroundings(points: np.ndarray, rng: np.random.Generator, radius: float) -> np.ndarray:
    """Lung with vessels and, in every third case, the chest wall close to the nodule."""
    image = LUNG_HU + 30 * smooth_field(points, rng, 20)
    for _ in range(rng.integers(3, 7)):
        start, end = rng.normal(size=(2, 3)) * 30
        vessel = tube(points, [start.tolist(), end.tolist()], [float(width) for width in rng.uniform(0.8, 2.2, 2)])
        image[vessel < 0] = WALL_HU
    if rng.random() < 1 / 3:
        side = rng.normal(size=3)
        wall = ellipsoid(points, (side / np.linalg.norm(side) * (radius - 58)).tolist(), (60, 60, 60))
        image[wall > 0] = WALL_HU
    return image

"""The phantom torso: from lower chest to kidneys, as a map of tissues in body coordinates.

Right and left differ (liver and its dome on the right; heart apex, stomach and spleen on the left), so a pipeline that
mirrors a scan cannot pass for a correct one. No anatomy text or atlas stands behind the numbers: they are plausible.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from med3d_ext.tools.phantoms.shapes import common, ellipsoid, near, smooth_field, tube, union, warp

INFINITE = float("inf")
Tissue = IntEnum(
    "Tissue",
    "AIR TABLE FAT MUSCLE BONE MARROW RIGHT_LUNG LEFT_LUNG GAS HEART BLOOD LIVER HEPATIC_VESSEL LESION SPLEEN KIDNEY "
    "STOMACH BOWEL PANCREAS GALLBLADDER RIGHT_LUNG_VESSEL LEFT_LUNG_VESSEL",
    start=0,
)
_PORTAL = (
    ([(8, -8, -34), (34, 0, -8), (62, -4, 6), (92, -14, 22)], (8, 7, 5.5, 3.5)),
    ([(62, -4, 6), (88, 22, -22), (92, 18, -52)], (5.5, 4.5, 3)),
    ([(34, 0, -8), (14, 30, 10), (-18, 42, 18)], (6, 5, 3)),
)
_HEPATIC_VEINS = (
    ([(24, -24, 44), (58, -6, 34), (96, 12, 14)], (7, 5.5, 3)),
    ([(24, -24, 44), (42, 24, 28), (52, 46, -2)], (6, 5, 3)),
    ([(24, -24, 44), (6, 14, 34), (-16, 36, 28)], (6, 5, 3)),
)


def torso(
    points: np.ndarray, rng: np.random.Generator, lesions: int = 0, thin_scale: float = 1.0, table: bool = False
) -> np.ndarray:
    """Tissue of every point of one random patient.

    Args:
        points: body coordinates, 3 x X x Y x Z in mm, origin near the middle of the upper abdomen.
        rng: source of the patient's shape.
        lesions: number of round lesions in the liver.
        thin_scale: thickness of pancreas and liver vessels relative to the usual one (coarse grids need thicker ones).
        table: whether the patient lies on a visible table.

    Returns:
        uint8 array X x Y x Z of :class:`Tissue`.
    """
    tissues = np.zeros(points.shape[1:], np.uint8)
    if table:
        bed = ellipsoid(points, (0, 130, 0), (330, 262, INFINITE))
        tissues[(np.abs(bed) < 4) & (points[1] < 0) & (np.abs(points[0]) < 170)] = Tissue.TABLE
    points = warp(points / np.float32(rng.uniform(0.93, 1.07)), rng, 230, 4.5)
    points = warp(points, rng, 75, 1.2)
    fat = rng.uniform(8, 20)
    skin = ellipsoid(points, (0, 0, 0), (rng.uniform(142, 156), rng.uniform(100, 112), INFINITE))
    cavity = skin + np.float32(fat + 14)
    tissues[skin < 0] = Tissue.FAT
    tissues[(skin < -fat) & (cavity > 0)] = Tissue.MUSCLE
    dome = _diaphragm(points, rng)
    below = np.maximum(dome, cavity + 2)
    neighbors = _paint_abdomen(tissues, points, below, rng, thin_scale)
    _paint_liver(tissues, points, common(below + 3, -neighbors, 6), rng, lesions, thin_scale)
    _paint_chest(tissues, points, cavity, dome, rng)
    _paint_skeleton(tissues, points, skin + np.float32(fat + 7), rng)
    return tissues


def _diaphragm(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Height above the two domes in mm: positive in the chest; the right dome is the higher one."""
    x, y, z = points
    top = np.where(x > 0, np.float32(rng.uniform(58, 72)), np.float32(rng.uniform(46, 56)))
    outward = np.abs(x) - 66
    slope = np.square(outward / np.where(outward > 0, np.float32(68), np.float32(125))) + np.square((y - 8) / 98)
    return z - (top - 72 * slope)


def _paint_abdomen(
    tissues: np.ndarray, points: np.ndarray, below: np.ndarray, rng: np.random.Generator, thin_scale: float
) -> np.ndarray:
    """Paint all but the liver; returns the shape of what the liver yields to."""
    inside = below < 0
    spleen = ellipsoid(points, near(rng, (-88, -20, 4)), near(rng, (30, 46, 50)))
    stomach = ellipsoid(points, near(rng, (-56, 30, 6)), near(rng, (36, 40, 48)))
    neighbors = np.minimum(spleen, stomach)
    loops = smooth_field(points, rng, 62)
    gut = inside & (points[1] > -20) & (points[2] < 5 + points[1] / 4) & (loops > -0.25)
    tissues[gut] = Tissue.BOWEL
    tissues[gut & (loops > 1.35)] = Tissue.GAS
    for side in (-1, 1):
        tissues[ellipsoid(points, (side * 40, -66, 0), (24, 22, INFINITE)) < 0] = Tissue.MUSCLE
        kidney = ellipsoid(points, near(rng, (side * 62, -36, -48 - 6 * side)), near(rng, (27, 25, 48), 3))
        tissues[inside & (kidney < 0)] = Tissue.KIDNEY
        tissues[inside & (kidney < -17) & (side * points[0] < 62)] = Tissue.FAT
        neighbors = np.minimum(neighbors, kidney - 4)  # a cushion of fat
    tissues[inside & (spleen < 0)] = Tissue.SPLEEN
    tissues[inside & (stomach < 0)] = Tissue.STOMACH
    level = np.float32(rng.uniform(38, 55))
    tissues[inside & (stomach < -4) & (points[1] > level)] = Tissue.GAS
    path = [near(rng, corner, 3) for corner in ((34, 4, -34), (6, 14, -22), (-32, 2, -14), (-66, -10, -4))]
    pancreas = tube(points, path, [radius * thin_scale for radius in (13, 10, 9, 8)])
    tissues[inside & (pancreas < 2.5)] = Tissue.FAT
    tissues[inside & (pancreas < 0)] = Tissue.PANCREAS
    return np.minimum(neighbors, pancreas - 2.5)


def _paint_liver(
    tissues: np.ndarray, points: np.ndarray, room: np.ndarray, rng: np.random.Generator, lesions: int, thin_scale: float
) -> None:
    right = ellipsoid(points, near(rng, (66, 4, -8)), near(rng, (62, 72, 82)))
    left = ellipsoid(points, near(rng, (0, 36, 16)), near(rng, (66, 32, 34), 7))
    edge = (-86 + 0.6 * (84 - points[0]) - 0.25 * points[1]) - points[2] + np.float32(rng.uniform(-8, 8))
    liver = common(common(union(right, left, 24), edge, 14), room, 6)
    gallbladder = ellipsoid(points, near(rng, (46, 46, -34)), (13, 15, 25))
    tissues[(gallbladder < 0) & (room < 0)] = Tissue.GALLBLADDER
    inside = (liver < 0) & (gallbladder > 2)
    tissues[inside] = Tissue.LIVER
    # Vessels and lesions are evaluated on the liver's points alone, a tenth of the grid.
    own, depth = points[:, inside], liver[inside]
    parts = np.full(depth.shape, Tissue.LIVER, np.uint8)
    for path, radii in _PORTAL + _HEPATIC_VEINS:
        moved = [near(rng, corner, 4) for corner in path]
        parts[tube(own, moved, [radius * thin_scale for radius in radii]) < 0] = Tissue.HEPATIC_VESSEL
    rough = smooth_field(own, rng, 30)
    for radius in rng.uniform(8, 19, lesions):
        center = own[:, rng.choice(np.flatnonzero(depth < np.percentile(depth, 60)))].tolist()
        parts[ellipsoid(own, center, near(rng, [radius] * 3, 2)) + 1.5 * rough < 0] = Tissue.LESION
    tissues[inside] = parts


def _paint_chest(
    tissues: np.ndarray, points: np.ndarray, cavity: np.ndarray, dome: np.ndarray, rng: np.random.Generator
) -> None:
    x, y, z = points
    apex = ellipsoid(points, (0, -5, 60), (150, 110, rng.uniform(150, 170)))
    chest = (cavity < -2) & (dome > 0)
    tissues[chest & (dome < 4)] = Tissue.MUSCLE
    heart = ellipsoid(points, near(rng, (-14, 24, 84)), near(rng, (54, 42, 42)))
    middle = np.abs(x + 4) - (20 + 0.12 * np.abs(y - 20))
    lungs = chest & (dome > 4) & (middle > 0) & (heart > 3) & (apex < 0)
    vessels = smooth_field(points, rng, 34) + 0.6 * smooth_field(points, rng, 17) > 2.2
    right = x > 0
    tissues[lungs] = np.where(right, Tissue.RIGHT_LUNG, Tissue.LEFT_LUNG)[lungs]
    tissues[lungs & vessels] = np.where(right, Tissue.RIGHT_LUNG_VESSEL, Tissue.LEFT_LUNG_VESSEL)[lungs & vessels]
    tissues[chest & (heart < 0)] = Tissue.HEART
    for center, radii in (((-38, 30, 80), (24, 22, 24)), ((10, 34, 88), (22, 19, 27)), ((-16, 4, 100), (23, 13, 18))):
        tissues[chest & (ellipsoid(points, near(rng, center, 3), radii) < 0)] = Tissue.BLOOD
    tissues[tube(points, [(-2, -18, 300), (-2, -18, 122)], (9, 9)) < 0] = Tissue.GAS


def _paint_skeleton(tissues: np.ndarray, points: np.ndarray, wall: np.ndarray, rng: np.random.Generator) -> None:
    x, y, z = points
    tissues[ellipsoid(points, near(rng, (-11, -32, 0), 3), (11, 11, INFINITE)) < 0] = Tissue.BLOOD
    vein = ellipsoid(points, near(rng, (24, -26, 0), 3), (12, 9, INFINITE))
    tissues[(vein < 0) & (z < 70)] = Tissue.BLOOD
    body, arch = ellipsoid(points, (0, -61, 0), (21, 17, INFINITE)), ellipsoid(points, (0, -75, 0), (11, 11, INFINITE))
    spine = np.minimum(np.minimum(body, arch), np.maximum(np.abs(x) - 4, np.abs(y + 88) - 12))
    disc = np.mod(z + np.float32(rng.uniform(0, 32)), 32) < 6
    tissues[spine < 0] = Tissue.BONE
    tissues[spine < -4] = Tissue.MARROW
    tissues[(spine < 0) & disc & (y > -76)] = Tissue.MUSCLE
    # Ribs lie in the wall and fall towards the front; below the arch there are none.
    turns = np.mod(z + 0.45 * y + np.float32(rng.uniform(0, 30)), 30)
    rib = np.hypot(wall, turns - 15) - 5.5
    rib[(z < -60 + 0.5 * np.clip(y, 0, None)) | (np.abs(x) < 30)] = 1
    tissues[rib < 0] = Tissue.BONE
    tissues[rib < -3] = Tissue.MARROW

"""What the phantoms show, as maps of tissues in body coordinates: the torso, and the regions of four MR domains.

In each the target shares its signal with something else in the scan, so place and shape have to be learned. The torso's
right and left differ (liver and its dome on the right; heart apex, stomach and spleen on the left), so a pipeline that
mirrors a scan cannot pass for a correct one. No anatomy text or atlas stands behind the numbers: they are plausible.
Points are float32 in mm with the axes first (3 x ...): x to the patient's right, y to the front, z to the head.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Point = Sequence[float]
INFINITE = float("inf")
REGIONS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("tissues.json").read_text())
"""Region to its tissues, in the order of their numbers, and their values; an MR region also has its labels and grid."""

_PORTAL_VEINS = (
    ([(8, -8, -34), (34, 0, -8), (62, -4, 6), (92, -14, 22)], (8, 7, 5.5, 3.5)),
    ([(62, -4, 6), (88, 22, -22), (92, 18, -52)], (5.5, 4.5, 3)),
    ([(34, 0, -8), (14, 30, 10), (-18, 42, 18)], (6, 5, 3)),
)
_HEPATIC_VEINS = (
    ([(24, -24, 44), (58, -6, 34), (96, 12, 14)], (7, 5.5, 3)),
    ([(24, -24, 44), (42, 24, 28), (52, 46, -2)], (6, 5, 3)),
    ([(24, -24, 44), (6, 14, 34), (-16, 36, 28)], (6, 5, 3)),
)


class Space:
    """Points (3 x ... in mm) in a random patient, and implicit shapes there: every one is negative inside and grows by
    about 1 per mm outwards. Nothing here knows a grid, so one anatomy fits every spacing and orientation.
    """

    def __init__(self, points: np.ndarray, rng: np.random.Generator) -> None:
        self.points, self.rng = points, rng

    def near(self, values: Point, spread: float) -> Point:
        """The numbers, each moved by up to ``spread`` (mm); a spread of 0 leaves them, and ``rng``, alone."""
        return (np.asarray(values) + self.rng.uniform(-spread, spread, len(values))).tolist() if spread else values

    def field(self, wavelength: float, waves: int = 5) -> np.ndarray:
        """A smooth random field of mean 0 and standard deviation 1: sinusoids with periods near ``wavelength`` (mm)."""
        total = np.zeros(self.points.shape[1:], np.float32)
        for _ in range(waves):
            direction = self.rng.normal(size=3)
            direction *= 2 * np.pi / (np.linalg.norm(direction) * wavelength * self.rng.uniform(0.7, 1.3))
            phase = np.tensordot(direction.astype(np.float32), self.points, 1)
            total += np.sin(phase + np.float32(self.rng.uniform(0, 2 * np.pi)))
        return total * np.float32(np.sqrt(2 / waves))

    def warp(self, wavelength: float, amplitude: float) -> None:
        """Move the points by a smooth random displacement of ``amplitude`` mm (standard deviation per axis)."""
        self.points = self.points + np.float32(amplitude) * np.stack([self.field(wavelength) for _ in range(3)])

    def ellipsoid(self, center: Point, radii: Point, moved: float = 0, resized: float = 0) -> np.ndarray:
        """An ellipsoid with axes along x, y, z; a radius of infinity makes it a cylinder.

        ``moved`` and ``resized`` say by how many mm center and radii may differ from those given, along each axis.
        """
        center, radii = self.near(center, moved), self.near(radii, resized)
        finite = [radius for radius in radii if np.isfinite(radius)]
        total = np.zeros(self.points.shape[1:], np.float32)
        for axis, middle, radius in zip(self.points, center, radii):
            if np.isfinite(radius):
                total += np.square((axis - np.float32(middle)) / np.float32(radius))
        return (np.sqrt(total) - 1) * np.float32(sum(finite) / len(finite))

    def tube(self, path: Sequence[Point], radii: Point, moved: float = 0) -> np.ndarray:
        """A round tube along a polyline with one radius per corner, linear in between; corners may move as centers."""
        corners = [np.asarray(self.near(corner, moved)) for corner in path]
        closest = np.full(self.points.shape[1:], np.inf, np.float32)
        for start, end, first, last in zip(corners[:-1], corners[1:], radii[:-1], radii[1:]):
            direction = end - start
            square = direction @ direction
            share = np.tensordot((direction / square).astype(np.float32), self.points, 1)
            share = np.clip(share - np.float32(direction @ start / square), 0, 1)  # of the way from start to end
            steps = zip(self.points, start.astype(np.float32), direction.astype(np.float32))
            distance = np.sqrt(sum(np.square(axis - origin - share * step) for axis, origin, step in steps))
            closest = np.minimum(closest, distance - (np.float32(first) + share * np.float32(last - first)))
        return closest


def union(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """The two shapes as one, the seam between them filled over about ``blend`` mm."""
    overlap = np.clip(np.float32(blend) - np.abs(first - second), 0, None) / np.float32(blend)
    return np.minimum(first, second) - overlap * overlap * np.float32(blend / 4)


def common(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """What lies in both shapes, the edge between them rounded over about ``blend`` mm."""
    return -union(-first, -second, blend)


class Body(Space):
    """One random patient of a region, painted tissue by tissue: ``body["liver"] = where``.

    ``tissues`` is the uint8 map of the tissues' numbers, of the points' shape; ``fill`` is everywhere at first.
    """

    def __init__(self, region: str, space: Space, fill: str) -> None:
        super().__init__(space.points, space.rng)
        self.names = list(REGIONS[region]["tissues"])
        self.tissues = np.full(space.points.shape[1:], self.names.index(fill), np.uint8)

    def __setitem__(self, tissue: str, where: np.ndarray) -> None:
        self.tissues[where] = self.names.index(tissue)

    def paint(self, shape: np.ndarray, tissue: str, wall: str, thickness: float) -> None:
        """Paint a shape and a wall around it."""
        self[wall] = shape < thickness
        self[tissue] = shape < 0


def torso(space: Space, lesions: int = 0, thin_scale: float = 1.0, table: bool = False) -> np.ndarray:
    """Tissue (uint8 numbers) of every point of one random patient, from lower chest to kidneys.

    The origin is near the middle of the upper abdomen. ``lesions`` are round and in the liver; ``thin_scale`` is the
    thickness of pancreas and liver vessels relative to the usual one (coarse grids need thicker ones); ``table`` shows
    the one that the patient lies on.
    """
    body, rng = Body("torso", space, "air"), space.rng
    if table:
        bed = body.ellipsoid((0, 130, 0), (330, 262, INFINITE))
        body["table"] = (np.abs(bed) < 4) & (body.points[1] < 0) & (np.abs(body.points[0]) < 170)
    body.points = body.points / np.float32(rng.uniform(0.93, 1.07))
    body.warp(230, 4.5)
    body.warp(75, 1.2)
    x, y, z = body.points
    fat = rng.uniform(8, 20)
    skin = body.ellipsoid((0, 0, 0), (rng.uniform(142, 156), rng.uniform(100, 112), INFINITE))
    cavity = skin + np.float32(fat + 14)
    body["fat"] = skin < 0
    body["muscle"] = (skin < -fat) & (cavity > 0)
    # The diaphragm: height above its two domes in mm, positive in the chest; the right dome is the higher one.
    top = np.where(x > 0, np.float32(rng.uniform(58, 72)), np.float32(rng.uniform(46, 56)))
    outward = np.abs(x) - 66
    slope = np.square(outward / np.where(outward > 0, np.float32(68), np.float32(125))) + np.square((y - 8) / 98)
    dome = z - (top - 72 * slope)
    below = np.maximum(dome, cavity + 2)
    neighbors = _abdomen(body, below < 0, thin_scale)
    _liver(body, common(below + 3, -neighbors, 6), lesions, thin_scale)
    _chest(body, cavity, dome)
    _skeleton(body, skin + np.float32(fat + 7))
    return body.tissues


def _abdomen(body: Body, inside: np.ndarray, thin_scale: float) -> np.ndarray:
    """Paint all but the liver; returns the shape of what the liver yields to."""
    x, y, z = body.points
    spleen = body.ellipsoid((-88, -20, 4), (30, 46, 50), 5, 5)
    stomach = body.ellipsoid((-56, 30, 6), (36, 40, 48), 5, 5)
    neighbors = np.minimum(spleen, stomach)
    loops = body.field(62)
    gut = inside & (y > -20) & (z < 5 + y / 4) & (loops > -0.25)
    body["bowel"] = gut
    body["gas"] = gut & (loops > 1.35)
    for side in (-1, 1):
        body["muscle"] = body.ellipsoid((side * 40, -66, 0), (24, 22, INFINITE)) < 0
        kidney = body.ellipsoid((side * 62, -36, -48 - 6 * side), (27, 25, 48), 5, 3)
        body["kidney"] = inside & (kidney < 0)
        body["fat"] = inside & (kidney < -17) & (side * x < 62)
        neighbors = np.minimum(neighbors, kidney - 4)  # a cushion of fat
    body["spleen"] = inside & (spleen < 0)
    body["stomach"] = inside & (stomach < 0)
    body["gas"] = inside & (stomach < -4) & (y > np.float32(body.rng.uniform(38, 55)))
    path = [(34, 4, -34), (6, 14, -22), (-32, 2, -14), (-66, -10, -4)]
    pancreas = body.tube(path, [radius * thin_scale for radius in (13, 10, 9, 8)], 3)
    body["fat"] = inside & (pancreas < 2.5)
    body["pancreas"] = inside & (pancreas < 0)
    return np.minimum(neighbors, pancreas - 2.5)


def _liver(body: Body, room: np.ndarray, lesions: int, thin_scale: float) -> None:
    x, y, z = body.points
    right = body.ellipsoid((66, 4, -8), (62, 72, 82), 5, 5)
    left = body.ellipsoid((0, 36, 16), (66, 32, 34), 5, 7)
    edge = (-86 + 0.6 * (84 - x) - 0.25 * y) - z + np.float32(body.rng.uniform(-8, 8))
    liver = common(common(union(right, left, 24), edge, 14), room, 6)
    gallbladder = body.ellipsoid((46, 46, -34), (13, 15, 25), 5)
    body["gallbladder"] = (gallbladder < 0) & (room < 0)
    inside = (liver < 0) & (gallbladder > 2)
    # Vessels and lesions are evaluated on the liver's points alone, a tenth of the grid.
    own, depth = Body("torso", Space(body.points[:, inside], body.rng), "liver"), liver[inside]
    for path, radii in _PORTAL_VEINS + _HEPATIC_VEINS:
        own["hepatic vessel"] = own.tube(path, [radius * thin_scale for radius in radii], 4) < 0
    rough = own.field(30)
    for radius in body.rng.uniform(8, 19, lesions):
        center = own.points[:, body.rng.choice(np.flatnonzero(depth < np.percentile(depth, 60)))].tolist()
        own["lesion"] = own.ellipsoid(center, [radius] * 3, resized=2) + 1.5 * rough < 0
    body.tissues[inside] = own.tissues


def _chest(body: Body, cavity: np.ndarray, dome: np.ndarray) -> None:
    x, y, _ = body.points
    apex = body.ellipsoid((0, -5, 60), (150, 110, body.rng.uniform(150, 170)))
    chest = (cavity < -2) & (dome > 0)
    body["muscle"] = chest & (dome < 4)
    heart = body.ellipsoid((-14, 24, 84), (54, 42, 42), 5, 5)
    middle = np.abs(x + 4) - (20 + 0.12 * np.abs(y - 20))
    lungs = chest & (dome > 4) & (middle > 0) & (heart > 3) & (apex < 0)
    vessels = body.field(34) + 0.6 * body.field(17) > 2.2
    for name, side in (("right lung", x > 0), ("left lung", x <= 0)):
        body[name] = lungs & side
        body[f"{name} vessel"] = lungs & side & vessels
    body["heart"] = chest & (heart < 0)
    for center, radii in (((-38, 30, 80), (24, 22, 24)), ((10, 34, 88), (22, 19, 27)), ((-16, 4, 100), (23, 13, 18))):
        body["blood"] = chest & (body.ellipsoid(center, radii, 3) < 0)
    body["gas"] = body.tube([(-2, -18, 300), (-2, -18, 122)], (9, 9)) < 0


def _skeleton(body: Body, wall: np.ndarray) -> None:
    """Spine and ribs, and the two great vessels in front of the spine."""
    x, y, z = body.points
    body["blood"] = body.ellipsoid((-11, -32, 0), (11, 11, INFINITE), 3) < 0
    body["blood"] = (body.ellipsoid((24, -26, 0), (12, 9, INFINITE), 3) < 0) & (z < 70)
    column = np.minimum(
        body.ellipsoid((0, -61, 0), (21, 17, INFINITE)), body.ellipsoid((0, -75, 0), (11, 11, INFINITE))
    )
    spine = np.minimum(column, np.maximum(np.abs(x) - 4, np.abs(y + 88) - 12))
    disc = np.mod(z + np.float32(body.rng.uniform(0, 32)), 32) < 6
    body["bone"] = spine < 0
    body["marrow"] = spine < -4
    body["muscle"] = (spine < 0) & disc & (y > -76)
    # Ribs lie in the wall and fall towards the front; below the arch there are none.
    turns = np.mod(z + 0.45 * y + np.float32(body.rng.uniform(0, 30)), 30)
    rib = np.hypot(wall, turns - 15) - 5.5
    rib[(z < -60 + 0.5 * np.clip(y, 0, None)) | (np.abs(x) < 30)] = 1
    body["bone"] = rib < 0
    body["marrow"] = rib < -3


def brain(space: Space) -> np.ndarray:
    """A head with one tumor: edema around an enhancing ring around a core."""
    body, rng = Body("brain", space, "air"), space.rng
    body.warp(120, 2)
    head = body.ellipsoid((0, 0, 0), (72, 90, 84), resized=4)
    folds = body.field(26)
    body["scalp"] = head < 0
    body["skull"] = head < -6
    body["fluid"] = head < -11
    body["gray matter"] = head < -14 + 2 * np.clip(-folds, 0, None)
    body["white matter"] = (head < -25 + 4 * folds) | ((head < -14) & (folds > 1.1))
    for side in (-1, 1):
        ventricle = [(side * x, y, z) for x, y, z in ((10, 30, 4), (12, 0, 14), (22, -34, 4), (30, -8, -16))]
        body["fluid"] = body.tube(ventricle, (6, 8, 8, 4), 2) < 0
        body["gray matter"] = body.ellipsoid((side * 18, 6, 2), (8, 16, 10)) < 0
    middle = [rng.choice([-1, 1]) * rng.uniform(20, 42), rng.uniform(-34, 30), rng.uniform(-4, 20)]
    radius = rng.uniform(27, 36)
    growth = body.ellipsoid(middle, [radius] * 3, resized=3) + 2.5 * body.field(36)
    growth[head > -13] = np.inf
    body["edema"] = growth < 0
    body["ring"] = growth < -0.22 * radius
    body["core"] = growth < -0.44 * radius
    return body.tissues


def left_atrium(space: Space) -> np.ndarray:
    """A heart with four chambers of one signal; the left atrium lies behind and takes the pulmonary veins."""
    body = Body("heart", space, "lung")
    body.warp(130, 2.5)
    body["fat"] = body.ellipsoid((2, 0, 0), (58, 56, 110), 5) < 0
    body["muscle"] = body.points[1] < -62
    body["marrow"] = body.ellipsoid((6, -68, 0), (19, 15, INFINITE)) < 0
    body.paint(body.ellipsoid((-28, 6, -22), (21, 20, 30), 3, 2), "blood", "muscle", 8)
    body.paint(body.ellipsoid((8, 24, -20), (24, 15, 28), 3, 2), "blood", "muscle", 3)
    body.paint(body.ellipsoid((36, -2, -2), (17, 19, 24), 3, 2), "blood", "muscle", 2.5)
    body.paint(body.tube([(6, 6, 0), (14, 8, 34), (4, -4, 90)], (12, 12, 12), 2), "blood", "muscle", 2)
    body.paint(body.tube([(-20, -50, -90), (-20, -50, 90)], (10, 10), 2), "blood", "muscle", 2)
    atrium = body.ellipsoid((0, -23, 14), (27, 15, 20), 3, 2)
    whole = atrium
    for side, height in ((-1, 8), (-1, 22), (1, 6), (1, 22)):
        bend, end = body.near((side * 40, -30, height), 3), body.near((side * 70, -34, height + 4), 4)
        whole = np.minimum(whole, body.tube([(side * 14, -24, 14), bend, end], (7, 6, 4.5)))
    body.paint(whole, "blood", "muscle", 2.5)
    body["left atrium"] = (whole < 0) & (atrium < 7)  # a stub of each vein belongs to it
    return body.tissues


def hippocampus(space: Space) -> np.ndarray:
    """The surroundings of one hippocampus, of either side; cortex has its signal."""
    body = Body("hippocampus", space, "white matter")
    if body.rng.integers(2):
        body.points = body.points * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
    body.warp(45, 0.9)
    x, y, z = body.points
    folds = body.field(24)
    body["gray matter"] = (np.abs(folds) < 0.45) & ((np.abs(x - 1) > 10) | (np.abs(z) > 9))
    body["fluid"] = (folds > 1.7) | (x < -14 + 2 * folds)
    path = [body.near(corner, 1.2) for corner in ((-4, 15, -3), (0, 5, -2), (3, -7, 1), (2, -20, 6))]
    whole = body.tube(path, body.near((6.8, 5.6, 4.6, 3.4), 0.5))
    horn = [(a + 6, b + 1, c + 2) for a, b, c in path]
    body["fluid"] = (body.tube(horn, (3.5, 3, 2.5, 2.5)) < 0) | (body.tube(horn[:2], (4, 2)) < 0)
    body["white matter"] = whole < 1.2
    split = path[1][1] + body.rng.uniform(-1, 1)
    body["anterior"] = (whole < 0) & (y >= split)
    body["posterior"] = (whole < 0) & (y < split)
    return body.tissues


def prostate(space: Space) -> np.ndarray:
    """A pelvis: prostate of two zones between bladder and rectum."""
    body = Body("prostate", space, "fat")
    body.warp(80, 1.5)
    lumps = body.field(15)
    for side in (-1, 1):
        body["muscle"] = body.ellipsoid((side * 42, 4, 0), (9, 30, INFINITE), 2) < 0
        body["marrow"] = body.ellipsoid((side * 60, 12, 8), (15, 20, 24), 2) < 0
        body["vesicles"] = body.ellipsoid((side * 16, -19, 27), (15, 5, 7), 2) < 0
    body["marrow"] = body.ellipsoid((0, 42, -10), (22, 8, 16), 2) < 0
    rectum = body.tube([(0, -28, -60), (0, -35, 0), (4, -38, 60)], (9, 12, 14), 2)
    body.paint(rectum, "gas", "wall", 3)
    body["muscle"] = (rectum < 0) & (lumps > 0.2)
    body.paint(body.ellipsoid((0, 10, 50), (32, 25, 27), 3, 3), "urine", "wall", 3)
    gland = body.ellipsoid((0, 0, 0), (26, 19, 22), 2, 2.5)
    inner = body.ellipsoid((0, 6, 4), (18, 12, 17), 1.5, 2)
    body.paint(gland, "peripheral zone", "wall", 2)
    inside = (gland < -1.5) & (inner < 0)
    body["transition zone"] = inside
    body["nodules"] = inside & (lumps > 0.5)
    return body.tissues

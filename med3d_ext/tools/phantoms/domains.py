"""The four phantom MR domains of the embedded 3DSeg-8: brain, left atrium, hippocampus and prostate.

In each the target shares its signal with something else in the scan, so place and shape have to be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from med3d_ext.tools.phantoms.shapes import Point, ellipsoid, near, smooth_field, tube, warp

INFINITE = float("inf")
Brain = IntEnum("Brain", "AIR SCALP SKULL FLUID GRAY WHITE EDEMA CORE RING", start=0)
Heart = IntEnum("Heart", "FAT LUNG MUSCLE BLOOD MARROW LEFT_ATRIUM", start=0)
Temporal = IntEnum("Temporal", "WHITE GRAY FLUID ANTERIOR POSTERIOR", start=0)
Pelvis = IntEnum("Pelvis", "FAT MUSCLE MARROW URINE WALL GAS VESICLES PERIPHERAL TRANSITION NODULES", start=0)


@dataclass(frozen=True)
class MRDomain:
    """One MR domain.

    Args:
        channels: names of the sequences; more than one makes 4D files.
        classes: class name to the tissues that it holds, in the order of the label values from 1 on.
        signals: relative signal of every tissue, one number per channel.
        draw: body coordinates and a random generator to a map of tissues.
        shape: usual number of voxels.
        spacing: usual spacing in mm.
    """

    channels: tuple[str, ...]
    classes: dict[str, tuple[int, ...]]
    signals: dict[int, tuple[float, ...]]
    draw: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


def brain(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A head with one tumor: edema around an enhancing ring around a core."""
    points = warp(points, rng, 120, 2)
    tissues = np.full(points.shape[1:], Brain.AIR, np.uint8)
    head = ellipsoid(points, (0, 0, 0), near(rng, (72, 90, 84), 4))
    folds = smooth_field(points, rng, 26)
    white = (head < -25 + 4 * folds) | ((head < -14) & (folds > 1.1))
    for tissue, inside in (
        (Brain.SCALP, head < 0),
        (Brain.SKULL, head < -6),
        (Brain.FLUID, head < -11),
        (Brain.GRAY, head < -14 + 2 * np.clip(-folds, 0, None)),
        (Brain.WHITE, white),
    ):
        tissues[inside] = tissue
    for side in (-1, 1):
        path = [near(rng, (side * x, y, z), 2) for x, y, z in ((10, 30, 4), (12, 0, 14), (22, -34, 4), (30, -8, -16))]
        tissues[tube(points, path, (6, 8, 8, 4)) < 0] = Brain.FLUID
        tissues[ellipsoid(points, (side * 18, 6, 2), (8, 16, 10)) < 0] = Brain.GRAY
    middle = [rng.choice([-1, 1]) * rng.uniform(20, 42), rng.uniform(-34, 30), rng.uniform(-4, 20)]
    radius = rng.uniform(27, 36)
    growth = ellipsoid(points, middle, near(rng, [radius] * 3, 3)) + 2.5 * smooth_field(points, rng, 36)
    growth[head > -13] = np.inf
    tissues[growth < 0] = Brain.EDEMA
    tissues[growth < -0.22 * radius] = Brain.RING
    tissues[growth < -0.44 * radius] = Brain.CORE
    return tissues


def left_atrium(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A heart with four chambers of one signal; the left atrium lies behind and takes the pulmonary veins."""
    points = warp(points, rng, 130, 2.5)
    tissues = np.full(points.shape[1:], Heart.LUNG, np.uint8)
    chest = ellipsoid(points, near(rng, (2, 0, 0)), (58, 56, 110))
    tissues[chest < 0] = Heart.FAT
    tissues[points[1] < -62] = Heart.MUSCLE
    tissues[ellipsoid(points, (6, -68, 0), (19, 15, INFINITE)) < 0] = Heart.MARROW
    chambers: list[tuple[Point, Point, float]] = [
        ((-28, 6, -22), (21, 20, 30), 8.0),
        ((8, 24, -20), (24, 15, 28), 3.0),
        ((36, -2, -2), (17, 19, 24), 2.5),
    ]
    for center, radii, wall in chambers:
        chamber = ellipsoid(points, near(rng, center, 3), near(rng, radii, 2))
        tissues[chamber < wall] = Heart.MUSCLE
        tissues[chamber < 0] = Heart.BLOOD
    for corners, radius in (([(6, 6, 0), (14, 8, 34), (4, -4, 90)], 12), ([(-20, -50, -90), (-20, -50, 90)], 10)):
        vessel = tube(points, [near(rng, corner, 2) for corner in corners], [float(radius)] * len(corners))
        tissues[vessel < 2] = Heart.MUSCLE
        tissues[vessel < 0] = Heart.BLOOD
    atrium = ellipsoid(points, near(rng, (0, -23, 14), 3), near(rng, (27, 15, 20), 2))
    veins = np.full(atrium.shape, np.inf, np.float32)
    for side, height in ((-1, 8), (-1, 22), (1, 6), (1, 22)):
        path = [
            (side * 14, -24, 14),
            near(rng, (side * 40, -30, height), 3),
            near(rng, (side * 70, -34, height + 4), 4),
        ]
        veins = np.minimum(veins, tube(points, path, (7, 6, 4.5)))
    whole = np.minimum(atrium, veins)
    tissues[whole < 2.5] = Heart.MUSCLE
    tissues[whole < 0] = Heart.BLOOD
    tissues[(whole < 0) & (atrium < 7)] = Heart.LEFT_ATRIUM  # a stub of each vein belongs to it
    return tissues


def hippocampus(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The surroundings of one hippocampus, of either side; cortex has its signal."""
    if rng.integers(2):
        points = points * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
    points = warp(points, rng, 45, 0.9)
    x, y, z = points
    tissues = np.full(points.shape[1:], Temporal.WHITE, np.uint8)
    folds = smooth_field(points, rng, 24)
    tissues[(np.abs(folds) < 0.45) & ((np.abs(x - 1) > 10) | (np.abs(z) > 9))] = Temporal.GRAY
    tissues[(folds > 1.7) | (x < -14 + 2 * folds)] = Temporal.FLUID
    path = [near(rng, corner, 1.2) for corner in ((-4, 15, -3), (0, 5, -2), (3, -7, 1), (2, -20, 6))]
    body = tube(points, path, near(rng, (6.8, 5.6, 4.6, 3.4), 0.5))
    horn = [(a + 6, b + 1, c + 2) for a, b, c in path]
    tissues[(tube(points, horn, (3.5, 3, 2.5, 2.5)) < 0) | (tube(points, horn[:2], (4, 2)) < 0)] = Temporal.FLUID
    tissues[body < 1.2] = Temporal.WHITE
    split = path[1][1] + rng.uniform(-1, 1)
    tissues[(body < 0) & (y >= split)] = Temporal.ANTERIOR
    tissues[(body < 0) & (y < split)] = Temporal.POSTERIOR
    return tissues


def prostate(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pelvis: prostate of two zones between bladder and rectum."""
    points = warp(points, rng, 80, 1.5)
    x, y, z = points
    tissues = np.full(points.shape[1:], Pelvis.FAT, np.uint8)
    lumps = smooth_field(points, rng, 15)
    for side in (-1, 1):
        tissues[ellipsoid(points, near(rng, (side * 42, 4, 0), 2), (9, 30, INFINITE)) < 0] = Pelvis.MUSCLE
        tissues[ellipsoid(points, near(rng, (side * 60, 12, 8), 2), (15, 20, 24)) < 0] = Pelvis.MARROW
        tissues[ellipsoid(points, near(rng, (side * 16, -19, 27), 2), (15, 5, 7)) < 0] = Pelvis.VESICLES
    tissues[ellipsoid(points, near(rng, (0, 42, -10), 2), (22, 8, 16)) < 0] = Pelvis.MARROW
    rectum = tube(points, [near(rng, corner, 2) for corner in ((0, -28, -60), (0, -35, 0), (4, -38, 60))], (9, 12, 14))
    tissues[rectum < 3] = Pelvis.WALL
    tissues[rectum < 0] = Pelvis.GAS
    tissues[(rectum < 0) & (lumps > 0.2)] = Pelvis.MUSCLE
    bladder = ellipsoid(points, near(rng, (0, 10, 50), 3), near(rng, (32, 25, 27), 3))
    tissues[bladder < 3] = Pelvis.WALL
    tissues[bladder < 0] = Pelvis.URINE
    gland = ellipsoid(points, near(rng, (0, 0, 0), 2), near(rng, (26, 19, 22), 2.5))
    inner = ellipsoid(points, near(rng, (0, 6, 4), 1.5), near(rng, (18, 12, 17), 2))
    tissues[gland < 2] = Pelvis.WALL
    tissues[gland < 0] = Pelvis.PERIPHERAL
    inside = (gland < -1.5) & (inner < 0)
    tissues[inside] = Pelvis.TRANSITION
    tissues[inside & (lumps > 0.5)] = Pelvis.NODULES
    return tissues


MR_DOMAINS = {
    "Task01_BrainTumour": MRDomain(
        channels=("FLAIR", "T1gd"),
        classes={
            "edema": (Brain.EDEMA,),
            "non-enhancing tumor": (Brain.CORE,),
            "enhancing tumor": (Brain.RING,),
        },
        signals={
            Brain.AIR: (0.02, 0.02),
            Brain.SCALP: (1.0, 1.15),
            Brain.SKULL: (0.12, 0.12),
            Brain.FLUID: (0.2, 0.2),
            Brain.GRAY: (0.66, 0.5),
            Brain.WHITE: (0.5, 0.62),
            Brain.EDEMA: (1.0, 0.45),
            Brain.CORE: (0.58, 0.36),
            Brain.RING: (0.8, 1.2),
        },
        draw=brain,
        shape=(48, 58, 52),
        spacing=(3.3, 3.3, 3.3),
    ),
    "Task02_Heart": MRDomain(
        channels=("MRI",),
        classes={"left atrium": (Heart.LEFT_ATRIUM,)},
        signals={
            Heart.FAT: (0.62,),
            Heart.LUNG: (0.1,),
            Heart.MUSCLE: (0.4,),
            Heart.BLOOD: (1.0,),
            Heart.MARROW: (0.75,),
            Heart.LEFT_ATRIUM: (1.0,),
        },
        draw=left_atrium,
        shape=(56, 54, 42),
        spacing=(2.6, 2.6, 3.0),
    ),
    "Task04_Hippocampus": MRDomain(
        channels=("MRI",),
        classes={"Anterior": (Temporal.ANTERIOR,), "Posterior": (Temporal.POSTERIOR,)},
        signals={
            Temporal.WHITE: (0.95,),
            Temporal.GRAY: (0.62,),
            Temporal.FLUID: (0.22,),
            Temporal.ANTERIOR: (0.63,),
            Temporal.POSTERIOR: (0.63,),
        },
        draw=hippocampus,
        shape=(40, 52, 40),
        spacing=(1.0, 1.0, 1.0),
    ),
    "Task05_Prostate": MRDomain(
        channels=("T2", "ADC"),
        classes={"PZ": (Pelvis.PERIPHERAL,), "TZ": (Pelvis.TRANSITION, Pelvis.NODULES)},
        signals={
            Pelvis.FAT: (0.9, 0.1),
            Pelvis.MUSCLE: (0.25, 0.6),
            Pelvis.MARROW: (0.55, 0.3),
            Pelvis.URINE: (1.2, 1.7),
            Pelvis.WALL: (0.36, 0.65),
            Pelvis.GAS: (0.06, 0.05),
            Pelvis.VESICLES: (1.0, 1.2),
            Pelvis.PERIPHERAL: (0.97, 1.1),
            Pelvis.TRANSITION: (0.48, 0.75),
            Pelvis.NODULES: (0.66, 0.9),
        },
        draw=prostate,
        shape=(48, 46, 40),
        spacing=(2.2, 2.2, 2.8),
    ),
}

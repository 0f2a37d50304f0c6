"""Implicit shapes for the phantoms: every function is negative inside and grows by about 1 per mm outwards.

``points`` is a float32 array of body coordinates in mm with the axes first (3 x ...): x to the patient's right,
y to the front, z to the head. Nothing here knows a grid, so one anatomy fits every spacing and orientation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = Sequence[float]


def near(rng: np.random.Generator, values: Point, spread: float = 5) -> list[float]:
    """The numbers, each moved by up to ``spread`` (mm)."""
    return [float(value) for value in np.asarray(values) + rng.uniform(-spread, spread, len(values))]


def smooth_field(points: np.ndarray, rng: np.random.Generator, wavelength: float, waves: int = 5) -> np.ndarray:
    """A smooth random scalar field of mean 0 and standard deviation 1.

    Args:
        points: where to evaluate, 3 x ... in mm.
        rng: source of the random directions and phases.
        wavelength: typical period in mm; each wave's own lies within 30 % of it.
        waves: number of sinusoids that are added.
    """
    total = np.zeros(points.shape[1:], np.float32)
    for _ in range(waves):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (np.linalg.norm(direction) * wavelength * rng.uniform(0.7, 1.3))
        total += np.sin(np.tensordot(direction.astype(np.float32), points, 1) + np.float32(rng.uniform(0, 2 * np.pi)))
    return total * np.float32(np.sqrt(2 / waves))


def warp(points: np.ndarray, rng: np.random.Generator, wavelength: float, amplitude: float) -> np.ndarray:
    """Points moved by a smooth random displacement of ``amplitude`` mm (standard deviation per axis)."""
    shifts = [smooth_field(points, rng, wavelength) for _ in range(3)]
    return points + np.float32(amplitude) * np.stack(shifts)


def ellipsoid(points: np.ndarray, center: Point, radii: Point) -> np.ndarray:
    """An ellipsoid with axes along x, y, z; a radius of infinity makes it a cylinder."""
    total = np.zeros(points.shape[1:], np.float32)
    for axis, middle, radius in zip(points, center, radii):
        if np.isfinite(radius):
            total += np.square((axis - np.float32(middle)) / np.float32(radius))
    finite = [radius for radius in radii if np.isfinite(radius)]
    return (np.sqrt(total) - 1) * np.float32(sum(finite) / len(finite))


def tube(points: np.ndarray, path: Sequence[Point], radii: Point) -> np.ndarray:
    """A round tube along the polyline ``path`` with one radius per corner, linear in between."""
    closest = np.full(points.shape[1:], np.inf, np.float32)
    for start, end, first, last in zip(path[:-1], path[1:], radii[:-1], radii[1:]):
        closest = np.minimum(closest, _segment(points, np.asarray(start), np.asarray(end), first, last))
    return closest


def _segment(points: np.ndarray, start: np.ndarray, end: np.ndarray, first: float, last: float) -> np.ndarray:
    direction = end - start
    share = np.tensordot((direction / (direction @ direction)).astype(np.float32), points, 1)
    share = np.clip(share - np.float32(direction @ start / (direction @ direction)), 0, 1)
    steps = zip(points, start.astype(np.float32), direction.astype(np.float32))
    square = sum(np.square(axis - origin - share * step) for axis, origin, step in steps)
    return np.sqrt(square) - (np.float32(first) + share * np.float32(last - first))


def union(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """The two shapes as one, the seam between them filled over about ``blend`` mm."""
    overlap = np.clip(np.float32(blend) - np.abs(first - second), 0, None) / np.float32(blend)
    return np.minimum(first, second) - overlap * overlap * np.float32(blend / 4)


def common(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """What lies in both shapes, the edge between them rounded over about ``blend`` mm."""
    return -union(-first, -second, blend)

"""Implicit shapes for the phantoms: every function is negative inside and grows by about 1 per mm outwards.

Points are float32 body coordinates in mm with the axes first (3 x ...): x to the patient's right, y to the front, z to
the head. Nothing here knows a grid, so one anatomy fits every spacing and orientation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = Sequence[float]
INFINITE = float("inf")


class Space:
    """Points in a random patient, and the shapes there.

    Args:
        points: body coordinates, 3 x ... in mm.
        rng: source of the patient's shape.
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

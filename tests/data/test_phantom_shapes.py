"""The implicit shapes against geometry computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from med3d_ext.tools.phantoms.shapes import common, ellipsoid, smooth_field, tube, union, warp


def at(*points: tuple[float, float, float]) -> np.ndarray:
    return np.array(points, np.float32).T


def cube(size: float = 40, steps: int = 41) -> np.ndarray:
    axis = np.linspace(-size / 2, size / 2, steps, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))


def test_a_ball_gives_distances_in_mm():
    np.testing.assert_allclose(
        ellipsoid(at((0, 0, 0), (5, 0, 0), (9, 0, 0)), (0, 0, 0), (5, 5, 5)), [-5, 0, 4], atol=1e-5
    )


def test_an_ellipsoid_has_its_volume():
    inside = ellipsoid(cube(), (1, -2, 0), (15, 10, 6)) < 0
    assert inside.sum() == pytest.approx(4 / 3 * np.pi * 15 * 10 * 6, rel=0.02)


def test_a_cylinder_ignores_its_axis():
    values = ellipsoid(at((3, 0, 0), (3, 0, 500)), (0, 0, 0), (4, 4, np.inf))
    np.testing.assert_allclose(values, -1, atol=1e-5)


def test_a_tube_measures_from_its_polyline_and_narrows_linearly():
    path = [(0, 0, 0), (10, 0, 0), (10, 10, 0)]
    values = tube(at((5, 3, 0), (10, 5, 2), (-2, 0, 0)), path, (1, 2, 4))
    np.testing.assert_allclose(values, [3 - 1.5, 2 - 3, 2 - 1], atol=1e-5)


def test_union_and_common_equal_minimum_and_maximum_away_from_the_seam():
    first, second = np.float32([-5, 8, 1]), np.float32([7, -6, 1])
    np.testing.assert_allclose(union(first, second, 4)[:2], [-5, -6])
    np.testing.assert_allclose(common(first, second, 4)[:2], [7, 8])
    assert union(first, second, 4)[2] == 0  # the seam is filled by a quarter of the blend
    assert common(first, second, 4)[2] == 2


def test_a_smooth_field_has_unit_variance_and_varies_slowly():
    field = smooth_field(cube(300, 61), np.random.default_rng(0), 40, waves=12)
    assert abs(field.mean()) < 0.15
    assert field.std() == pytest.approx(1, abs=0.15)
    fine = smooth_field(cube(300, 61), np.random.default_rng(0), 20, waves=12)
    assert np.diff(field, axis=0).std() < 0.6 < np.diff(fine, axis=0).std()


def test_warp_moves_points_by_about_its_amplitude():
    points = cube(300, 31)
    moved = warp(points, np.random.default_rng(1), 60, 3) - points
    assert moved.std() == pytest.approx(3, rel=0.2)
    np.testing.assert_array_equal(warp(points, np.random.default_rng(1), 60, 0), points)

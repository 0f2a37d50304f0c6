"""The implicit shapes against geometry computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from med3d_ext.tools.phantoms.anatomy import Space, common, union


def at(*points: tuple[float, float, float]) -> Space:
    return Space(np.array(points, np.float32).T, np.random.default_rng(0))


def cube(size: float = 40, steps: int = 41, seed: int = 0) -> Space:
    axis = np.linspace(-size / 2, size / 2, steps, dtype=np.float32)
    return Space(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), np.random.default_rng(seed))


def test_a_ball_gives_distances_in_mm():
    values = at((0, 0, 0), (5, 0, 0), (9, 0, 0)).ellipsoid((0, 0, 0), (5, 5, 5))
    np.testing.assert_allclose(values, [-5, 0, 4], atol=1e-5)


def test_an_ellipsoid_has_its_volume():
    inside = cube().ellipsoid((1, -2, 0), (15, 10, 6)) < 0
    assert inside.sum() == pytest.approx(4 / 3 * np.pi * 15 * 10 * 6, rel=0.02)


def test_a_tube_measures_from_its_polyline_and_narrows_linearly():
    path = [(0, 0, 0), (10, 0, 0), (10, 10, 0)]
    values = at((5, 3, 0), (10, 5, 2), (-2, 0, 0)).tube(path, (1, 2, 4))
    np.testing.assert_allclose(values, [3 - 1.5, 2 - 3, 2 - 1], atol=1e-5)


def test_shapes_move_and_grow_by_no_more_than_they_are_told():
    space = at((0, 0, 0))
    depths = [-space.ellipsoid((0, 0, 0), (20, 20, 20), 2, 3)[0] for _ in range(100)]
    assert 13 < min(depths) < 18.5 < 20 < max(depths) <= 23  # nearest to the center, at most 2 mm off along each axis
    widths = [-space.tube([(-50, 0, 0), (50, 0, 0)], (10, 10), 2)[0] for _ in range(100)]
    assert 10 - np.sqrt(8) < min(widths) < 9 < max(widths) <= 10


def test_union_and_common_equal_minimum_and_maximum_away_from_the_seam():
    first, second = np.float32([-5, 8, 1]), np.float32([7, -6, 1])
    np.testing.assert_allclose(union(first, second, 4)[:2], [-5, -6])
    np.testing.assert_allclose(common(first, second, 4)[:2], [7, 8])
    assert union(first, second, 4)[2] == 0  # the seam is filled by a quarter of the blend
    assert common(first, second, 4)[2] == 2


def test_a_smooth_field_has_unit_variance_and_varies_slowly():
    field, fine = (cube(300, 61).field(wavelength, waves=12) for wavelength in (40, 20))
    assert abs(field.mean()) < 0.15
    assert field.std() == pytest.approx(1, abs=0.15)
    assert np.diff(field, axis=0).std() < 0.6 < np.diff(fine, axis=0).std()

"""Which marks are one nodule, its consensus and its ratings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from med3d_ext.tools.lidc.nodules import Nodule, Outlined, cluster_marks, volume_mm3
from med3d_ext.tools.lidc.xml import Mark

SHAPE, SPACING = (40, 20, 10), (1.0, 1.0, 2.0)
GRID = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)


def ball(reader: int, center: tuple[float, float, float], radius: float, malignancy: int = 3, **ratings) -> Outlined:
    """A reader's mark; center in voxels, radius in mm."""
    inside = np.linalg.norm((GRID - center) * SPACING, axis=-1) <= radius
    return Outlined(Mark(reader, f"{reader}", {"malignancy": malignancy, **ratings}, ()), np.flatnonzero(inside))


def readers(marks: list[Outlined]) -> list[list[int]]:
    return [nodule.readers for nodule in cluster_marks(marks, SHAPE, SPACING)]


def test_marks_of_four_readers_around_one_place_are_one_nodule() -> None:
    marks = [ball(n, (9 + n % 2, 9, 5), 4 + 0.5 * n) for n in (1, 2, 3, 4)]
    assert readers(marks) == [[1, 2, 3, 4]]


def test_two_nodules_are_kept_apart_and_in_order_of_place() -> None:
    right = [ball(n, (30, 9, 5), 4) for n in (1, 3)]
    left = [ball(n, (10, 9, 5), 4) for n in (1, 2, 4)]
    assert readers(right + left) == [[1, 2, 4], [1, 3]]


def test_the_order_of_the_marks_does_not_matter() -> None:
    marks = [ball(1, (9, 9, 5), 4), ball(2, (11, 9, 5), 4), ball(2, (16, 9, 5), 4), ball(3, (13, 9, 5), 5)]
    groups = {
        frozenset(tuple(nodule.voxels) for nodule in cluster_marks(order, SHAPE, SPACING))
        for order in itertools.permutations(marks)
    }
    assert len(groups) == 1


def test_a_reader_has_at_most_one_mark_in_a_nodule() -> None:
    """Reader 1 saw two nodules where the others saw one: the one that overlaps more is the same."""
    pieces = [ball(1, (8, 9, 5), 3), ball(1, (14, 9, 5), 4)]
    whole = [ball(reader, (12, 9, 5), 7) for reader in (2, 3, 4)]
    nodules = sorted(cluster_marks([*pieces, *whole], SHAPE, SPACING), key=lambda nodule: len(nodule.readers))
    assert [nodule.readers for nodule in nodules] == [[1], [1, 2, 3, 4]]
    assert nodules[1].members[0] is pieces[1]


def test_marks_without_a_shared_voxel_match_by_distance() -> None:
    one, other = ball(1, (10, 9, 5), 0.5), ball(2, (11, 9, 5), 1.5)
    other = Outlined(other.mark, np.setdiff1d(other.voxels, one.voxels))
    assert readers([one, other]) == [[1, 2]]
    nodule = cluster_marks([one, other], SHAPE, SPACING)[0]
    assert nodule.voxels.size == one.voxels.size + other.voxels.size
    assert readers([ball(1, (10, 9, 5), 2), ball(2, (15, 9, 5), 2)]) == [[1], [2]]


def test_a_chain_of_neighbors_is_not_one_nodule() -> None:
    """Each overlaps the next; the two ends have nothing in common with each other."""
    chain = [ball(n, (6 + 6 * n, 9, 5), 4) for n in (1, 2, 3, 4)]
    assert readers(chain) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_consensus_is_what_at_least_half_of_the_readers_enclose(count: int, needed: int) -> None:
    marks = [ball(n, (8 + n, 9, 5), 5) for n in range(1, count + 1)]
    (nodule,) = cluster_marks(marks, SHAPE, SPACING)
    votes = sum(np.isin(np.arange(np.prod(SHAPE)), each.voxels).astype(int) for each in marks)
    np.testing.assert_array_equal(nodule.voxels, np.flatnonzero(votes >= needed))


def test_ratings_are_the_medians_of_the_readers() -> None:
    members = (ball(1, (9, 9, 5), 4, 3, texture=5), ball(2, (9, 9, 5), 4, 4), ball(4, (9, 9, 5), 4, 5, texture=2))
    nodule = Nodule(members, members[0].voxels)
    ratings = nodule.median_ratings()
    assert (ratings["malignancy"], ratings["texture"], ratings["margin"]) == (4.0, 3.5, None)
    assert nodule.ratings("malignancy") == [3, 4, 5]
    assert Nodule(members[:2], members[0].voxels).median_ratings()["malignancy"] == 3.5


def test_volume_is_in_cubic_millimeters() -> None:
    assert volume_mm3(ball(1, (20, 9, 5), 4).voxels, SPACING) == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.1)


def test_no_mark_is_no_nodule() -> None:
    assert cluster_marks([], SHAPE, SPACING) == []

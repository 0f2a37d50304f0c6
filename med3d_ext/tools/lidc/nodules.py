"""From the marks of several readers to nodules: which marks are one nodule, its mask and its ratings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from med3d_ext.tools.lidc.xml import CHARACTERISTICS, Mark


@dataclass(frozen=True)
class Outlined:
    """A mark with its voxels: sorted flat indices into the scan."""

    mark: Mark
    voxels: np.ndarray


@dataclass(frozen=True)
class Nodule:
    """One nodule as its readers see it.

    Args:
        members: the marks, in the order of their readers.
        voxels: the consensus: voxels inside the marks of at least half of these readers.
    """

    members: tuple[Outlined, ...]
    voxels: np.ndarray

    @property
    def readers(self) -> list[int]:
        """The readers who marked it."""
        return [each.mark.reader for each in self.members]

    def ratings(self, characteristic: str) -> list[int]:
        """The readers' ratings, in their order, without those that are missing."""
        return [each.mark.ratings[characteristic] for each in self.members if characteristic in each.mark.ratings]

    def median_ratings(self) -> dict[str, float | None]:
        """Median of the readers per characteristic; of an even number it may lie half-way. None where nobody rated."""
        rated = {name: self.ratings(name) for name in CHARACTERISTICS}
        return {name: float(median(values)) if values else None for name, values in rated.items()}


def cluster_marks(marks: Sequence[Outlined], shape: Sequence[int], spacing: Sequence[float]) -> list[Nodule]:
    """Group the marks of different readers into nodules.

    Two marks match where they share voxels, or where their centers are nearer than the larger one's radius. Pairs are
    joined from the largest overlap (shared voxels per voxel of both) to the smallest, equal ones from the nearest on;
    two groups are joined only if no reader is in both and most of the pairs across match. So one reader's
    two marks are two nodules, however near.

    Args:
        marks: marks of all readers.
        shape: voxels of the scan.
        spacing: voxel size, mm.

    Returns:
        nodules in the order of their first voxel.
    """
    matches = _matches(marks, shape, spacing)
    groups = [{number} for number in range(len(marks))]
    for one, other in sorted(matches, key=lambda pair: (-matches[pair][0], matches[pair][1], pair)):
        first, second = (next(group for group in groups if number in group) for number in (one, other))
        if first is second or {marks[n].mark.reader for n in first} & {marks[n].mark.reader for n in second}:
            continue
        across = [(min(pair), max(pair)) for pair in itertools.product(first, second)]
        if 2 * sum(pair in matches for pair in across) > len(across):
            first |= second
            groups.remove(second)
    nodules = [_nodule([marks[number] for number in group]) for group in groups]
    return sorted(nodules, key=lambda nodule: tuple(nodule.voxels[:1]))


def volume_mm3(voxels: np.ndarray, spacing: Sequence[float]) -> float:
    """Volume of voxels of a size in mm."""
    return voxels.size * math.prod(spacing)


def _matches(
    marks: Sequence[Outlined], shape: Sequence[int], spacing: Sequence[float]
) -> dict[tuple[int, int], tuple[float, float]]:
    """Overlap (Jaccard) and distance (mm) of the pairs of different readers that match."""
    centers = [np.transpose(np.unravel_index(each.voxels, shape)).mean(axis=0) * spacing for each in marks]
    radii = [(0.75 / math.pi * volume_mm3(each.voxels, spacing)) ** (1 / 3) for each in marks]
    found = {}
    for one, other in itertools.combinations(range(len(marks)), 2):
        if marks[one].mark.reader == marks[other].mark.reader:
            continue
        shared = np.intersect1d(marks[one].voxels, marks[other].voxels, assume_unique=True).size
        overlap = shared / (marks[one].voxels.size + marks[other].voxels.size - shared)
        distance = float(np.linalg.norm(centers[one] - centers[other]))
        if shared or distance < max(radii[one], radii[other]):
            found[one, other] = (overlap, distance)
    return found


def _nodule(members: Sequence[Outlined]) -> Nodule:
    members = sorted(members, key=lambda each: each.mark.reader)
    voxels, votes = np.unique(np.concatenate([each.voxels for each in members]), return_counts=True)
    # Marks that match by distance alone may have no voxel with so many votes.
    needed = min(math.ceil(len(members) / 2), votes.max())
    return Nodule(tuple(members), voxels[votes >= needed])

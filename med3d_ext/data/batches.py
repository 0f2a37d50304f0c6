"""Batches of several domains where their grids agree: a tensor has one size, a domain has its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Sampler

from med3d_ext.data.sampler import BalancedSampler
from med3d_ext.transforms.sampling import size_of


class GridBatchSampler(Sampler[list[int]]):
    """Group the samples of a :class:`BalancedSampler` into batches of one grid size; domains of one size are mixed.

    Mixed batches are the default because BatchNorm is evaluated with the statistics of the mixture. Every process gets
    the same number of batches: batches are made for all processes from one order, then dealt out; while they cannot be
    dealt evenly, the longest is cut in two.

    Args:
        sampler: the balanced sampler of this process; its seed, epoch and rank are taken.
        items: items of the data set.
        spatial_size: grid size, or a table from an item's ``domain`` to its size.
        batch_size: samples per batch.
        domain: the domain of items that name none, as a labelling server sends them. Defaults to None, no domain.
    """

    def __init__(
        self,
        sampler: BalancedSampler,
        items: Sequence[dict[str, Any]],
        spatial_size: Sequence[int] | Mapping[str, Sequence[int]],
        batch_size: int = 2,
        domain: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.sampler = sampler
        self.sizes = [tuple(size_of(spatial_size, {"domain": domain, **item})) for item in items]
        self.batch_size = batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches()[self.sampler.rank :: self.sampler.num_replicas])

    def __len__(self) -> int:
        return len(self._batches()) // self.sampler.num_replicas

    def _batches(self) -> list[list[int]]:
        open_batches: dict[tuple[int, ...], list[int]] = {}
        batches: list[list[int]] = []
        for index in self.sampler.all_indices():
            size = self.sizes[index % len(self.sizes)]
            batch = open_batches.setdefault(size, [])
            batch.append(index)
            if len(batch) == self.batch_size:
                batches.append(open_batches.pop(size))
        batches += open_batches.values()
        # Ends: the sampler's total is a multiple of the processes, so at the latest batches of one sample fit.
        while len(batches) % self.sampler.num_replicas:
            longest = max(batches, key=len)
            half = len(longest) // 2
            batches.append(longest[half:])
            del longest[half:]
        return batches

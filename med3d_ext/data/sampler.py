"""Balance: in every epoch each domain gives the same number of samples, however many cases it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import DistributedSampler


class BalancedSampler(DistributedSampler):
    """Bring every domain to the same number of samples per epoch by repeating its cases (paper, section 4.1).

    The order of an epoch depends on (seed, epoch) alone. Within a domain no case comes again before all others came,
    also across epochs: where an epoch is smaller than the domain, the next one continues with the cases that are left.
    A repeat of a case within an epoch has an index of its own, ``repeat * cases + case``, from which
    :class:`med3d_ext.data.SeededDataset` draws another augmentation. Domains come mixed.

    With several processes each sample goes to one of them, and together they see what one process would.

    Args:
        domains: the domain of each item of the data set.
        samples_per_domain: samples that each domain gives per epoch. Defaults to None, the number of cases of the
            largest domain. Raised as little as it takes for all processes to get the same number of samples.
        seed: seed of the order.
        num_replicas: number of processes. Defaults to None, that of the process group, 1 without one.
        rank: number of this process. Defaults to None, that in the process group.

    Raises:
        ValueError: when there are no items, ``samples_per_domain`` is below 1 or ``rank`` is not below
            ``num_replicas``.
    """

    def __init__(
        self,
        domains: Sequence[str | None],
        samples_per_domain: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        if not domains:
            raise ValueError("domains must name the domain of at least one item, got none.")
        if samples_per_domain is not None and samples_per_domain < 1:
            raise ValueError(f"samples_per_domain must be at least 1, got {samples_per_domain}.")
        together = dist.is_available() and dist.is_initialized()
        replicas = num_replicas or (dist.get_world_size() if together else 1)
        rank = rank if rank is not None else dist.get_rank() if together else 0
        names: dict[Any, list[int]] = {}
        for number, name in enumerate(domains):
            names.setdefault(name, []).append(number)
        self.cases = list(names.values())
        self.size = len(domains)
        samples = samples_per_domain or max(map(len, self.cases))
        while len(self.cases) * samples % replicas:
            samples += 1
        self.samples_per_domain = samples
        total = range(len(self.cases) * samples)
        super().__init__(total, num_replicas=replicas, rank=rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.all_indices()[self.rank :: self.num_replicas])

    def all_indices(self) -> list[int]:
        """This epoch's indices of all processes, in order."""
        indices = [index for domain in range(len(self.cases)) for index in self._draw(domain)]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(indices))
        return [indices[number] for number in order]

    def _draw(self, domain: int) -> list[int]:
        """This epoch's part of an endless row of shuffled passes over the domain's cases."""
        cases, first = self.cases[domain], self.epoch * self.samples_per_domain
        seen: Counter[int] = Counter()
        indices = []
        for place in range(first, first + self.samples_per_domain):
            number, position = divmod(place, len(cases))
            if position == 0 or place == first:
                shuffled = np.random.default_rng([self.seed, domain, number, 1]).permutation(len(cases))
            case = cases[shuffled[position]]
            indices.append(seen[case] * self.size + case)
            seen[case] += 1
        return indices

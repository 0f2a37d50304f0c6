"""How a training's samples are made: kept volumes, random draws that a resumed run repeats, balanced batches."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
import torch.distributed as dist
from monai.data import DataLoader, MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing
from torch.utils.data import DistributedSampler, Sampler

import med3d_ext
from med3d_ext.data.fingerprint import FILES, check_content, item_digest
from med3d_ext.io.store import ITEM, Store
from med3d_ext.transforms.sampling import NO_TARGET, size_of, target_box

VERSION = f"1 {med3d_ext.__version__} {monai.__version__}"
"""Of what is kept; its number is raised when a transform gives other voxels under the same parameters."""
MOST = {"cpu": 1, "cuda": 8}  # a CPU that trains leaves one core's worth of loading; a GPU waits for more
MEMORY = 3e9  # bytes a worker needs: a CT of 512 x 512 x 500 in float32 while it is read, its label, and Python
SHARED = 1e9  # bytes of shared memory, through which workers hand over their batches


class SeededDataset(PersistentDataset):
    """MONAI's PersistentDataset with memory-mapped files and randomness drawn from (seed, epoch, item).

    An item of an epoch depends on nothing else, so a run that is resumed after epoch k sees what an uninterrupted one
    would have seen, with any number of worker processes. An entry of the store is named after all that is in it: the
    content of the case's files, what else the item states, the deterministic transforms with their parameters, and the
    version. So a corrected label or another window is computed anew, and a case that was moved is not.

    An index may be ``repeat * len(data) + case``, as from :class:`BalancedSampler`: the case with other random draws.

    Args:
        data: dataset items.
        transform: deterministic transforms, whose result is kept, then random ones.
        cache_dir: where results are kept: a :class:`~med3d_ext.io.store.Store`, or a folder, which may then grow
            without limit; None computes every item anew.
        seed: seed of the random transforms.

    Raises:
        InputError: when an item is read, a file is no longer what the item states.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | Store | None = None, seed: int = 0
    ) -> None:
        super().__init__(data, transform, None, hash_transform=_hash_of, track_meta=True)
        self.store = Store(cache_dir, math.inf) if isinstance(cache_dir, str | os.PathLike) else cache_dir
        self.seed = seed
        self.epoch = 0
        self.set_data(data)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random draws the next items take."""
        self.epoch = epoch

    def set_data(self, data: Sequence[dict[str, Any]]) -> None:
        """Other items; what is kept of these stays, since others use it."""
        self.data = data

    def _transform(self, index: int) -> Any:
        state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        self.transform.set_random_state(seed=int(state[0]))
        return self._post_transform(self.before_random(index % len(self.data)))

    def before_random(self, index: int) -> dict[str, Any]:
        """An item as the deterministic transforms leave it, from the store or into it."""
        item = self.data[index]
        if self.store is None:
            return dict(self._pre_transform(dict(item)))

        def make() -> dict[str, Any]:
            check_content(item)
            made = self._pre_transform(dict(item))
            if isinstance(label := made.get("label"), MetaTensor) and "target_box" not in made:
                # searched once, not at every draw
                made["target_box"] = [list(map(int, corner)) for corner in target_box(label) or NO_TARGET]
            return {key: _plain(value) for key, value in made.items()}

        stored = self.store.get(ITEM, f"{VERSION} {self.transform_hash} {item_digest(item)}", make)
        here = {key: item[key] for key in FILES if isinstance(item.get(key), str)}  # another copy may have been read
        return {key: _restored(value, here.get(key)) for key, value in stored.items()}


def _hash_of(transforms: Sequence[Any]) -> bytes:
    """Of the transforms with their parameters, wherever files are kept."""
    copies = [copy.copy(each) for each in transforms]
    for each in copies:
        vars(each).pop("store", None)
    return bytes(pickle_hashing(copies))


def _plain(value: Any) -> Any:
    """A MetaTensor as its parts: the record of applied transforms holds classes that a safe load refuses."""
    if not isinstance(value, MetaTensor):
        return value
    return {"x": value.as_tensor(), "affine": value.affine, "meta": {"filename_or_obj": value.meta["filename_or_obj"]}}


def _restored(value: Any, path: str | None) -> Any:
    if not isinstance(value, dict):
        return path if path is not None and isinstance(value, str) else value
    return MetaTensor(**{**value, "meta": {"filename_or_obj": path or value["meta"]["filename_or_obj"]}})


class BalancedSampler(DistributedSampler):
    """Bring every domain to the same number of samples per epoch by repeating its cases (paper, section 4.1).

    The order of an epoch depends on (seed, epoch) alone. Within a domain no case comes again before all others came,
    also across epochs. A repeat of a case within an epoch has an index of its own, ``repeat * cases + case``, from
    which :class:`SeededDataset` draws another augmentation. Several processes see together what one would.

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
        indices = []
        first = self.epoch * self.samples_per_domain
        for domain, cases in enumerate(self.cases):  # of each its part of an endless row of shuffled passes
            seen: Counter[int] = Counter()
            for place in range(first, first + self.samples_per_domain):
                number, position = divmod(place, len(cases))
                if position == 0 or place == first:
                    shuffled = np.random.default_rng([self.seed, domain, number, 1]).permutation(len(cases))
                case = cases[shuffled[position]]
                indices.append(seen[case] * self.size + case)
                seen[case] += 1
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(indices))
        return [indices[number] for number in order]


class GridBatchSampler(Sampler[list[int]]):
    """Group the samples of a :class:`BalancedSampler` into batches of one grid size; domains of one size are mixed.

    Mixed batches are the default because BatchNorm is evaluated with the statistics of the mixture. Every process gets
    the same number of batches: they are made for all processes from one order, then dealt out; while they cannot be
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


class TrainingLoader(DataLoader):
    """MONAI's DataLoader, whose workers make samples ahead, in pinned memory for a GPU.

    Args:
        dataset: the data set; its samples are the same with any number of workers.
        device: where the network is.
        num_workers: worker processes. Defaults to None: see :func:`chosen_workers`.
        kwargs: further arguments of the DataLoader.
    """

    def __init__(
        self, dataset: Any, device: str | torch.device = "cpu", num_workers: int | None = None, **kwargs: Any
    ) -> None:
        is_gpu = torch.device(device).type == "cuda"
        workers = chosen_workers(device) if num_workers is None else num_workers
        super().__init__(dataset, num_workers=workers, **{"pin_memory": is_gpu, **kwargs})


def chosen_workers(device: str | torch.device = "cpu") -> int:
    """Worker processes that this machine has room for: none on a single core, or if memory is scarce.

    Each process of a training leaves one core to itself. None are chosen where processes are not forked (they would
    import everything anew in each epoch).
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    is_forked = multiprocessing.get_start_method() == "fork" and Path("/proc/meminfo").is_file()
    if not is_forked or not Path("/dev/shm").is_dir() or shutil.disk_usage("/dev/shm").free < SHARED * processes:
        return 0
    room = int(_memory() / processes // MEMORY)
    return max(0, min(cores // processes - 1, room, MOST.get(torch.device(device).type, 0)))


def _memory() -> float:
    """Bytes that this process may still use: of the machine, within the limits of its container and its user."""
    import resource  # no Windows

    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    found = [1024 * float(facts["MemAvailable"].split()[0])]
    older = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    for limit, usage in (("memory.max", "memory.current"), older):
        try:
            allowed, taken = (Path("/sys/fs/cgroup", name).read_text().strip() for name in (limit, usage))
            found.append(float(allowed) - float(taken))
        except (OSError, ValueError):  # no such limit
            continue
    if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        found.append(float(most - pages * resource.getpagesize()))
    return min(found)

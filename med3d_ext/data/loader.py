"""The training's data loader: worker processes by what the machine has, and pinned memory for a GPU."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader

MOST = {"cpu": 1, "cuda": 8}  # a CPU that trains leaves one core's worth of loading; a GPU waits for more
MEMORY = 3e9  # bytes a worker needs: a CT of 512 x 512 x 500 in float32 while it is read, its label, and Python
SHARED = 1e9  # bytes of shared memory, through which workers hand over their batches


class TrainingLoader(DataLoader):
    """MONAI's DataLoader, whose workers make samples ahead while the network computes.

    Samples are the same with any number of workers. Batches for a GPU are made in pinned memory.

    Args:
        dataset: the data set.
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
    """Worker processes that this machine has room for: none on a single core, or where memory is scarce.

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

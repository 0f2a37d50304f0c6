"""Which process of a distributed run this is.

Asks torch alone: ``ignite.distributed`` would start a collective call on its first use, which hangs when only one rank
asks.
"""

from __future__ import annotations

import torch.distributed as dist


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank; 0 if nothing is distributed."""
    return dist.get_rank() if _is_distributed() else 0


def processes() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if _is_distributed() else 1


def wait_for_all() -> None:
    """Let every rank reach this line before any continues."""
    if _is_distributed():
        dist.barrier()

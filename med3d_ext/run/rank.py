"""Which process of a distributed run this is."""

from __future__ import annotations

import torch.distributed as dist


def rank() -> int:
    """This process's rank; 0 where nothing is distributed.

    Asks torch alone: ``ignite.distributed`` would start a collective call on its first use, which hangs when
    only one rank asks.
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def wait_for_all() -> None:
    """Let every rank reach this line before any continues; nothing where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()

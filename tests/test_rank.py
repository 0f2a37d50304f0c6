from __future__ import annotations

import torch
import torch.distributed as dist

from med3d_ext.handlers.checkpoint import unwrapped
from med3d_ext.run.rank import processes, rank, wait_for_all


def test_a_process_alone_and_in_a_group_knows_its_rank_and_its_wrapper_is_looked_through(tmp_path):
    assert (rank(), processes(), wait_for_all()) == (0, 1, None)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert (rank(), processes(), wait_for_all()) == (0, 1, None)
        network = torch.nn.Linear(1, 1)
        assert unwrapped(torch.nn.parallel.DistributedDataParallel(network)) is network
    finally:
        dist.destroy_process_group()

from __future__ import annotations

import torch
import torch.distributed as dist

from med3d_ext.handlers.checkpoint import unwrapped
from med3d_ext.run.rank import rank, wait_for_all


def test_a_process_alone_is_rank_0_and_waits_for_nobody():
    assert rank() == 0
    wait_for_all()


def test_a_group_tells_the_rank_and_its_wrapper_is_looked_through(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert rank() == 0
        wait_for_all()
        network = torch.nn.Linear(1, 1)
        assert unwrapped(torch.nn.parallel.DistributedDataParallel(network)) is network
    finally:
        dist.destroy_process_group()


def test_the_rank_is_the_groups(monkeypatch):
    met = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "barrier", lambda: met.append(1))
    assert rank() == 3
    wait_for_all()
    assert met == [1]

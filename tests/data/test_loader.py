"""As many loading processes as the machine has room for, and the same samples with any number of them."""

from __future__ import annotations

import collections
import multiprocessing
import os

import pytest
import torch

from med3d_ext.data import TrainingLoader, loader
from med3d_ext.data.loader import chosen_workers

Usage = collections.namedtuple("Usage", "free")


@pytest.fixture
def machine(monkeypatch):
    """``machine(cores, memory, ...)``"""

    def make(cores=16, memory=1e12, shared=1e12, processes=1, start="fork"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        monkeypatch.setattr(loader, "_memory", lambda: memory)
        monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: Usage(shared))
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda: start)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return make


@pytest.mark.parametrize(
    ("facts", "cpu", "cuda"),
    [
        ({}, 1, 8),
        ({"cores": 1}, 0, 0),
        ({"cores": 2}, 1, 1),
        ({"cores": 4}, 1, 3),
        ({"cores": 4, "processes": 2}, 1, 1),
        ({"cores": 4, "processes": 4}, 0, 0),
        ({"memory": 2e9}, 0, 0),
        ({"memory": 13e9}, 1, 4),
        ({"memory": 13e9, "processes": 4}, 1, 1),
        ({"shared": 64e6}, 0, 0),  # a container's default
        ({"start": "spawn"}, 0, 0),
    ],
)
def test_workers_are_those_that_the_machine_has_room_for(machine, facts, cpu, cuda):
    machine(**facts)
    assert (chosen_workers("cpu"), chosen_workers(torch.device("cuda", 0))) == (cpu, cuda)


def test_the_memory_of_this_machine_is_known():
    assert 0 < loader._memory() < 1e14


def test_a_number_that_is_asked_for_is_taken(machine):
    machine(cores=1)
    assert TrainingLoader([1, 2], num_workers=3).num_workers == 3
    assert TrainingLoader([1, 2]).num_workers == 0


def test_batches_for_a_gpu_are_pinned_unless_told_otherwise():
    pinned = [TrainingLoader([1], device, 0).pin_memory for device in ("cpu", "cuda", torch.device("cuda", 1))]
    assert pinned == [False, True, True]
    assert TrainingLoader([1], "cuda", 0, pin_memory=False).pin_memory is False

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from torch.utils.data import SequentialSampler

from med3d_ext.handlers import seeding
from med3d_ext.handlers.seeding import EpochSeed


def draws(seed, epochs, **kwargs):
    """What an engine draws in each epoch: torch, numpy, Python."""
    seen = []

    def step(engine, batch):
        seen.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002

    engine = Engine(step)
    EpochSeed(seed, **kwargs).attach(engine)
    engine.run([0], max_epochs=epochs)
    return seen


def test_every_epoch_of_every_rank_draws_its_own_numbers_from_the_seed(monkeypatch):
    first, again, other = draws(3, 4), draws(3, 4), draws(4, 4)
    assert first == again
    monkeypatch.setattr(seeding, "rank", lambda: 1)
    assert len({value for epoch in (*first, *other, *draws(3, 4)) for value in epoch}) == 36


def test_data_set_and_sampler_learn_the_epoch():
    data = Dataset([{"a": 1}, {"a": 2}])
    loader = DataLoader(data, sampler=SequentialSampler(data))
    seen = []
    data.set_epoch = loader.sampler.set_epoch = seen.append
    engine = Engine(lambda engine, batch: None)
    EpochSeed(0, data_loader=loader).attach(engine)
    engine.run(loader, max_epochs=3)
    assert seen == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("epoch_length", [None, 2])
def test_an_epoch_does_not_depend_on_the_ones_before_even_when_it_leaves_data_unread(epoch_length):
    def run(start):
        seen = []
        loader = DataLoader(Dataset([{"a": torch.tensor(i)} for i in range(5)]), shuffle=True)
        engine = Engine(lambda engine, batch: seen.append((engine.state.epoch, batch["a"].item())))
        EpochSeed(1, data_loader=loader).attach(engine)
        engine.state.max_epochs = 3
        engine.state.epoch_length = epoch_length or 5
        engine.state.epoch = start
        engine.state.iteration = start * (epoch_length or 5)
        engine.run(loader)
        return seen

    whole = run(0)
    assert [item for item in whole if item[0] > 1] == run(1)
    assert whole[: len(whole) // 3] != whole[len(whole) // 3 : 2 * len(whole) // 3]


def test_workers_that_outlive_an_epoch_and_a_negative_seed_are_refused():
    loader = DataLoader(Dataset([{"a": 1}]), num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers must be False"):
        EpochSeed(0, data_loader=loader).attach(Engine(lambda engine, batch: None))
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got -1"):
        EpochSeed(-1)

"""Random numbers that depend on the seed and the epoch alone, so that a resumed run draws the same ones."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data.utils import set_rnd

from med3d_ext.handlers.base import Handler
from med3d_ext.run.rank import rank


@dataclass(eq=False)
class EpochSeed(Handler):
    """Seed everything random at the start of each epoch from (seed, epoch, rank).

    Torch, numpy and Python, the random transforms of the data set (MONAI's worker processes draw theirs from
    torch's seed), and ``set_epoch`` of the data set and its sampler, if they have one. The data loader is
    started anew with each epoch. So N epochs and k + (N - k) epochs see the same numbers and no random state has
    to be saved. Acts on all ranks.

    Args:
        seed: the run's seed, an integer >= 0.
        data_loader: what the trainer reads. Defaults to the loader of the engine that it is attached to.

    Raises:
        ValueError: the seed is negative, or the loader keeps its workers between epochs: those could not be seeded.
    """

    every_rank = True

    seed: int
    data_loader: Any = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {self.seed}.")

    def attach(self, engine: Engine) -> None:
        if self.data_loader is None:
            self.data_loader = getattr(engine, "data_loader", None)
        if getattr(self.data_loader, "persistent_workers", False):
            raise ValueError("persistent_workers must be False for seeding by epoch, got True.")
        super().attach(engine)

    def epoch_started(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        # Mixed, not added: seed 0's second epoch must not repeat seed 1's first.
        number = int(np.random.SeedSequence([self.seed, epoch, rank()]).generate_state(1)[0])
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002  the global generator is the one that transforms use
        random.seed(number)
        if self.data_loader is None:
            return
        set_rnd(getattr(self.data_loader, "dataset", None), number)
        for name in ("dataset", "sampler", "batch_sampler"):
            part: Any = getattr(self.data_loader, name, None)
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        # An iterator left from the last epoch would hand out batches drawn with the last epoch's numbers.
        engine.set_data(self.data_loader)

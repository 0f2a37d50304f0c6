"""A training of a second: a small convolution with dropout on random volumes, run by MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import RandGaussianNoised

from med3d_ext.handlers.base import iteration_loss
from med3d_ext.handlers.checkpoint import ResumableCheckpoint
from med3d_ext.handlers.seeding import EpochSeed


class Scores(Metric):
    """A validation metric read from a list, one value an epoch."""

    required_output_keys = None

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values
        self.epoch = 1
        super().__init__()

    def reset(self) -> None:
        pass

    def update(self, output: Any) -> None:
        pass

    def compute(self) -> Any:
        return self.values[self.epoch - 1]


@dataclass
class Training:
    """What :func:`make_training` builds; ``losses`` fills while it runs."""

    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    network: torch.nn.Module
    folder: Path
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)

    def weights(self) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in self.network.state_dict().items()}


def make_training(
    folder: str | Path,
    epochs: int = 4,
    scores: Sequence[Any] = (0.1, 0.5, 0.3, 0.4, 0.2, 0.6),
    channels: int = 4,
    learning_rate: float = 0.05,
    resume: bool | str = True,
    data: str | None = None,
    validate: bool = True,
    val_interval: int = 1,
    handlers: Callable[[Any], Sequence[Any]] = lambda evaluator: (),
    num_workers: int = 0,
    distributed: bool = False,
    cosine: bool | str = False,
    **checkpoint_arguments: Any,
) -> Training:
    """A trainer with seeding, validation, a scheduler and checkpoints; 3 iterations an epoch."""
    torch.manual_seed(100)
    items = [{"image": torch.randn(1, 6, 6, 6), "label": torch.randn(1, 6, 6, 6)} for _ in range(6)]
    noise = RandGaussianNoised(keys="image", prob=1.0, std=0.5)
    loader = DataLoader(Dataset(items, noise), batch_size=2, shuffle=True, num_workers=num_workers)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, channels, 3, padding=1),
        torch.nn.BatchNorm3d(channels),
        torch.nn.Dropout(0.3),
        torch.nn.Conv3d(channels, 1, 1),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    if cosine:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    if cosine == "warm-up":
        scheduler = WarmupCosineSchedule(optimizer, warmup_steps=1, t_total=epochs, warmup_multiplier=0.1)
    wrapped = torch.nn.parallel.DistributedDataParallel(network) if distributed else network
    metric = Scores(scores)
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items[:1]), batch_size=1),
        network=wrapped,
        key_val_metric={"val_mean_dice": metric},
    )
    evaluator.add_event_handler(Events.STARTED, lambda engine: setattr(metric, "epoch", engine.state.epoch + 1))
    checkpoint = ResumableCheckpoint(
        str(folder),
        wrapped,
        optimizer,
        scheduler,
        evaluator if validate else None,
        resume=resume,
        data=data,
        **checkpoint_arguments,
    )
    validation = [ValidationHandler(interval=val_interval, validator=evaluator)] if validate else []
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=wrapped,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        train_handlers=[
            checkpoint,  # first on purpose: it must not matter
            EpochSeed(seed=7),
            *validation,
            LrScheduleHandler(scheduler, print_lr=False),
            *handlers(evaluator),
        ],
    )
    training = Training(trainer, evaluator, network, Path(folder))

    def record(engine: Any) -> None:
        training.losses.append(iteration_loss(engine))
        training.learning_rates.append(optimizer.param_groups[0]["lr"])

    trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    return training


class Killed(BaseException):
    """Stands for a kill: nothing in the training catches it."""


def kill_at(training: Training, iteration: int) -> None:
    """Stop the training in its ``iteration``-th iteration, as a kill would."""

    def stop(engine: Any) -> None:
        if engine.state.iteration == iteration:
            raise Killed

    training.trainer.add_event_handler(Events.ITERATION_STARTED, stop)


@pytest.fixture
def new_training() -> Callable[..., Training]:
    """The factory of small trainings."""
    return make_training


@pytest.fixture
def killed_training() -> Callable[..., Training]:
    """Run a small training that is killed in an iteration: 3 an epoch, so 8 is in the third."""

    def run(*arguments: Any, iteration: int = 8, **options: Any) -> Training:
        training = make_training(*arguments, **options)
        kill_at(training, iteration)
        with pytest.raises(Killed):
            training.trainer.run()
        return training

    return run

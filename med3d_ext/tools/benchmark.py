"""The verb ``benchmark``: some steps of a bundle's real training, timed, and how long all of it would take."""

from __future__ import annotations

import logging
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ignite.engine import Engine, Events

from med3d_ext.engines import computes_bfloat16
from med3d_ext.errors import InputError
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check.resources import training_shape

SEED_HANDLER = "med3d_ext.handlers.seeding.EpochSeed"
FEWEST = 3


class StepTimer:
    """Times the steps of a trainer and its waiting for data, and ends it after some.

    Args:
        iterations: number of steps; the first, in which kernels are chosen, does not count.

    Attributes:
        steps: seconds of each step.
        waits: seconds of each wait for a batch.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._begin = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        for begin, end, times in (
            (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, self.waits),
            (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, self.steps),
        ):
            engine.add_event_handler(begin, self._start)
            engine.add_event_handler(end, self._stop, times)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:
        self._begin = time.perf_counter()

    def _stop(self, engine: Engine, times: list[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - self._begin)

    def _end(self, engine: Engine) -> None:
        if len(self.steps) >= self.iterations:
            engine.terminate()

    def figures(self) -> tuple[float, float]:
        """Median seconds of a step and of a wait."""
        return median(self.steps[1:]), median(self.waits[1 : len(self.steps)])


def benchmark(bundle: str, *, iterations: int = 10, **overrides: Any) -> str:
    """Time some steps of a bundle's training on this machine, and estimate how long the whole training would take.

    Data, network and steps are those of the real training; everything that it writes goes to a temporary folder.
    Run nothing else at the same time: it would be included in the figures.

    Args:
        bundle: a bundle's folder or name.
        iterations: number of steps, at least 3.
        overrides: options of the training, such as `--dataset_dir /data/Task03_Liver --network_name resnet50`.
    """
    if iterations < FEWEST:
        raise InputError(f"benchmark: --iterations must be at least {FEWEST}, got {iterations}.")
    found = Bundle.find(bundle, overrides)
    found.refuse_unknown("train")
    handlers = [each for each in found.merged("train")["train"]["handlers"] if each["_target_"] == SEED_HANDLER]
    with tempfile.TemporaryDirectory() as scratch:
        places = {"output_dir": str(Path(scratch) / "eval"), "ckpt_dir": str(Path(scratch) / "models")}
        timed = Bundle(found.folder, {**overrides, **places, "train::handlers": handlers})
        trainer = timed.value("train", "train::trainer")
        trainer.logger.setLevel(logging.WARNING)
        timer = StepTimer(iterations)
        timer.attach(trainer)
        trainer.run()
        return _text(timed, trainer, timer)


def _text(bundle: Bundle, trainer: Any, timer: StepTimer) -> str:
    device, shape = torch.device(trainer.state.device), training_shape(bundle)
    step, wait = timer.figures()
    epochs, length = trainer.state.max_epochs, trainer.state.epoch_length
    half = trainer.amp and computes_bfloat16(device)
    what = [
        str(bundle.merged("train")["network_name"]),
        " x ".join(map(str, shape)),
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "bfloat16" if half else "float32",
    ]
    whole = timedelta(seconds=round(step * length * epochs))
    return "\n".join(
        [
            ", ".join(what),
            f"training step      {step:.3f} s, {shape[0] / step:.2f} volumes a second (median)",
            f"waiting for data   {wait:.3f} s per step; less from the second epoch on, when every volume has been read",
            f"peak memory        {_peak(device) / 1e9:.2f} GB",
            f"an epoch           {length} steps, {timedelta(seconds=round(step * length))}",
            f"the whole training {epochs} epochs, {whole}, without waiting and validation",
        ]
    )


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # here: systems without it have every other verb

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

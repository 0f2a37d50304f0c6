"""The verb ``benchmark``: some steps of a bundle's real training, timed, and how long all of it would take."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ignite.engine import Engine, Events

from med3d_ext.engines import computes_bfloat16
from med3d_ext.errors import InputError
from med3d_ext.networks.resnet import ARCHITECTURES
from med3d_ext.run.options import check_options
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


@dataclass(frozen=True)
class Measured:
    """What some steps of a training took.

    Args:
        network_name: the depth.
        shape: the input, N x C x D x H x W.
        device: where, in words.
        precision: "bfloat16" or "float32".
        step: median seconds of a step.
        wait: median seconds of waiting for a batch before it.
        memory: bytes at the most: of the GPU, or of this process.
        length: steps of an epoch.
        epochs: epochs of the training.
    """

    network_name: str
    shape: Sequence[int]
    device: str
    precision: str
    step: float
    wait: float
    memory: float
    length: int
    epochs: int

    def row(self) -> list[str]:
        """The cells of a table."""
        epoch = timedelta(seconds=round((self.step + self.wait) * self.length))
        whole = timedelta(seconds=round(self.step * self.length * self.epochs))
        cells = [f"{self.step:.3f}", f"{self.shape[0] / self.step:.2f}", f"{self.wait:.3f}", f"{self.memory / 1e9:.2f}"]
        return [self.network_name, *cells, str(epoch), str(whole)]


HEADS = ["network", "step, s", "volumes a s", "waiting, s", "memory, GB", "first epoch", "whole training"]


def benchmark(
    bundle: str,
    *,
    iterations: int = 10,
    network_name: str | None = None,
    against: str | None = None,
    **overrides: Any,
) -> str:
    """Time some steps of a bundle's training on this machine, and estimate how long the whole training would take.

    The data, the network and the step are the training's own, and what it would write goes to a temporary folder. A
    step and the waiting for data before it are medians; the waiting is less once every volume was read. The whole
    training is without waiting and validation. Run it alone: other work on the machine is in the figures.

    Args:
        bundle: a bundle's folder or name.
        iterations: number of steps, at least 3.
        network_name: depths to compare, joined by commas, each in a process of its own. Defaults to the bundle's.
        against: the authors' code, a folder with `models/resnet.py`: its network of the same depths is timed on the
            same input, in float32 as it is written.
        overrides: options of the training, such as `--dataset_dir /data/Task03_Liver`.
    """
    if iterations < FEWEST:
        raise InputError(f"benchmark: --iterations must be at least {FEWEST}, got {iterations}.")
    asked = Bundle.find(bundle, overrides)
    asked.refuse_unknown("train")
    names = [None] if network_name is None else [name.strip(" '\"") for name in network_name.strip("[]()").split(",")]
    for name in names:
        check_options({} if name is None else {"network_name": name})
    if against is not None:
        authors_module(Path(against))  # refused before anything is timed
    rows: list[list[str]] = []
    found: list[Measured] = []
    for name in names:
        chosen = overrides if name is None else {**overrides, "network_name": name}
        task = measure, asked.folder, iterations, chosen
        found.append(measure(*task[1:]) if len(names) == 1 else _apart(*task))
        rows.append(found[-1].row())
        if against is not None:
            theirs = _apart(measure_authors, Path(against), found[-1], iterations, str(overrides.get("device", "")))
            _, step, volumes, _, memory, *_ = theirs.row()
            rows.append([f"{theirs.network_name}, authors' float32", step, volumes, "", memory, "", ""])
    first = found[0]
    head = [" x ".join(map(str, first.shape)), first.device, first.precision, f"an epoch of {first.length} steps"]
    return "\n".join([", ".join([*head, f"{first.epochs} epochs"]), *_table([HEADS, *rows])])


def measure(folder: Path, iterations: int, overrides: Mapping[str, Any]) -> Measured:
    """Time some steps of a bundle's training."""
    found = Bundle(folder, overrides)
    handlers = [each for each in found.merged("train")["train"]["handlers"] if each["_target_"] == SEED_HANDLER]
    with tempfile.TemporaryDirectory() as scratch:
        places = {"output_dir": str(Path(scratch) / "eval"), "ckpt_dir": str(Path(scratch) / "models")}
        timed = Bundle(found.folder, {**overrides, **places, "train::handlers": handlers})
        trainer = timed.value("train", "train::trainer")
        trainer.logger.setLevel(logging.WARNING)
        timer = StepTimer(iterations)
        timer.attach(trainer)
        trainer.run()
        device = torch.device(trainer.state.device)
        return Measured(
            str(timed.merged("train")["network_name"]),
            training_shape(timed),
            _words(device),
            "bfloat16" if trainer.amp and computes_bfloat16(device) else "float32",
            *timer.figures(),
            _peak(device),
            trainer.state.epoch_length,
            trainer.state.max_epochs,
        )


def authors_module(folder: Path) -> Any:
    """The module of the authors' networks, from the folder where the user has it; nothing of it is in this package.

    Raises:
        InputError: it is not there, or cannot be imported.
    """
    path = folder.expanduser() / "models" / "resnet.py"
    if not path.is_file():
        raise InputError(f"--against '{folder}' has no models/resnet.py; give the folder of the authors' MedicalNet.")
    try:
        spec = importlib.util.spec_from_file_location("authors_resnet", path)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except Exception as error:
        raise InputError(f"'{path}' cannot be imported ({type(error).__name__}: {error}); restore it.") from error
    return module


def measure_authors(folder: Path, ours: Measured, iterations: int, device: str = "") -> Measured:
    """Time the authors' network on the input that one of ours was timed on: a training step in float32.

    Raises:
        InputError: their code has no such network.
    """
    module = authors_module(folder)
    if not hasattr(module, ours.network_name):
        raise InputError(f"'{folder}' has no {ours.network_name}; leave it out of --network_name.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    batch, channels, *size = ours.shape
    arguments: dict[str, Any] = dict(zip(("sample_input_D", "sample_input_H", "sample_input_W"), size))
    arguments |= {"shortcut_type": ARCHITECTURES[ours.network_name].shortcut, "num_seg_classes": 2}
    network = getattr(module, ours.network_name)(**arguments, no_cuda=place.type == "cpu")
    network = network.to(place).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9)
    image = torch.randn(batch, channels, *size, device=place)
    seconds = []
    for _ in range(iterations):
        begin = time.perf_counter()
        optimizer.zero_grad()
        logits = network(image)
        target = torch.zeros((batch, *logits.shape[2:]), dtype=torch.long, device=place)
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
        if place.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    step = median(seconds[1:])
    return replace(ours, precision="float32", step=step, wait=0.0, memory=_peak(place))


def _apart(function: Callable[..., Measured], *arguments: Any) -> Measured:
    """In a process of its own, whose memory is that of one network."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _words(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # here: systems without it have every other verb

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

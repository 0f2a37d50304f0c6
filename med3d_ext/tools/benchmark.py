"""The verb ``benchmark``: some steps of a bundle's real training, timed, and how long all of it would take."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
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
    """Times some steps of a trainer, its waiting for a batch before each, and ends it."""

    def __init__(self, iterations: int, engine: Engine) -> None:
        self.iterations = iterations
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._begin = 0.0
        for begin, end, times in (
            (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, self.waits),
            (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, self.steps),
        ):
            engine.add_event_handler(begin, self._start)
            engine.add_event_handler(end, self._stop, times)

    def _start(self, engine: Engine) -> None:
        self._begin = time.perf_counter()

    def _stop(self, engine: Engine, times: list[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - self._begin)
        if len(self.steps) >= self.iterations:
            engine.terminate()

    def figures(self) -> tuple[float, float]:
        """Median seconds of a step and of a wait, without the first, in which kernels are chosen."""
        return median(self.steps[1:]), median(self.waits[1 : len(self.steps)])


@dataclass(frozen=True)
class Measured:
    """What some steps of a training took."""

    network_name: str
    shape: list[int]  # of the input, N x C x D x H x W
    device: str  # in words
    precision: str
    step: float  # median seconds
    wait: float  # median seconds of waiting for a batch before it
    memory: float  # bytes at the most: of the GPU, or of this process
    length: int  # steps of an epoch
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
    depths = network_name.strip("[]()").split(",") if network_name is not None else []
    chosen = [{"network_name": name.strip(" '\"")} for name in depths] or [{}]
    for each in chosen:
        check_options(each)
    if against is not None:
        _authors_module(Path(against))  # refused before anything is timed
    rows, found = [HEADS], []
    for each in chosen:
        task = asked.folder, iterations, {**overrides, **each}
        found.append(measure(*task) if len(chosen) == 1 else _apart(measure, *task))
        rows.append(found[-1].row())
        if against is not None:
            theirs = _apart(measure_authors, Path(against), found[-1], iterations, str(overrides.get("device", "")))
            _, step, volumes, _, memory, *_ = theirs.row()
            rows.append([f"{theirs.network_name}, authors' float32", step, volumes, "", memory, "", ""])
    first = found[0]
    head = [" x ".join(map(str, first.shape)), first.device, first.precision, f"an epoch of {first.length} steps"]
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([", ".join([*head, f"{first.epochs} epochs"]), *table])


def measure(folder: Path, iterations: int, overrides: Mapping[str, Any]) -> Measured:
    """Time some steps of a bundle's training."""
    handlers = Bundle(folder, overrides).merged("train")["train"]["handlers"]
    with tempfile.TemporaryDirectory() as scratch:
        own: dict[str, Any] = {"output_dir": str(Path(scratch) / "eval"), "ckpt_dir": str(Path(scratch) / "models")}
        own["train::handlers"] = [each for each in handlers if each["_target_"] == SEED_HANDLER]
        timed = Bundle(folder, {**overrides, **own})
        trainer = timed.value("train", "train::trainer")
        trainer.logger.setLevel(logging.WARNING)
        timer = StepTimer(iterations, trainer)
        trainer.run()
        device = torch.device(trainer.state.device)
        is_gpu = device.type == "cuda"
        return Measured(
            str(timed.merged("train")["network_name"]),
            training_shape(timed),
            torch.cuda.get_device_name(device) if is_gpu else f"CPU, {torch.get_num_threads()} threads",
            "bfloat16" if trainer.amp and computes_bfloat16(device) else "float32",
            *timer.figures(),
            _peak(device),
            trainer.state.epoch_length,
            trainer.state.max_epochs,
        )


def _authors_module(folder: Path) -> Any:
    """The module of the authors' networks, from the folder where the user has it; nothing of it is in this package."""
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
    """Time the authors' network on the input that one of ours was timed on: a training step in float32."""
    module = _authors_module(folder)
    if not hasattr(module, ours.network_name):
        raise InputError(f"'{folder}' has no {ours.network_name}; leave it out of --network_name.")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    batch, channels, *size = ours.shape
    arguments: dict[str, Any] = dict(zip(("sample_input_D", "sample_input_H", "sample_input_W"), size))
    arguments |= {"shortcut_type": ARCHITECTURES[ours.network_name].shortcut, "num_seg_classes": 2}
    network = getattr(module, ours.network_name)(**arguments, no_cuda=place.type == "cpu").to(place).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9)
    image = torch.randn(batch, channels, *size, device=place)

    def step(engine: Engine, _: Any) -> None:
        optimizer.zero_grad()
        logits = network(image)
        target = torch.zeros((batch, *logits.shape[2:]), dtype=torch.long, device=place)
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()

    engine = Engine(step)
    timer = StepTimer(iterations, engine)
    engine.run(range(iterations))
    return replace(ours, precision="float32", step=timer.figures()[0], wait=0.0, memory=_peak(place))


def _apart(function: Callable[..., Measured], *arguments: Any) -> Measured:
    """In a process of its own, whose memory is that of one network."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # here: systems without it have every other verb

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

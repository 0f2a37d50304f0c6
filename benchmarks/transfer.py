"""What an encoder is worth: fine-tune it on small tasks by folds, next to scratch, and write a row per measurement.

``med3d_ext compare`` measures whole trainings of one bundle. This measures the first steps on several tasks at once,
without the bundles' handlers, so that pretraining recipes can be told apart at little cost:

    python benchmarks/transfer.py ARMS.json ROWS.jsonl --data FOLDER [--folds 4] [--seeds 0,1] [--steps 60,120,240]

ARMS.json maps names to arms, as ``{"scratch": {}, "released": {"init": "encoder.pt", "heads_first": 20}}``, see
:class:`Arm`. A run (arm, task, fold, seed) whose rows are complete is not repeated, so the same command resumes.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.transforms import CastToTyped, Compose, SpatialResample
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from med3d_ext.data import BalancedSampler, PreparedData, SeededDataset
from med3d_ext.data.splits import split_cases
from med3d_ext.engines import computes_bfloat16
from med3d_ext.errors import InputError
from med3d_ext.handlers.freeze import stop_statistics
from med3d_ext.networks import DenseASPP, ResNetEncoder, SegmentationNetwork
from med3d_ext.transforms import LoadVolumed, MergeLabelsd, PercentileNormalized, RandTargetCropd, ResampleToGridd
from med3d_ext.weights.initial import InitialWeights


@dataclass(frozen=True)
class Arm:
    """How a network starts and is fine-tuned.

    Args:
        init: `scratch`, `med3d` or the path of a weights file.
        learning_rate: of AdamW, constant.
        encoder_multiplier: the encoder's learning rate in parts of ``learning_rate``.
        heads_first: steps in which the encoder is frozen.
        statistics: `batch` adapts the encoder's BatchNorm statistics, `frozen` keeps those of ``init``.
    """

    init: str = "scratch"
    learning_rate: float = 0.001
    encoder_multiplier: float = 1.0
    heads_first: int = 0
    statistics: str = "batch"

    def __post_init__(self) -> None:
        if self.statistics not in ("batch", "frozen") or (self.statistics == "frozen" and self.init == "scratch"):
            raise InputError("statistics must be 'batch', or 'frozen' for an arm that starts from weights.")


# The grids cost about as much each; their voxels are near those of the pretraining.
TASKS: dict[str, dict[str, Any]] = {
    "Abdomen_MR": {
        "folder": "more/Abdomen_MR",
        "kind": "3dseg8",
        "spatial_size": [96, 80, 32],
        "intensity_range": None,
    },
    "Heart_CMR": {"folder": "more/Heart_CMR", "kind": "3dseg8", "spatial_size": [64, 64, 64], "intensity_range": None},
    "lung": {"folder": "lung", "kind": "lung", "spatial_size": [64, 48, 64], "intensity_range": [-1024, 1000000]},
}
BATCH_SIZE = 2
CALIBRATION, CALIBRATION_SEED = 8, 1000  # training batches that BatchNorm statistics are measured on
BACK = SpatialResample(mode="nearest", padding_mode="border", align_corners=False, dtype="float32")


class Task:
    """One task's cases, folds and transforms."""

    def __init__(self, name: str, data: Path, work: Path) -> None:
        settings = TASKS[name]
        self.name, self.size = name, settings["spatial_size"]
        options = {"domains": 1} if settings["kind"] == "3dseg8" else {}
        self.prepared = PreparedData(settings["kind"], str(data / settings["folder"]), str(work / name), **options)
        facts = self.prepared.domain
        self.num_classes = len(facts["classes"])
        self.cache = work / name / "cache"
        self.fixed = [
            LoadVolumed(),
            PercentileNormalized("image", intensity_range=settings["intensity_range"]),
            MergeLabelsd("label", facts["label_map"]),
            CastToTyped(("image", "label"), (torch.float16, torch.uint8)),
        ]

    def fold(self, fold: int, folds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Training and test items; nothing is chosen by validation, so its cases train."""
        every = [item for split in ("training", "validation", "test") for item in self.prepared.items(split)]
        cases = [{key: item[key] for key in item if key != "split"} for item in every]
        split_cases({self.name: cases}, seed=0, folds=folds, fold=fold)
        test = [case for case in cases if case["split"] == "test"]
        return [case for case in cases if case["split"] != "test"], test

    def batches(self, items: Sequence[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
        """Endless training batches, the same for every arm."""
        crop = RandTargetCropd(("image", "label"), self.size)
        dataset = SeededDataset(items, Compose([*self.fixed, crop]), cache_dir=str(self.cache), seed=seed)
        sampler = BalancedSampler([self.name] * len(items), seed=seed)
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, sampler=sampler, drop_last=True)
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            dataset.set_epoch(epoch)
            yield from loader

    def evaluate(self, network: torch.nn.Module, items: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
        """Dice of each class of each case on the image's own grid; None for a class that the label lacks."""
        resize = ResampleToGridd("image", self.size)
        stored = SeededDataset(items, Compose(self.fixed), cache_dir=str(self.cache))
        network.eval()
        result = {}
        for number, item in enumerate(items):
            volume = stored[number]
            resized = resize({"image": volume["image"].float()})["image"]
            with torch.inference_mode(), _autocast():
                logits = network(resized[None].as_tensor().to(memory_format=torch.channels_last_3d))
            found = resized.clone()
            found.set_array(logits.float().argmax(1))
            whole = BACK(found.float(), dst_affine=volume["image"].affine, spatial_size=volume["image"].shape[1:])
            result[Path(item["image"]).name] = dice(whole.as_tensor(), volume["label"].as_tensor(), self.num_classes)
        return result


def dice(found: torch.Tensor, label: torch.Tensor, num_classes: int) -> list[float | None]:
    """Dice of each foreground class of two label maps; None for a class that ``label`` lacks."""
    scores: list[float | None] = []
    for value in range(1, num_classes):
        one, other = found == value, label == value
        total = int(one.sum() + other.sum())
        scores.append(round(2 * int((one & other).sum()) / total, 4) if other.any() else None)
    return scores


def mean(scores: Mapping[str, Sequence[float | None]]) -> float:
    """Mean Dice over all classes of all cases that have one."""
    return round(float(np.mean([score for case in scores.values() for score in case if score is not None])), 4)


def calibrated(network: torch.nn.Module, task: Task, items: Sequence[dict[str, Any]]) -> torch.nn.Module:
    """A copy whose BatchNorm statistics are the mean over some training batches.

    The running statistics lag behind weights that move fast: in the first hundred steps an evaluation by them swings
    by several tenths of Dice from one measurement to the next, which hides what the weights are worth.
    """
    copied = copy.deepcopy(network)
    batches = itertools.islice(task.batches(items, seed=CALIBRATION_SEED), CALIBRATION)
    with _autocast():
        update_bn((batch["image"].as_tensor().to(memory_format=torch.channels_last_3d) for batch in batches), copied)
    return copied


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_bfloat16(torch.device("cpu")))


def run(task: Task, arm: Arm, fold: int, folds: int, seed: int, steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Train one network, and yield the part of a row that each of ``steps`` measures."""
    torch.manual_seed(seed)
    training, test = task.fold(fold, folds)
    encoder = ResNetEncoder("resnet10")
    network = SegmentationNetwork(encoder, DenseASPP(encoder.channels[-1]), task.num_classes, dropout=0.1)
    initial = InitialWeights(network, arm.init, learning_rate=arm.learning_rate)
    network = network.to(memory_format=torch.channels_last_3d)
    rate = arm.learning_rate * arm.encoder_multiplier
    optimizer = torch.optim.AdamW(initial.parameter_groups(rate, 1 / arm.encoder_multiplier), weight_decay=0.01)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    began = time.monotonic()
    for step, batch in enumerate(task.batches(training, seed), 1):
        network.train()
        frozen = step <= arm.heads_first
        encoder.requires_grad_(not frozen)
        if frozen or arm.statistics == "frozen":
            stop_statistics(encoder)
        with _autocast():
            image = batch["image"].as_tensor().to(memory_format=torch.channels_last_3d)
            logits = network(image)
        loss = loss_function(logits.float(), batch["label"].as_tensor())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step in steps:
            plain = task.evaluate(network, test)
            scores = plain if arm.statistics == "frozen" else task.evaluate(calibrated(network, task, training), test)
            yield {
                "step": step,
                "mean": mean(scores),
                "mean_plain": mean(plain),
                "dice": scores,
                "loss": round(float(loss.detach()), 4),
                "seconds": round(time.monotonic() - began, 1),
            }
        if step >= max(steps):
            return


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows written so far; a last line that a kill has cut is dropped from the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def digest(init: str) -> str | None:
    """SHA-256 of a weights file, so that rows of another encoder under the same name are not taken for its own."""
    return hashlib.sha256(Path(init).read_bytes()).hexdigest()[:16] if Path(init).is_file() else None


def measure(
    arms: Mapping[str, Arm],
    rows: Path,
    data: Path,
    tasks: Sequence[str],
    folds: int,
    tested: Sequence[int],
    seeds: Sequence[int],
    steps: Sequence[int],
) -> None:
    """Run what ``rows`` lacks and append it; a run that was killed is repeated, and gives the same."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    built: dict[str, Task] = {}
    for seed, fold, name, (title, arm) in itertools.product(seeds, tested, tasks, arms.items()):
        key = {"arm": title, "task": name, "fold": fold, "folds": folds, "seed": seed, "weights": digest(arm.init)}
        settings = {key: value for key, value in asdict(arm).items() if key != "init"}
        key |= {"settings": settings, "size": TASKS[name]["spatial_size"]}
        done = {row["step"] for row in read_rows(rows) if all(row.get(part) == key[part] for part in key)}
        if set(steps) <= done:
            continue
        if name not in built:
            built[name] = Task(name, data, rows.parent / "transfer_work")
        for part in run(built[name], arm, fold, folds, seed, steps):
            if part["step"] not in done:
                with open(rows, "a", encoding="utf-8") as file:
                    file.write(json.dumps({**key, **part}) + "\n")
            print(f"{title}, {name}, fold {fold}, seed {seed}, step {part['step']}: {part['mean']:.3f}", flush=True)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with more/Abdomen_MR, more/Heart_CMR and lung")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--tested", type=_numbers, help="only these folds, for example 0,1")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1])
    parser.add_argument("--steps", type=_numbers, default=[60, 120, 240])
    given = parser.parse_args()
    arms = {name: Arm(**arm) for name, arm in json.loads(given.arms.read_text(encoding="utf-8")).items()}
    tested = given.tested or list(range(given.folds))
    measure(arms, given.rows, given.data, given.tasks, given.folds, tested, given.seeds, given.steps)


if __name__ == "__main__":
    main()

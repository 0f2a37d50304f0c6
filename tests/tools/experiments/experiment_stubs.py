"""A small bundle, its prepared data, and a stand-in for ``monai.bundle run`` in the tests of experiments."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from med3d_ext.data import PreparedData
from med3d_ext.tools.experiments.engine import ArmResult

CASES = 20
TRAIN = {
    "epochs": 4,
    "val_interval": 2,
    "network_name": "resnet10",
    "init": "scratch",
    "seed": 0,
    "share": 1.0,
    "folds": None,
    "fold": 0,
    "learning_rate": None,
    "batch_size": 2,
    "dataset_dir": None,
    "output_dir": "eval",
    "ckpt_dir": "models",
    "data": {
        "_target_": "experiment_stubs.FoldData",
        "dataset_dir": "@dataset_dir",
        "output_dir": "@output_dir",
        "seed": "@seed",
        "share": "@share",
        "folds": "@folds",
        "fold": "@fold",
    },
    "network_def": {"_target_": "med3d_ext.networks.resnet.ResNetEncoder", "name": "@network_name"},
    "initial_weights": {
        "_target_": "med3d_ext.weights.InitialWeights",
        "network": "@network_def",
        "init": "@init",
    },
    "train": {"dataset": {"_target_": "med3d_ext.data.SeededDataset", "cache_dir": "cache"}},
    "validate": {"handlers": []},
}


class FoldData(PreparedData):
    """Prepared data; a folder without ``split`` in its name is prepared first, in folds where asked for."""

    def __init__(self, dataset_dir: str, output_dir: str, folds: int | None = None, fold: int = 0, **rest: Any) -> None:
        if not Path(dataset_dir).name.startswith("split"):
            dataset_dir = str(write_split(Path(output_dir) / "split", folds, fold))
        super().__init__("lits", dataset_dir, output_dir, **rest)


def write_split(folder: Path, folds: int | None = None, fold: int = 0) -> Path:
    """A prepared folder of twenty cases, of which the last four or a fold's are tested; no image is ever opened."""
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list] = {"training": [], "validation": [], "test": []}
    for number in range(CASES):
        tested = number % folds == fold if folds else number >= CASES - 4
        split = "test" if tested else "validation" if number < 2 else "training"
        case = {
            "image": f"./case_{number:02d}.nii",
            "label": f"./label_{number:02d}.nii",
            "sha256": f"hash{number:02d}",
        }
        lists[split].append({**case, "domain": "liver"})
    cases = [{**case, "split": split} for split, cases in lists.items() for case in cases]
    (folder / "datalist.json").write_text(json.dumps(lists))
    (folder / "fingerprint.json").write_text(json.dumps({"domains": {"liver": {"cases": cases}}}))
    return folder


class Runner:
    """Writes what a training and an evaluation leave; pretrained weights learn ten times as fast as 0.01 from scratch.

    Args:
        task: "segmentation" or "classification".
        make_data: makes the data of a run from its arguments.
    """

    def __init__(self, task: str = "segmentation", make_data: Callable[..., PreparedData] = FoldData) -> None:
        self.task, self.make_data = task, make_data
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fail: str | None = None
        self.extra_iterations: dict[str, int] = {}

    @property
    def steps(self) -> list[str]:
        return [f"{step} {Path(arguments['output_dir']).name}" for step, arguments in self.calls]

    def __call__(self, arguments: Mapping[str, Any], log: Path, descriptors: Sequence[int] = ()) -> int:
        self.calls.append((log.stem, dict(arguments)))
        folder = Path(arguments["output_dir"])
        if self.fail in (log.stem, f"{log.stem} {folder.name}"):
            log.write_text("loading\nthe disk is full.\n\n")
            return 1
        keys = ("dataset_dir", "output_dir", "seed", "share", "folds", "fold", "domains")
        data = self.make_data(**{key: arguments[key] for key in keys if key in arguments})
        (self.train if log.stem == "train" else self.evaluate)(folder, arguments, data)
        return 0

    def train(self, folder: Path, arguments: Mapping[str, Any], data: PreparedData) -> None:
        models = Path(arguments["ckpt_dir"])
        models.mkdir(parents=True, exist_ok=True)
        for name in ("model.pt", "training_state.pt"):
            (models / name).write_text("")
        (models / "card.json").write_text(json.dumps({"cases": {"training": data.training}}))
        epochs, length = arguments.get("epochs", TRAIN["epochs"]), len(data.training)
        iterations = epochs * length + self.extra_iterations.get(folder.name, 0)
        values = quality(arguments, np.arange(1, iterations + 1))
        rows = [
            {"iteration": i + 1, "epoch": min(epochs, i // length + 1), "loss": 1 - v} for i, v in enumerate(values)
        ]
        write_rows(folder / "loss.csv", rows)
        score = "val_auc" if self.task == "classification" else "val_mean_dice"
        history = [
            {"epoch": e, "loss": 0.5, score: values[e * length - 1] if e % TRAIN["val_interval"] == 0 else ""}
            for e in range(1, epochs + 1)
        ]
        write_rows(folder / "history.csv", history)
        run = {
            "status": "completed",
            "epochs": epochs,
            "iterations": iterations,
            "duration_seconds": 1.5,
            "earlier": [],
            "data": {name: {case["image"]: case["sha256"] for case in cases} for name, cases in data.cases.items()},
        }
        best = {score: values[-1], "epoch": epochs}
        (folder / "run.json").write_text(json.dumps({**run, "device": {"type": "cpu"}, "best": best}))
        if self.task == "segmentation" and len(arguments["config_file"]) > 1:
            self.snap(folder, arguments)

    def snap(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        overlay = json.loads(Path(arguments["config_file"][-1]).read_text())
        (folder / "snapshots").mkdir(exist_ok=True)
        for epoch in overlay["+validate::handlers"][0]["epochs"]:
            label = np.zeros((8, 10), np.uint8)
            label[2:6, 3:7] = 1
            arrays = {"image": label.astype(np.float16), "label": label, "prediction": np.roll(label, epoch % 3, 0)}
            np.savez(folder / "snapshots" / f"epoch_{epoch:04d}.npz", **arrays, aspect=1.5, case="case_00.nii")

    def evaluate(self, folder: Path, arguments: Mapping[str, Any], data: PreparedData) -> None:
        final = quality(arguments, np.array([100]))[0]
        rows = []
        for item in data.test:
            name = Path(item["image"]).name
            number = int(re.findall(r"\d+", name)[-1])
            row: dict[str, Any] = {"case": name, "domain": item["domain"]}
            value = final + 0.01 * (number % 5) + 0.01 * arguments["seed"]
            if self.task == "classification":
                label = number % 2
                probability = np.clip(0.5 + (label - 0.5) * value + 0.3 * ((number % 7) / 6 - 0.5), 0, 1)
                row |= {"label": label, "probability": probability, "val_brier": (probability - label) ** 2}
            else:
                row |= {"val_mean_dice": value}
            rows.append(row)
        write_rows(folder / "test" / "cases.csv", rows)
        (folder / "test" / "summary.json").write_text(json.dumps({"split": "test"}))


def quality(arguments: Mapping[str, Any], iterations: np.ndarray) -> np.ndarray:
    """From 0 towards 0.8, at a speed that depends on the initial weights and the learning rate."""
    scratch = {0.01: 50.0, 0.001: 500.0}
    is_scratch = arguments.get("init", "scratch") == "scratch"
    slowness = scratch[arguments.get("learning_rate", 0.01)] if is_scratch else 5.0
    return 0.8 * (1 - np.exp(-iterations / slowness))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def arm_result(
    start: str,
    losses: Sequence[float] = (),
    scores: Sequence[float] = (),
    cases: Sequence[Mapping[str, Any]] = (),
    folder: Path = Path("arm"),
    epochs: int = 1,
    **facts: Any,
) -> ArmResult:
    """A finished arm; ``scores`` are the column ``dice`` of its history, ten iterations an epoch."""
    facts = {"start": start, "seed": 0, "share": None, "fold": None, **facts}
    rows = [{"epoch": n, "iteration": 10 * n, "dice": score} for n, score in enumerate(scores, start=1)]
    history = pd.DataFrame(rows, columns=["epoch", "iteration", "dice"])
    return ArmResult(facts, folder, {"epochs": epochs}, np.array(losses), history, pd.DataFrame(cases), [])

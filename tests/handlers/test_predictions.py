from __future__ import annotations

import csv
import json
import logging

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, Compose, DeleteItemsd

from med3d_ext.handlers import PredictionTable
from med3d_ext.transforms import CropCubed, LoadVolumed

CLASSES = {"0": "benign", "1": "malignant"}


class Middle(torch.nn.Module):
    """Malignant where the middle of the cube is bright."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        middle = image[:, 0, 3:5, 3:5, 3:5].mean(dim=(1, 2, 3)) / 100
        return torch.stack([-middle, middle], dim=1)


def classify(items: list[dict], folder, skipped=()) -> tuple[list[dict], dict]:
    handler = PredictionTable(str(folder), CLASSES, skipped)
    loader = DataLoader(Dataset(items, Compose([LoadVolumed("image"), CropCubed("image", (8, 8, 8), 8.0)])))
    post = Compose([Activationsd("pred", softmax=True), DeleteItemsd(["image", "image_meta_dict"])])
    SupervisedEvaluator(torch.device("cpu"), loader, Middle(), postprocessing=post, val_handlers=[handler]).run()
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "predictions.json").read_text())


def test_cubes_give_a_row_each_as_csv_and_as_json(nodule_folder, tmp_path, caplog):
    source = nodule_folder(ratings=(1, 5, 2))
    items = [{"image": str(path)} for path in sorted((source / "images").iterdir())]
    with caplog.at_level(logging.INFO):
        rows, content = classify(items, tmp_path / "out", skipped=["'x' cannot be read."])
    assert list(rows[0]) == ["case", "probability", "prediction"]
    assert [row["case"] for row in rows] == ["n0.nii.gz", "n1.nii.gz", "n2.nii.gz"]
    assert all(row["prediction"] == "malignant" and float(row["probability"]) > 0.5 for row in rows)
    assert (content["n"], content["skipped"], content["probability_of"]) == (3, ["'x' cannot be read."], "malignant")
    assert [str(row["probability"]) for row in content["cases"]] == [row["probability"] for row in rows]
    assert any("3 classified, 3 as malignant, 1 skipped" in record.message for record in caplog.records)


def test_points_give_a_row_each_with_name_and_place(nodule_folder, tmp_path):
    scan = nodule_folder(ratings=(1, 5)) / "images" / "n0.nii.gz"
    item = {"image": str(scan), "centers": [[6.5, 6.5, 6.5], [0.25, 0, 13]], "names": ["nodule", "corner"]}
    rows, content = classify([item], tmp_path / "out")
    assert list(rows[0]) == ["case", "name", "x", "y", "z", "probability", "prediction"]
    assert [(row["name"], row["prediction"]) for row in rows] == [("nodule", "malignant"), ("corner", "benign")]
    assert [rows[1][axis] for axis in "xyz"] == ["0.25", "0.0", "13.0"]
    assert content["cases"][1]["x"] == 0.25

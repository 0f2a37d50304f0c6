"""What the evaluation of a classifier leaves behind, from MONAI's evaluator on nodules of known probability."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, Compose

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.handlers import ClassificationSummary
from med3d_ext.handlers.classification_summary import mask_volume, size_only
from med3d_ext.metrics import measure_classes
from med3d_ext.metrics.classification import auc
from med3d_ext.transforms import LoadVolumed


class Brightness(torch.nn.Module):
    """Logits from the share of bright voxels: the larger the nodule, the likelier malignant."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        share = (image > -400).float().mean(dim=(1, 2, 3, 4))
        return torch.stack([torch.zeros_like(share), 40 * (share - 0.03)], dim=1)


@pytest.fixture
def data(nodule_folder, tmp_path) -> PreparedData:
    source = nodule_folder(ratings=tuple(1 + number % 5 for number in range(20)))
    return PreparedData("nodules", str(source), str(tmp_path / "run"), options={"folds": 2})


def evaluate(data: PreparedData, folder, items: list[dict] | None = None, handler=None) -> ClassificationSummary:
    handler = handler or ClassificationSummary(str(folder), "test", data)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items or data.test, LoadVolumed("image")), batch_size=3),
        network=Brightness(),
        postprocessing=Compose([Activationsd("pred", softmax=True)]),
        val_handlers=[handler],
    ).run()
    return handler


def cases_of(data: PreparedData) -> list[dict]:
    return next(iter(data.cases.values()))


def read(folder) -> tuple[list[dict], dict]:
    with open(folder / "cases.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


def test_a_row_per_case_and_figures_with_n_and_interval(data, tmp_path):
    evaluate(data, tmp_path / "out")
    rows, summary = read(tmp_path / "out")
    assert list(rows[0]) == ["case", "domain", "label", "probability", "val_accuracy", "val_brier"]
    assert [row["case"] for row in rows] == [item["image"].rpartition("/")[2] for item in data.test]
    labels, probabilities = ([float(row[key]) for row in rows] for key in ("label", "probability"))
    assert labels == [item["label"] for item in data.test]
    for row, label, probability in zip(rows, labels, probabilities):
        assert float(row["val_brier"]) == pytest.approx((probability - label) ** 2)
        assert row["val_accuracy"] == str(int((probability >= 0.5) == (label == 1)))
    assert (summary["split"], summary["n"], summary["positive"], summary["threshold"]) == ("test", 10, "malignant", 0.5)
    (figures,) = summary["domains"].values()
    expected = measure_classes([int(label) for label in labels], probabilities)
    assert {name: figures[f"val_{name}"] for name in expected} == expected
    for name in ("reliability.png", "roc.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_the_size_only_baseline_is_fitted_on_the_other_cases_and_judged_on_the_same(data, tmp_path):
    evaluate(data, tmp_path / "out")
    summary = read(tmp_path / "out")[1]
    (figures,) = summary["domains"].values()
    volumes = {case["sha256"]: mask_volume(case) for case in cases_of(data)}
    labels = np.array([item["label"] for item in data.test])
    sizes = np.array([volumes[item["sha256"]] for item in data.test])
    assert figures["size_only_auc"]["mean"] == pytest.approx(float(auc(labels, sizes)), abs=1e-4)
    assert figures["size_only_auc"]["n"] == figures["val_auc"]["n"] == 10
    assert {"size_only_accuracy", "size_only_brier", "size_only_sensitivity"} < figures.keys()
    (facts,) = summary["size_only"].values()
    assert facts["fitted_cases"] == len(data.training) + len(data.items("validation")) == 10


def test_cases_without_a_mask_are_not_counted_in_the_baseline(data, tmp_path):
    rows = [{"sha256": item["sha256"], "label": item["label"]} for item in data.test]
    for case in cases_of(data):
        if case["sha256"] == rows[0]["sha256"]:
            case["labels"] = {}
    (domain,) = data.domains
    assert len(size_only(rows, domain, data)[0]) == 9
    for case in cases_of(data):
        case["labels"] = {}
    assert size_only(rows, domain, data) == ([], None)
    assert size_only(rows, "another", data) == ([], None) == size_only(rows, domain, None)


def test_without_scikit_learn_the_baseline_alone_is_missing_and_a_warning_says_so(data, tmp_path, monkeypatch, caplog):
    evaluate(data, tmp_path / "with")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    evaluate(data, tmp_path / "without")
    assert list(read(tmp_path / "without")[1]["size_only"].values()) == [None]
    (figures,), (fewer,) = (read(tmp_path / name)[1]["domains"].values() for name in ("with", "without"))
    assert fewer == {name: figure for name, figure in figures.items() if not name.startswith("size_only")}
    assert 'pip install "med3d-ext[tools]"' in caplog.text
    assert (tmp_path / "without" / "roc.png").is_file()


def test_items_without_domain_or_digest_are_measured_too_and_a_second_run_starts_anew(data, tmp_path):
    items = [{key: item[key] for key in ("image", "label")} for item in data.test]
    handler = evaluate(data, tmp_path / "out", items=items)
    first = list(handler.rows)
    assert evaluate(data, tmp_path / "out", items=items, handler=handler).rows == first
    rows, summary = read(tmp_path / "out")
    assert {row["domain"] for row in rows} == {"all"} == set(summary["domains"])
    assert mask_volume({"labels": {"0": 90, "1": 8, "2": 2}, "spacing": [1.0, 2.0, 0.5]}) == 10.0  # mm3

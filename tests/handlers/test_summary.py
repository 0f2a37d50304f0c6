"""What an evaluation leaves behind, from MONAI's evaluator on two cases of known Dice."""

from __future__ import annotations

import csv
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, MeanDice, from_engine

from med3d_ext.data.leakage import Evaluated
from med3d_ext.errors import InputError
from med3d_ext.handlers.summary import EvaluationSummary, per_case
from med3d_ext.metrics import ROIMetric


def case(name: str, filled: int, **facts) -> dict:
    """An image whose first ``filled`` of 8 slices are the prediction, and a label of the first 4."""
    image, label = torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 8)
    image[:, :filled], label[:, :4] = 1, 1
    return {"image": MetaTensor(image, meta={"filename_or_obj": f"/data/{name}"}), "label": label, **facts}


def evaluate(items, handler) -> SupervisedEvaluator:
    output = from_engine(["pred", "label"])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=1),
        network=torch.nn.Identity(),
        key_val_metric={"dice": MeanDice(include_background=True, output_transform=output)},
        additional_metrics={"recall": IgniteMetricHandler(ROIMetric("recall", 0.0), output_transform=output)},
        val_handlers=[handler],
    )
    evaluator.run()
    return evaluator


def read(folder) -> tuple[list[dict], dict]:
    with open(folder / "cases.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


def test_a_row_per_case_and_a_summary_with_n_and_interval(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        evaluate([case("a.nii.gz", 4), case("b.nii.gz", 2)], EvaluationSummary(str(tmp_path / "out"), "test"))
    rows, summary = read(tmp_path / "out")
    assert [row["case"] for row in rows] == ["a.nii.gz", "b.nii.gz"]
    np.testing.assert_allclose([float(row["dice"]) for row in rows], [1, 2 / 3], atol=1e-6)
    np.testing.assert_allclose([float(row["recall"]) for row in rows], [1, 0.5])
    assert (summary["split"], summary["n"]) == ("test", 2)
    dice = summary["domains"]["all"]["dice"]
    assert (dice["n"], dice["mean"], dice["minimum"]) == (2, 0.8333, 0.6667)
    assert dice["interval_95"] == [0.6667, 1.0]
    assert any("all: dice 0.8333 (n=2" in record.message for record in caplog.records)


def test_domains_and_a_further_key_group_the_cases(tmp_path):
    groups = [("liver", "CT"), ("heart", "MR"), ("heart", None)]
    items = [
        case(f"{number}.nii", 4 if number != 1 else 2, domain=domain, **({"modality": modality} if modality else {}))
        for number, (domain, modality) in enumerate(groups)
    ]
    evaluate(items, EvaluationSummary(str(tmp_path), group_by="modality"))
    rows, summary = read(tmp_path)
    assert [(row["domain"], row["modality"]) for row in rows] == [*groups[:2], ("heart", "not stated")]
    assert {name: facts["recall"]["n"] for name, facts in summary["domains"].items()} == {"liver": 1, "heart": 2}
    assert summary["domains"]["heart"]["recall"]["mean"] == 0.75
    assert {name: facts["dice"]["n"] for name, facts in summary["modality"].items()} == {
        "CT": 1,
        "MR": 1,
        "not stated": 1,
    }


def test_a_second_run_starts_anew_and_a_case_without_a_value_or_a_name_is_counted(tmp_path):
    nothing = case("empty.nii", 4)
    nothing["label"] = nothing["label"] * 0
    nothing["image"] = nothing["image"].as_tensor()
    evaluate([nothing, case("b.nii", 2)], EvaluationSummary(str(tmp_path))).run()
    rows, summary = read(tmp_path)
    assert sorted(row["case"] for row in rows) == ["", "b.nii"] and summary["n"] == 2
    assert (summary["domains"]["all"]["recall"]["n"], summary["domains"]["all"]["recall"]["undefined"]) == (1, 1)


def test_only_the_first_process_writes(tmp_path):
    class Second(EvaluationSummary):
        def completed(self, engine):
            engine.state.rank = 1
            super().completed(engine)

    evaluate([case("a.nii", 4)], Second(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_the_value_of_a_case_is_the_mean_over_the_classes_that_it_has():
    nan = float("nan")
    np.testing.assert_allclose(per_case(torch.tensor([[0.5, 1.0], [nan, 0.2], [nan, nan]])), [0.75, 0.2, nan])
    np.testing.assert_allclose(per_case([0.5, 0.6]), [0.5, 0.6])
    np.testing.assert_allclose(per_case(0.5), [0.5])


@pytest.fixture
def weights(tmp_path):
    """Weights that were trained on the case of content "a" and chosen by that of "b", with two classes."""
    cases = {"training": [{"image": "x.nii", "sha256": "a"}], "validation": [{"image": "y.nii", "sha256": "b"}]}
    cases["test"] = [{"image": "z.nii", "sha256": "c"}]
    classes = {"classes": {"0": "background", "1": "liver", "2": "tumor"}}
    (tmp_path / "card.json").write_text(json.dumps({"cases": cases}))
    (tmp_path / "facts.json").write_text(json.dumps({"domains": {"Liver": classes}}))
    return tmp_path / "model.pt"


def data(*names: str, domain: str = "Liver") -> SimpleNamespace:
    """The facts of prepared data."""
    classes = {str(number): name for number, name in enumerate(("background", *names))}
    return SimpleNamespace(domains={domain: {"classes": classes}})


class Named(Dataset):
    """Items that are files until they are loaded, as those of an evaluation."""

    def __getitem__(self, index):
        return case(self.data[index]["image"], 4)


def test_cases_that_the_weights_have_seen_are_named_first(weights, tmp_path, caplog):
    items = [{"image": f"/data/{name}.nii", "sha256": digest} for name, digest in (("p", "b"), ("q", "c"), ("r", "a"))]
    with caplog.at_level(logging.INFO):
        evaluate(Named(items), EvaluationSummary(str(tmp_path / "out"), evaluated=Evaluated(weights)))
    summary = read(tmp_path / "out")[1]
    assert next(iter(summary)) == "seen_by_weights" and summary["seen_by_weights"] == ["p.nii", "r.nii"]
    assert caplog.messages[0].startswith("the weights were trained on or chosen by 2 of these 3 cases (p.nii, r.nii)")


def test_new_cases_are_not_named_and_a_file_without_digest_is_read(weights, tmp_path, caplog):
    new = tmp_path / "new.nii"
    new.write_bytes(b"a scan")
    evaluate(Named([{"image": str(new)}]), EvaluationSummary(str(tmp_path / "out"), evaluated=Evaluated(weights)))
    assert read(tmp_path / "out")[1]["seen_by_weights"] == [] and "seen" not in caplog.text
    (tmp_path / "card.json").unlink()
    evaluate(Named([{"image": str(new)}]), EvaluationSummary(str(tmp_path / "out"), evaluated=Evaluated(weights)))
    assert read(tmp_path / "out")[1]["seen_by_weights"] is None  # nobody knows


def test_weights_of_another_number_of_classes_are_refused_and_of_other_names_named(weights, tmp_path, caplog):
    with pytest.raises(InputError, match="segments liver, tumor, the labels of 'Liver' are hip; give"):
        Evaluated(weights, data("hip")).doubts([])
    assert Evaluated(weights, data("Liver", "cancer")).doubts([])["other_classes"] == {
        "Liver": [["liver", "tumor"], ["Liver", "cancer"]]
    }
    assert "check that they mean the same" in caplog.text
    assert "other_classes" not in Evaluated(weights, data("Liver", "tumor", domain="mine")).doubts([])
    # A network of one target of the two: the tumor is not compared.
    assert "other_classes" not in Evaluated(weights, data("liver"), num_classes=2).doubts([])

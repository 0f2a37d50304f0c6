"""Predictions carry the values that the label files of the training have, whichever way they are made."""

from __future__ import annotations

import json
import logging

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import SaveImage
from perfect import PerfectNetwork, random_weights, segmentation_bundles, with_network

from med3d_ext.data import PreparedData, label_values
from med3d_ext.data.domains import label_map_of
from med3d_ext.io.label_maps import LabelMapWriter, read_label_names, read_label_sources
from med3d_ext.tools.evaluate import evaluate
from med3d_ext.tools.predict import BundlePredictor
from med3d_ext.transforms import LoadVolumed, MergeLabelsd

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("bundle", segmentation_bundles(), ids=lambda path: path.name)
def test_both_ways_to_a_result_give_the_value_of_the_label_files(bundle, nifti, tmp_path):
    """`predict`, and the config that `monai.bundle run` takes: one file, with the right name for the right value."""
    label_map = {"0": 0, "4": 0, "300": 1, "301": 1}
    options = random_weights(bundle, tmp_path / "models", label_map=label_map)
    voxels = np.full((20, 18, 16), -200, np.int16)
    voxels[5:10, 4:9, 4:8] = 250
    scan = nifti(tmp_path / "scans" / "scan.nii.gz", voxels, np.diag([-2.0, 3, 4, 1]))
    expected = np.where(voxels > 0, 300, 0)

    predictor = with_network(BundlePredictor(bundle, "cpu", options), PerfectNetwork())
    found = predictor(str(scan)).labels
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint16 and predictor.sources[300] == [300, 301]

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "output_dir": str(tmp_path / "out"), "handlers": [], **options})
    parser.update({"dataset_dir": str(tmp_path / "scans"), "network": PerfectNetwork(), "device": torch.device("cpu")})
    parser.get_parsed_content("evaluator").run()
    written = nibabel.load(tmp_path / "out" / "scan_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    assert written.get_data_dtype() == np.uint16
    assert read_label_names(tmp_path / "out" / "scan_seg.nii.gz")[300] == predictor.names[300]
    assert read_label_sources(tmp_path / "out" / "scan_seg.nii.gz") == predictor.sources


@pytest.mark.parametrize("seed", range(8))
def test_random_values_come_back_from_training_to_saved_map(seed, nifti, tmp_path):
    """Source, preparation, the training's label, the saved map: the value, or the lowest of those merged with it."""
    generator = np.random.default_rng(seed)
    values = np.sort(generator.choice(np.arange(1, 256 if seed % 2 else 3000), 5, replace=False)).tolist()
    merge = {values[3]: values[1], values[0]: values[4]}
    folder = tmp_path / "organs"
    truth = generator.choice([0, *values], (12, 11, 10))
    affine = np.diag([1.0, 1, 2, 1])
    entries = []
    for number in range(3):
        stored = truth.astype([np.int16, np.float32][number % 2])
        nifti(folder / f"image{number}.nii.gz", generator.normal(size=truth.shape).astype(np.float32), affine)
        nifti(folder / f"label{number}.nii.gz", stored, affine, scaling=(1.0, 0.0))
        entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
    shuffled = generator.permutation([0, *values]).tolist()
    labels = {str(value): f"organ {value}" for value in shuffled}
    content = {"labels": labels, "modality": {"0": "MRI"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    line = {"folder": ".", "merge": {str(value): target for value, target in merge.items()}}
    (folder / "domains.json").write_text(json.dumps({"organs": line}))

    data = PreparedData("3dseg8", str(folder), str(tmp_path / "run"))
    item = LoadVolumed()(data.training[0])
    item = MergeLabelsd("label", {"organs": data.label_map("organs")})(item)
    number_of_classes = len(data.domain["classes"])
    assert sorted(item["label"].unique().tolist()) == list(range(number_of_classes)) == [0, 1, 2, 3]

    meta = {"filename_or_obj": str(folder / "image0.nii.gz"), "original_affine": affine, "spatial_shape": truth.shape}
    prediction = MetaTensor(item["label"].as_tensor(), affine=torch.as_tensor(affine), meta=meta)

    def writer(**options):
        return LabelMapWriter(data.domain["classes"], label_values(data.domain), **options)

    SaveImage(tmp_path / "out", "seg", output_dtype=torch.uint8, separate_folder=False, writer=writer)(prediction)
    found = nibabel.load(tmp_path / "out" / "image0_seg.nii.gz")
    lowest = {0: 0, **{value: value for value in values}}
    for group in ((values[1], values[3]), (values[0], values[4])):
        lowest.update(dict.fromkeys(group, min(group)))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.vectorize(lowest.get)(truth))
    assert found.get_data_dtype() == (np.uint8 if max(lowest.values()) < 256 else np.uint16)
    names = read_label_names(tmp_path / "out" / "image0_seg.nii.gz")
    assert names == {min(values[1], values[3]): f"organ {values[1]}", values[2]: f"organ {values[2]}"} | {
        values[0]: f"organ {values[4]}"
    }

    # `evaluate` merges the labels alike: a perfect prediction is perfect, and no merged value is missed.
    for label in ("label0.nii.gz", "label1.nii.gz"):
        evaluate(str(tmp_path / "out" / "image0_seg.nii.gz"), str(folder / label), output=str(tmp_path / "report"))
        classes = json.loads((tmp_path / "report" / "summary.json").read_text())["classes"]
        assert list(classes) == [str(value) for value in sorted(names)]
        assert all(each["dice"]["mean"] == 1 and each["found"] == 1 for each in classes.values())


def test_facts_of_older_weights_and_of_two_targets_number_the_classes():
    """LiTS's weights of before state no map; with two classes the tumor is liver."""
    lits = {"classes": {"0": "background", "1": "liver", "2": "tumor"}}
    assert label_values(lits) == {"0": [0], "1": [1], "2": [2]}
    assert label_values(lits, num_classes=2) == {"0": [0], "1": [1, 2]}
    gaps = {"classes": {"0": "background", "3": "liver", "255": "tumor"}}
    assert label_map_of(gaps) == {"0": 0, "3": 1, "255": 2}
    assert label_values(gaps, num_classes=2) == {"0": [0], "1": [3, 255]}


def test_a_labelling_servers_labels_hold_the_networks_own_numbers(tmp_path, monkeypatch):
    label_map = {"0": 0, "1": 1, "3": 2, "255": 3}
    domain = {"classes": {str(number): str(number) for number in range(4)}, "label_map": label_map}
    models = tmp_path / "bundle" / "models"
    models.mkdir(parents=True)
    (models / "model.pt").write_bytes(b"")
    (models / "facts.json").write_text(json.dumps({"domains": {"a": domain}}))
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path))
    data = PreparedData("3dseg8", None, str(tmp_path / "run"), bundle_root=str(tmp_path / "bundle"))
    assert [data.label_map()[str(number)] for number in range(4)] == [0, 1, 2, 3]


@pytest.fixture
def liver(nifti, tmp_path):
    """A label map with liver (1) and tumor (2), and a prediction of both as one."""
    truth = np.zeros((12, 11, 10), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    truth[4:6, 4:6, 4:6] = 2
    affine = np.diag([1.0, 1, 2, 1])
    nifti(tmp_path / "labels" / "a.nii.gz", truth, affine)
    nifti(tmp_path / "plain" / "a_seg.nii.gz", (truth > 0).astype(np.uint8), affine)
    return tmp_path


def classes_found(folder, prediction, label):
    evaluate(str(folder / prediction), str(folder / label), output=str(folder / "report"))
    summary = json.loads((folder / "report" / "summary.json").read_text())
    return {name: each["dice"]["mean"] for name, each in summary["classes"].items()}, summary["merged_label_values"]


def test_merged_values_are_found_in_the_summary_next_to_a_prediction_or_in_the_names_of_a_list(liver):
    found, merged = classes_found(liver, "plain", "labels")
    assert found["1"] < 1 and found["2"] == 0 and merged == {}
    listed = {"image": "a.nii.gz", "label": "labels/a.nii.gz"}
    named = {"labels": {"0": "background", "1": "liver", "2": "liver"}, "training": [listed]}
    (liver / "dataset.json").write_text(json.dumps(named))
    assert classes_found(liver, "plain", "dataset.json") == ({"1": 1.0}, {"1": [1, 2]})
    (liver / "plain" / "summary.json").write_text(json.dumps({"label_values": {"0": [0], "1": [1, 2]}}))
    assert classes_found(liver, "plain", "labels") == ({"1": 1.0}, {"1": [1, 2]})


def test_a_prepared_list_names_the_values_of_its_files(liver, nifti, tmp_path, caplog):
    """Task03 of the Decathlon is one target in the pretraining: its list says so, and `evaluate` merges alike."""
    folder = tmp_path / "Task03_Liver"
    entries = []
    for number in range(3):
        affine = np.diag([1.0, 1, 2, 1])
        truth = np.asarray(nibabel.load(liver / "labels" / "a.nii.gz").dataobj)
        nifti(folder / f"liver_{number}.nii.gz", np.roll(truth, number, 0).astype(np.int16) * 50, affine)
        nifti(folder / f"label_{number}.nii.gz", truth, affine)
        nifti(tmp_path / "maps" / f"liver_{number}_seg.nii.gz", (truth > 0).astype(np.uint8), affine)
        entries.append({"image": f"liver_{number}.nii.gz", "label": f"label_{number}.nii.gz"})
    content = {"labels": {"0": "background", "1": "liver", "2": "cancer"}, "modality": {"0": "CT"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        data = PreparedData("3dseg8", str(folder), str(tmp_path / "run"))
    listed = json.loads((data.folder / "datalist.json").read_text())
    assert listed["labels"] == {"0": "background", "1": "liver", "2": "liver"}
    found, merged = classes_found(tmp_path, "maps", f"{data.folder.relative_to(tmp_path)}/datalist.json")
    assert found == {"1": 1.0} and merged == {"1": [1, 2]}

"""Lungs: right and left as classes of their own and leave-one-out on tiny chests; networks of others in a bundle."""

from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY, places, rows, run_bundle, workflow
from monai.utils import set_determinism

from med3d_ext.io.files import read_json
from med3d_ext.run.one_line import input_error_message

BUNDLE = REPOSITORY / "bundles" / "lung_segmentation"
FOLD = {"folds": 4, "fold": 1}
TINY = {"spatial_size": [16, 16, 16], "device": "cpu"}
UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "@num_classes"}
UNET |= {"channels": [4, 8], "strides": [2]}

pytestmark = [pytest.mark.usefixtures("clean_process"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    """Two CTs and two MRs of 20 x 18 x 16 voxels, the patient's right at low indices, as in LPS."""
    root = tmp_path_factory.mktemp("lung") / "chests"
    rng, entries = np.random.default_rng(0), []
    affine = np.diag([-15.0, -15.0, 15.0, 1.0])
    label = np.zeros((20, 18, 16), np.uint8)
    label[3:8, 4:14, 3:12], label[12:17, 4:14, 3:12] = 1, 2
    for number, (modality, body, air) in enumerate([("CT", 40, -850), ("MR", 400, 30)] * 2):
        image = np.where(label > 0, air, body) + rng.normal(0, 30, label.shape)
        files = {key: f"./{key}sTr/{modality.lower()}_{number}.nii.gz" for key in ("image", "label")}
        for key, voxels in (("image", image.astype(np.int16)), ("label", label)):
            (root / f"{key}sTr").mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, affine), root / files[key])
        entries.append({**files, "modality": modality})
    labels = {"0": "background", "1": "right lung", "2": "left lung"}
    content = {"name": "Lung", "modality": {"0": "CT or MR"}, "labels": labels, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def run(chests):
    """Three classes trained on three of four chests, tested on the fourth."""
    root = chests.parent
    folders = {**places(BUNDLE, root), "dataset_dir": str(chests), "device": "cpu"}
    training = run_bundle(BUNDLE, "train", **{**folders, **TINY}, num_classes=3, epochs=6, val_interval=3, **FOLD)
    tested = run_bundle(BUNDLE, "train", "evaluate", **folders)
    set_determinism(None)
    return SimpleNamespace(root=root, folders=folders, training=training, tested=tested)


def test_an_evaluation_takes_fold_classes_and_grid_from_the_weights(run):
    trained, tested = (each.parser.get_parsed_content("data") for each in (run.training, run.tested))
    assert len(trained.training) == 3
    assert [item["image"] for item in tested.test] == [item["image"] for item in trained.test]
    facts = read_json(run.root / "models" / "facts.json")["domains"]["chests"]
    assert facts["options"] == {"seed": 0, "num_classes": 3, **FOLD}
    assert run.tested.parser.get_parsed_content("spatial_size") == [16, 16, 16]
    assert run.tested.network_def.head.out_channels == 3


def test_the_loss_falls_and_the_figures_are_by_modality(run):
    losses = [float(row["loss"]) for row in rows(run.root / "eval" / "history.csv")]
    assert losses[-1] < 0.7 * losses[0]
    summary = read_json(run.root / "eval" / "test" / "summary.json")
    (modality,) = summary["modality"]
    (row,) = rows(run.root / "eval" / "test" / "cases.csv")
    assert row["case"].startswith(modality.lower()) and row["modality"] == modality
    assert 0 <= summary["modality"][modality]["val_mean_dice"]["mean"] <= 1


def test_weights_of_three_classes_segment_without_an_option(run, tmp_path):
    run_bundle(BUNDLE, "inference", **{**run.folders, "output_dir": str(tmp_path)})
    found = [nibabel.load(path) for path in tmp_path.glob("*_seg.nii.gz")]
    assert len(found) == 4
    for each in found:
        assert each.shape == (20, 18, 16) and set(np.unique(np.asarray(each.dataobj))) <= {0, 1, 2}


def test_any_network_trains_from_scratch_and_its_card_names_it(chests, tmp_path):
    options = {**TINY, "dataset_dir": str(chests), "network_def": UNET, **places(BUNDLE, tmp_path)}
    trained = run_bundle(BUNDLE, "train", epochs=1, init="scratch", **options).parser.get_parsed_content("network_def")
    assert type(trained).__name__ == "UNet"
    saved = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert saved.keys() == trained.state_dict().keys()
    assert read_json(tmp_path / "models" / "card.json")["network"] == "UNet"


@pytest.mark.parametrize("change", [{"init": "med3d"}, {"init": "scratch", "heads_first_epochs": 1}])
def test_what_needs_an_encoder_is_refused_for_a_network_without_one(chests, tmp_path, change):
    options = {**places(BUNDLE, tmp_path), "dataset_dir": str(chests), "device": "cpu", "network_def": UNET, **change}
    with pytest.raises(RuntimeError) as error:
        workflow(BUNDLE, "train", **options).run()
    message = input_error_message(error.value) or ""
    assert "UNet, must hold one encoder" in message and "--init scratch" in message and "\n" not in message

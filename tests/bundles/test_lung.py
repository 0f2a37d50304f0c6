"""Lungs: right and left as classes of their own, leave-one-out, and what a labelling server sends, on tiny chests."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY, run_bundle, workflow
from monai.utils import set_determinism

from med3d_ext.run.one_line import input_error_message

BUNDLE = REPOSITORY / "bundles" / "lung_segmentation"
FOLD = {"folds": 4, "fold": 1}

pytestmark = [pytest.mark.usefixtures("clean_process"), pytest.mark.filterwarnings("ignore")]


def write_chests(root):
    """Two CTs and two MRs of 20 x 18 x 16 voxels, the patient's right at low indices, as in LPS."""
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
def run(tmp_path_factory):
    """Three classes trained on three of four chests, tested on the fourth."""
    root = tmp_path_factory.mktemp("lung")
    data = write_chests(root / "chests")
    folders = {"bundle_root": str(BUNDLE), "output_dir": str(root / "eval"), "ckpt_dir": str(root / "models")}
    options = {"spatial_size": [16, 16, 16], "num_classes": 3, "epochs": 6, "val_interval": 3, "device": "cpu", **FOLD}
    training = run_bundle(BUNDLE, "train", dataset_dir=str(data), **options, **folders)
    tested = run_bundle(BUNDLE, "train", "evaluate", dataset_dir=str(data), device="cpu", **folders)
    set_determinism(None)
    return SimpleNamespace(root=root, data=data, folders=folders, training=training, tested=tested)


def data_of(run):
    return run.parser.get_parsed_content("data")


def test_an_evaluation_takes_fold_classes_and_grid_from_the_weights(run):
    trained, tested = data_of(run.training), data_of(run.tested)
    assert len(trained.training) == 3
    assert [item["image"] for item in tested.test] == [item["image"] for item in trained.test]
    facts = json.loads((run.root / "models" / "facts.json").read_text())["domains"]["chests"]
    assert facts["options"] == {"seed": 0, "num_classes": 3, **FOLD}
    assert run.tested.parser.get_parsed_content("spatial_size") == [16, 16, 16]
    assert run.tested.network_def.head.out_channels == 3


def test_the_figures_stand_by_modality(run):
    summary = json.loads((run.root / "eval" / "test" / "summary.json").read_text())
    (modality,) = summary["modality"]
    with open(run.root / "eval" / "test" / "cases.csv", encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"].startswith(modality.lower()) and row["modality"] == modality
    assert 0 <= summary["modality"][modality]["val_mean_dice"]["mean"] <= 1


def test_the_loss_falls(run):
    with open(run.root / "eval" / "history.csv", encoding="utf-8", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.fixture
def inference(run, tmp_path):
    folders = {**run.folders, "output_dir": str(tmp_path)}
    return workflow(BUNDLE, "inference", dataset_dir=str(run.data), device="cpu", **folders)


def test_weights_of_three_classes_segment_without_being_told(run, inference, tmp_path):
    inference.run()
    images = sorted((run.data / "imagesTr").iterdir())
    for path in images:
        found = nibabel.load(tmp_path / path.name.replace(".nii", "_seg.nii"))
        assert found.shape == (20, 18, 16) and set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2}
    assert len(list(tmp_path.glob("*_seg.nii.gz"))) == len(images) == 4


def test_a_labelling_servers_request_gives_a_label_map(run, inference):
    """MONAI Label applies the transforms one by one to an item with the path under two keys, and saves by itself."""
    path = next((run.data / "imagesTr").iterdir())
    item = {"image": str(path), "image_path": str(path), "device": "cpu", "result_extension": ".nii.gz"}
    for transform in inference.preprocessing.transforms:
        item = transform(item)
    network = inference.network_def.eval()
    network.load_state_dict(torch.load(run.root / "models" / "model.pt", weights_only=True), strict=True)
    with torch.inference_mode():
        item["pred"] = inference.inferer(item["image"][None], network)[0]
    for transform in inference.postprocessing.transforms[:-1]:
        item = transform(item)
    assert item["pred"].shape == (1, 20, 18, 16)
    np.testing.assert_allclose(item["pred"].affine.numpy(), nibabel.load(path).affine, atol=1e-4)
    assert item["image"].meta["spatial_shape"].tolist() == [20, 18, 16]
    assert item["image_path"] == str(path)


UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "@num_classes"} | {
    "channels": [4, 8],
    "strides": [2],
}


def test_any_network_trains_from_scratch_and_its_card_names_it(tmp_path):
    data = write_chests(tmp_path / "chests")
    folders = {"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "eval"), "ckpt_dir": str(tmp_path / "models")}
    options = {"spatial_size": [16, 16, 16], "device": "cpu", "dataset_dir": str(data), "network_def": UNET, **folders}
    trained = run_bundle(BUNDLE, "train", epochs=1, init="scratch", **options).parser.get_parsed_content("network_def")
    assert type(trained).__name__ == "UNet"
    saved = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert saved.keys() == trained.state_dict().keys()
    assert json.loads((tmp_path / "models" / "card.json").read_text())["network"] == "UNet"


@pytest.mark.parametrize("change", [{"init": "med3d"}, {"init": "scratch", "heads_first_epochs": 1}])
def test_what_needs_an_encoder_is_refused_for_a_network_without_one(tmp_path, change):
    data = write_chests(tmp_path / "chests")
    folders = {"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "eval"), "ckpt_dir": str(tmp_path / "models")}
    made = workflow(BUNDLE, "train", dataset_dir=str(data), device="cpu", network_def=UNET, **folders, **change)
    with pytest.raises(RuntimeError) as error:
        made.run()
    message = input_error_message(error.value) or ""
    assert "UNet, must hold one encoder" in message and "--init scratch" in message and "\n" not in message

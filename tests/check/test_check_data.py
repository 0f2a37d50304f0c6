"""The data of a run, and what a run needs of the machine."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from types import SimpleNamespace

import nibabel
import numpy as np
import psutil
import pytest
import torch

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.networks import Segmenter
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check import resources
from med3d_ext.tools.check.inputs import check_data, check_domain
from med3d_ext.tools.check.resources import check_resources, training_shape
from med3d_ext.tools.check.verb import check_bundle, gather

GIB = 2**30


@pytest.fixture
def run(configs, liver_folder, tmp_path):
    """The configs of a run on a small liver folder."""
    folder = liver_folder(cases=12)
    return lambda **more: configs(dataset_dir=str(folder), output_dir=str(tmp_path / "eval"), **more)


def texts(findings):
    return [f"{finding.level} {finding.text}" for finding in findings]


def test_without_data_the_phantoms_are_announced(configs):
    (finding,) = check_data(configs())
    assert (finding.level, "phantoms" in finding.text) == ("warning", True)


def test_the_split_is_told_and_prepared_for_the_run(run, tmp_path):
    assert texts(check_data(run())) == ["ok Task03_Liver: 12 cases, 10 training, 1 validation, 1 test"]
    assert (tmp_path / "eval" / "prepared" / "Task03_Liver" / "datalist.json").is_file()


def test_a_data_set_too_small_for_validation_or_test_is_told(configs, liver_folder, tmp_path):
    small = {"dataset_dir": str(liver_folder(cases=1)), "output_dir": str(tmp_path / "eval")}
    assert [line.split()[0] for line in texts(check_data(configs(**small)))] == ["ok", "warning", "warning"]


def test_a_class_that_no_label_holds_is_told(run, tmp_path):
    path = tmp_path / "Task03_Liver" / "dataset.json"
    made = run()
    content = json.loads(path.read_text())
    content["labels"]["3"] = "vessel"
    path.write_text(json.dumps(content))
    assert "no training case holds the class 3 (vessel), no case does" in texts(check_data(made))[-1]


@pytest.mark.parametrize("values", [{"3": 2}, {"1": 1, "3": 1}, {"2": 2}])
def test_classes_are_counted_by_the_values_that_they_become(values):
    cases = [{"label": "x.nii", "split": "training", "labels": {"0": 9, **dict.fromkeys(values, 5)}}]
    facts = {"classes": {"0": "background", "1": "a", "2": "b"}, "label_map": {"0": 0, **values}}
    data = SimpleNamespace(items=lambda split: [{"domain": "x"}], cases={"x": cases}, domains={"x": facts})
    missing = {"1", "2"} - {str(value) for value in values.values()}
    assert sum("no training case holds" in line for line in texts(check_domain(data, "x"))) == len(missing)


def test_a_fault_of_the_data_is_one_line_with_the_files_name(run, tmp_path):
    made = run()
    damaged = tmp_path / "Task03_Liver" / "imagesTr" / "liver_1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (finding,) = gather("data", check_data, made)
    assert (finding.level, str(damaged) in finding.text) == ("error", True)


def test_images_without_labels_are_for_inference(configs, nifti, tmp_path):
    nifti(tmp_path / "new" / "a.nii.gz", np.zeros((4, 4, 4), np.int16))
    nifti(tmp_path / "new" / "b.nii.gz", np.zeros((4, 4, 4), np.int16), pixdim=(0, 1, 1))
    nifti(tmp_path / "new" / "c.nii.gz", np.zeros((4, 4), np.int16))
    found = texts(check_data(configs(dataset_dir=str(tmp_path / "new"))))
    assert [line.split()[0] for line in found] == ["warning", "error", "ok"]
    assert "2 images without labels" in found[2]


def test_images_are_read_as_inference_reads_them(configs, nifti, tmp_path):
    """DICOM is read, and several volumes, damage and a missing orientation are told."""
    voxels = np.random.default_rng(0).integers(-100, 100, (12, 12, 12)).astype(np.int16)
    dicom_files = pytest.importorskip("dicom_files")
    dicom_files.write_series(tmp_path / "new" / "patient" / "ct", voxels)
    dicom_files.write_frames(tmp_path / "new" / "frames" / "a.dcm", voxels, range(12))
    nifti(tmp_path / "new" / "time.nii.gz", np.stack([voxels] * 2, axis=-1))
    content = bytearray(nifti(tmp_path / "new" / "torn.nii.gz", voxels).read_bytes())
    content[-6] ^= 0xFF
    (tmp_path / "new" / "torn.nii.gz").write_bytes(content)
    nibabel.save(nibabel.Nifti1Image(voxels, None), tmp_path / "new" / "bare.nii")
    found = texts(check_data(configs(dataset_dir=str(tmp_path / "new"))))
    words = ("states no orientation", "time.nii.gz' is not a 3D volume", "torn.nii.gz' cannot be read", "3 images")
    assert len(found) == 4 and all(any(word in line for line in found) for word in words), found


def test_a_folder_of_images_to_segment_is_no_error_and_is_measured_for_inference(bundle, nifti, tmp_path):
    nifti(tmp_path / "new" / "p1" / "ct.nii.gz", np.zeros((40, 40, 40), np.int16))
    configs = Bundle(bundle, {"dataset_dir": str(tmp_path / "new"), "device": "cpu"})
    found = check_bundle(configs)
    assert [finding.text for finding in found if finding.level == "error"] == []
    topics = {finding.topic: finding.text for finding in found}
    assert "disk" not in topics and "training" not in topics["GPU"] and "one forward pass" in topics["RAM"]


def test_what_is_wrong_with_the_data_is_said_once_and_read_once(bundle, liver_folder, tmp_path, monkeypatch):
    folder = liver_folder(cases=3)
    damaged = folder / "imagesTr" / "liver_1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    options = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "eval"), "device": "cpu"}
    found = check_bundle(Bundle(bundle, options))
    assert [finding.topic for finding in found if str(damaged) in finding.text] == ["data"]
    assert {"disk", "RAM", "GPU"} <= {finding.topic for finding in found}


def test_a_folder_without_anything_is_the_runs_own_error(configs, tmp_path):
    (tmp_path / "empty").mkdir()
    found = gather("data", check_data, configs(dataset_dir=str(tmp_path / "empty"), output_dir=str(tmp_path / "eval")))
    assert texts(found)[0].startswith(f"error dataset_dir '{tmp_path / 'empty'}' is empty")


def test_test_cases_that_the_weights_have_seen_are_told(run, bundle, tmp_path):
    made = run()
    test_case = PreparedData("lits", made.overrides["dataset_dir"], str(tmp_path / "eval")).test[0]
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    seen = {"image": "x.nii.gz", "domain": "Task03_Liver", "sha256": test_case["sha256"]}
    (bundle / "models" / "card.json").write_text(json.dumps({"cases": {"training": [seen]}}))
    assert "the weights have seen 1 of the test cases" in texts(check_data(made))[-1]


def test_the_input_of_a_step_comes_from_the_options_the_data_or_the_metadata(configs, edit):
    assert training_shape(configs()) == [2, 1, 128, 128, 64]
    assert training_shape(configs(batch_size=3, spatial_size=[32, 32, 16])) == [3, 1, 32, 32, 16]
    edit("train", lambda content: content.update(grids={"a": [8, 8, 8], "b": [16, 16, 16]}))
    assert training_shape(configs()) == [2, 1, 16, 16, 16]
    edit("train", lambda content: content.update(grids="$@data.per_domain('spatial_size')", spatial_size=None))
    assert training_shape(configs()) == [2, 1, 128, 128, 64]


def found_resources(made):
    return {finding.topic: finding for finding in check_resources(made)}


def test_the_needs_of_a_small_run_are_met(run):
    found = found_resources(run(spatial_size=[32, 32, 32], device="cpu"))
    assert [finding.level for finding in found.values()] == ["ok", "ok", "ok"]
    assert list(found) == ["disk", "RAM", "GPU"]
    assert "the largest volume" in found["RAM"].text
    assert "of volumes '" in found["disk"].text


def test_the_weights_on_disk_by_hand(run):
    """Two copies of the state; the training state holds it with the parameters once and Adam's two moments."""
    network = Segmenter("resnet10", 1, 2, 8)
    state = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    parameters = sum(value.numel() * 4 for value in network.parameters())
    total = (3 * state + 3 * parameters) / 1e9
    assert f"weights and training state {total:.1f} GB" in found_resources(run(device="cpu"))["disk"].text


def test_too_little_of_anything_is_an_error_with_a_repair(run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: usage(GIB, GIB, 1000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("memory", "available")(GIB // 4))
    found = found_resources(run(device="cpu"))
    assert found["disk"].level == found["RAM"].level == "error"
    assert found["disk"].text.endswith("give another --output_dir.")
    assert found["RAM"].text.endswith("give a smaller --batch_size or --spatial_size.")


def test_a_folder_that_nobody_may_write_to_is_an_error(run, monkeypatch):
    monkeypatch.setattr(resources.os, "access", lambda *_: False)
    assert "cannot be written to" in found_resources(run(device="cpu"))["disk"].text


def test_a_gpu_that_is_not_there_is_an_error_and_one_that_is_too_small_too(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU" in found_resources(run(device="cuda"))["GPU"].text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB // 8, GIB))
    assert found_resources(run(device="cuda"))["GPU"].level == "error"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (64 * GIB, 64 * GIB))
    assert found_resources(run(device="cuda"))["GPU"].level == "ok"


@pytest.mark.parametrize("names", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_images_with_labels_are_checked_as_a_training_and_images_alone_as_inference(
    configs, liver_folder, tmp_path, names
):
    source = liver_folder(cases=12)
    for before, now in zip(("imagesTr", "labelsTr"), names):
        shutil.copytree(source / before, tmp_path / "x" / now)
    made = {"dataset_dir": str(tmp_path / "x"), "output_dir": str(tmp_path / "eval")}
    assert texts(check_data(configs(**made))) == ["ok x: 12 cases, 10 training, 1 validation, 1 test"]
    shutil.rmtree(tmp_path / "x" / names[1])
    assert "12 images without labels" in texts(check_data(configs(**made)))[-1]

"""The network, its weights, what a training starts from, and the data of a run."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.networks import Segmenter
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.tools.check.inputs import (
    build_network,
    check_data,
    check_domain,
    check_initial_weights,
    check_shapes,
    check_weights,
)
from med3d_ext.tools.check.verb import gather
from med3d_ext.weights.files import fit


def lines(findings) -> list[str]:
    return [f"{finding.level} {finding.text}" for finding in findings]


@pytest.fixture
def weights(bundle):
    """Weights as a training leaves them."""
    folder = bundle / "models"
    folder.mkdir()
    torch.save(Segmenter("resnet10", 1, 2, 8).state_dict(), folder / "model.pt")
    (folder / "facts.json").write_text(json.dumps({"domains": {"Task03_Liver": {}}}))
    (folder / "card.json").write_text("{}")
    return folder / "model.pt"


@pytest.fixture
def run(configs, liver_folder, tmp_path):
    """The configs of a run on a small liver folder: ``run(cases)``."""

    def make(cases: int = 12):
        return configs(dataset_dir=str(liver_folder(cases=cases)), output_dir=str(tmp_path / "eval"))

    return make


def test_the_network_is_compared_with_the_metadata_without_memory(configs):
    assert all(parameter.is_meta for parameter in build_network(configs(network_name="resnet200")).parameters())
    assert lines(check_shapes(configs())) == ["ok 1 channel in, 2 out, 14.4 million parameters"]
    (found,) = lines(check_shapes(configs(**{"network_def::num_classes": 5})))
    assert found.startswith("error") and "output channel number" in found
    (found,) = lines(gather("network", check_shapes, configs(network_name="resnet11")))
    assert found.startswith("error") and "resnet10" in found


def test_weights_are_told_with_their_data_or_with_what_is_wrong(configs, weights):
    (found,) = lines(check_weights(configs()))
    assert found.startswith("ok") and found.endswith("fits the network; trained on Task03_Liver")
    others = lines(check_weights(configs(network_name="resnet18")))
    assert others[0].startswith("error") and "lacks" in others[0] and not any(line.startswith("ok") for line in others)
    weights.with_name("last.pt").write_bytes(b"")
    weights.with_name("card.json").unlink()
    card, server, _ = lines(check_weights(configs()))
    assert card.startswith("warning") and "would serve 'last.pt'" in server
    weights.with_name("facts.json").unlink()
    assert gather("weights", check_weights, configs())[-1].level == "error"
    weights.unlink()
    assert lines(check_weights(configs()))[0].startswith("warning no inference yet")


def test_what_keeps_a_state_from_being_loaded():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert fit({"a": torch.zeros(2).half(), "b": torch.zeros(3)}, expected) == []
    found = fit({"a": torch.tensor([1.0]), "c": torch.tensor([torch.nan])}, expected)
    assert [fault.split()[0] for fault in found] == ["lacks", "holds", "has", "holds"]
    assert "a is (1,), the network's is (2,)" in found[2]


def test_initial_weights_are_found_and_measured(configs, tmp_path):
    assert lines(check_initial_weights(configs())) == ["ok from scratch"]
    path = tmp_path / "encoder.pt"
    torch.save(ResNetEncoder("resnet10").state_dict(), path)
    (found,) = lines(check_initial_weights(configs(init=str(path))))
    assert found.startswith("ok") and "covers 100.0% of the encoder" in found
    torch.save(ResNetEncoder("resnet18").state_dict(), path)
    for init, named in ((str(path), "set network_name to resnet18"), ("/no/file.pt", "no/file"), ("kinetics", "file")):
        (found,) = lines(gather("init", check_initial_weights, configs(init=init)))
        assert found.startswith("error") and named in found


def test_without_data_the_phantoms_are_announced(configs):
    (found,) = lines(check_data(configs()))
    assert found.startswith("warning") and "phantoms" in found


def test_the_split_is_told_and_prepared_for_the_run(run, tmp_path):
    assert lines(check_data(run())) == ["ok Task03_Liver: 12 cases, 10 training, 1 validation, 1 test"]
    assert (tmp_path / "eval" / "prepared" / "Task03_Liver" / "datalist.json").is_file()


def test_a_data_set_too_small_for_validation_or_test_is_told(run):
    assert [line.split()[0] for line in lines(check_data(run(cases=1)))] == ["ok", "warning", "warning"]


@pytest.mark.parametrize("values", [{"3": 2}, {"1": 1, "3": 1}, {"2": 2}])
def test_classes_that_no_label_holds_are_told_by_the_values_that_they_become(values):
    cases = [{"label": "x.nii", "split": "training", "labels": {"0": 9, **dict.fromkeys(values, 5)}}]
    facts = {"classes": {"0": "background", "1": "a", "2": "b"}, "label_map": {"0": 0, **values}}
    data = SimpleNamespace(items=lambda split: [{"domain": "x"}], cases={"x": cases}, domains={"x": facts})
    missing = {"1", "2"} - {str(value) for value in values.values()}
    assert sum("no training case holds" in line for line in lines(check_domain(data, "x"))) == len(missing)


def test_a_fault_of_the_data_is_one_line_with_the_files_name(run, configs, tmp_path):
    made = run(3)
    damaged = tmp_path / "Task03_Liver" / "imagesTr" / "liver_1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (found,) = lines(gather("data", check_data, made))
    assert found.startswith("error") and str(damaged) in found
    (tmp_path / "empty").mkdir()
    empty = configs(dataset_dir=str(tmp_path / "empty"), output_dir=str(tmp_path / "eval"))
    (found,) = lines(gather("data", check_data, empty))
    assert found.startswith(f"error dataset_dir '{tmp_path / 'empty'}' is empty")


def test_images_are_read_as_inference_reads_them(configs, nifti, tmp_path):
    """DICOM is read, and several volumes, damage, a missing spacing and a missing orientation are told."""
    voxels = np.random.default_rng(0).integers(-100, 100, (12, 12, 12)).astype(np.int16)
    dicom_files = pytest.importorskip("dicom_files")
    dicom_files.write_series(tmp_path / "new" / "patient" / "ct", voxels)
    dicom_files.write_frames(tmp_path / "new" / "frames" / "a.dcm", voxels, range(12))
    nifti(tmp_path / "new" / "time.nii.gz", np.stack([voxels] * 2, axis=-1))
    nifti(tmp_path / "new" / "spaceless.nii.gz", voxels, pixdim=(0, 1, 1))
    content = bytearray(nifti(tmp_path / "new" / "torn.nii.gz", voxels).read_bytes())
    content[-6] ^= 0xFF
    (tmp_path / "new" / "torn.nii.gz").write_bytes(content)
    nibabel.save(nibabel.Nifti1Image(voxels, None), tmp_path / "new" / "bare.nii")
    found = lines(check_data(configs(dataset_dir=str(tmp_path / "new"))))
    named = ("states no orientation", "no usable voxel spacing", "time.nii.gz' is not a 3D volume")
    named += ("torn.nii.gz' cannot be read", "4 images without labels")
    assert len(found) == 5 and all(any(word in line for line in found) for word in named), found


def test_test_cases_that_the_weights_have_seen_are_told(run, bundle, tmp_path):
    made = run()
    test_case = PreparedData("lits", made.overrides["dataset_dir"], str(tmp_path / "eval")).test[0]
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    seen = {"image": "x.nii.gz", "domain": "Task03_Liver", "sha256": test_case["sha256"]}
    (bundle / "models" / "card.json").write_text(json.dumps({"cases": {"training": [seen]}}))
    assert "the weights have seen 1 of the test cases" in lines(check_data(made))[-1]


@pytest.mark.parametrize("names", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_images_with_labels_are_checked_as_a_training_and_images_alone_as_inference(
    configs, liver_folder, tmp_path, names
):
    source = liver_folder(cases=12)
    for before, now in zip(("imagesTr", "labelsTr"), names):
        shutil.copytree(source / before, tmp_path / "x" / now)
    made = {"dataset_dir": str(tmp_path / "x"), "output_dir": str(tmp_path / "eval")}
    assert lines(check_data(configs(**made))) == ["ok x: 12 cases, 10 training, 1 validation, 1 test"]
    shutil.rmtree(tmp_path / "x" / names[1])
    assert "12 images without labels" in lines(check_data(configs(**made)))[-1]

"""A user's own bundle: written for a folder of labeled volumes, trained, evaluated, used, shared."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from bundle_files import REPOSITORY, SMALL, run_bundle, workflow

from med3d_ext.errors import InputError
from med3d_ext.tools.check.verb import check
from med3d_ext.tools.new_bundle import new_bundle
from med3d_ext.tools.predict.verb import predict
from med3d_ext.tools.report import report
from med3d_ext.tools.zoo.pack import pack
from med3d_ext.weights.initial import initial_weights_path

sys.path.insert(0, str(REPOSITORY / "tests" / "data"))
from tiny_domains import change_dataset, write_domain  # noqa: E402


@pytest.fixture(scope="module")
def kidneys(tmp_path_factory) -> Path:
    """Six CTs of two classes, one of them without a cyst."""
    folder = write_domain(tmp_path_factory.mktemp("data") / "Kidneys", 6, ("kidney", "cyst"), ("CT",))
    path = folder / "labelsTr" / "case_0.nii.gz"
    label = nibabel.load(path)
    voxels = np.asarray(label.dataobj)
    nibabel.save(nibabel.Nifti1Image(np.where(voxels == 2, 0, voxels).astype(np.uint8), label.affine), path)
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_bundle_of_own_classes_trains_is_evaluated_segments_and_is_shared(tmp_path, kidneys, clean_process):
    said = new_bundle("kidneys", dataset_dir=str(kidneys), output=str(tmp_path))
    bundle = tmp_path / "kidneys"
    assert said.splitlines()[0] == f"'{bundle}': 0 background, 1 kidney, 2 cyst"
    before = files_of(kidneys)
    options = {**SMALL, "dataset_dir": str(kidneys), "bundle_root": str(bundle)}
    run_bundle(bundle, "train", **options, epochs=2)
    run_bundle(bundle, "train", "evaluate", **options)
    summary = json.loads((bundle / "eval" / "test" / "summary.json").read_text())
    assert summary["n"] == 1 and list(summary["domains"]) == ["Kidneys"]
    weights = json.loads((bundle / "eval" / "initial_weights.json").read_text())
    assert weights["share"] == 1.0  # the released encoder, by default
    page = Path(report(str(bundle))).read_text()
    assert "<td>Kidneys</td><td>val_mean_dice</td><td>1</td>" in page and page.count("<img") >= 3
    image = kidneys / "imagesTr" / "case_1.nii.gz"
    predict(str(bundle), str(image), output=str(tmp_path / "found"), device="cpu")
    found = nibabel.load(tmp_path / "found" / "case_1_seg.nii.gz")
    assert found.shape == nibabel.load(image).shape and np.array_equal(found.affine, nibabel.load(image).affine)
    assert "1=kidney" in found.header["descrip"].item().decode() or "kidney" in str(found.header.extensions[0])
    assert "kidneys_v0.1.0.zip" in pack(str(bundle), str(tmp_path / "zoo"))
    assert files_of(kidneys) == before


def test_a_fresh_bundle_has_nothing_to_complain_of(tmp_path, kidneys, clean_process):
    new_bundle("kidneys", dataset_dir=str(kidneys), output=str(tmp_path))
    assert " 0 errors" in f" {check(str(tmp_path / 'kidneys'), dataset_dir=str(kidneys), **SMALL)}"


def test_its_metadata_and_texts_name_the_users_classes_and_no_path(tmp_path, kidneys):
    new_bundle("kidneys", dataset_dir=str(kidneys), output=str(tmp_path))
    bundle = tmp_path / "kidneys"
    formats = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "kidney", "2": "cyst"}
    assert formats["outputs"]["pred"]["num_channels"] == 3 and formats["inputs"]["image"]["modality"] == "CT"
    texts = {path: path.read_text() for path in bundle.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if str(tmp_path) in text or str(kidneys.parent) in text]
    own = "\n".join(text for path, text in texts.items() if path.name != "LICENSE")
    assert "lung" not in own.replace("LungDecoder", "").lower()
    assert "Segments kidney, cyst in CT" in texts[bundle / "docs" / "README.md"]


def test_the_released_encoder_is_found_from_anywhere(tmp_path):
    released = REPOSITORY / "bundles" / "pretrain_3dseg8" / "weights" / "model.pt"
    assert initial_weights_path("med3d", tmp_path / "somewhere" / "kidneys") == released


def test_decathlon_tasks_that_are_not_in_3dseg8_are_data_like_any_other(tmp_path):
    folder = write_domain(tmp_path / "Task10_Colon", 3, ("colon cancer",), ("CT",))
    assert "1 colon cancer" in new_bundle("colon", dataset_dir=str(folder), output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("name", "a bundle's name must be letters, digits and _ without '_v', got 'my-kidneys'; rename it."),
        ("exists", "exists; choose another name, or remove it."),
        ("missing", "is not a folder; give the folder that holds"),
        ("several", r"holds several data sets \(A, B\); give one."),
        ("one class", "names one class; name the background and what to segment."),
        ("channels", r"has 2 channels \(0: T1, 1: T2\) and none is chosen; name the channel by --channel"),
    ],
)
def test_what_cannot_be_a_bundle_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, fault, message):
    data, name = write_domain(tmp_path / "data" / "A"), "my-kidneys" if fault == "name" else "kidneys"
    if fault == "exists":
        (tmp_path / "out" / "kidneys").mkdir(parents=True)
    elif fault == "missing":
        data = tmp_path / "nowhere"
    elif fault == "several":
        write_domain(tmp_path / "data" / "B", seed=1)
        data = tmp_path / "data"
    elif fault == "one class":
        change_dataset(data, labels={"0": "background"})
    elif fault == "channels":
        data = write_domain(tmp_path / "data" / "C", channels=("T1", "T2"))
    (tmp_path / "out").mkdir(exist_ok=True)
    before = files_of(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        new_bundle(name, dataset_dir=str(data), output=str(tmp_path / "out"))
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("layout", ["nnU-Net", "images and labels"])
def test_every_layout_with_one_chosen_channel_becomes_a_bundle_that_takes_it(tmp_path, layout, clean_process):
    folder = write_domain(tmp_path / "source", 12, ("kidney",), ("T1", "T2"))
    root, labels = tmp_path / "Dataset100_Kidney", "labelsTr" if layout == "nnU-Net" else "labels"
    (root / labels).mkdir(parents=True)
    (root / labels.replace("labels", "images")).mkdir()
    for path in (folder / "imagesTr").iterdir():
        image = nibabel.load(path)
        for number in range(2):
            channel = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., number], image.affine)
            name = path.name.replace(".nii.gz", f"_{number:04d}.nii.gz")
            nibabel.save(channel, root / labels.replace("labels", "images") / name)
        (root / labels / path.name).write_bytes((folder / "labelsTr" / path.name).read_bytes())
    chosen = "1"
    if layout == "nnU-Net":
        stated = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "kidney": 1}}
        (root / "dataset.json").write_text(json.dumps({**stated, "file_ending": ".nii.gz", "numTraining": 12}))
        chosen = "t2"
    with pytest.raises(InputError, match="0: .*1: .*--channel"):
        new_bundle("kidney", dataset_dir=str(root), output=str(tmp_path))
    new_bundle("kidney", dataset_dir=str(root), output=str(tmp_path), channel=chosen)
    bundle = tmp_path / "kidney"
    data = workflow(bundle, "train", dataset_dir=str(root), bundle_root=str(bundle)).parser.get_parsed_content("data")
    assert len(data.training) == 10
    assert {Path(item["image"]).name[-8:] for item in data.training + data.test} == {"1.nii.gz"}

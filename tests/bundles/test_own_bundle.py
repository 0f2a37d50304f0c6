"""A user's own bundle: planned for a folder of labeled volumes, trained in one or two stages, resumed, used, shared."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY, SMALL, config_files, merged, places, rows, run_bundle, workflow
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow

from med3d_ext.errors import InputError
from med3d_ext.handlers.checkpoint import ResumableCheckpoint
from med3d_ext.io.files import read_json
from med3d_ext.run.one_line import user_message
from med3d_ext.tools.check.verb import check
from med3d_ext.tools.experiments import CrossValidation, engine
from med3d_ext.tools.experiments.folds import join_models
from med3d_ext.tools.new_bundle import new_bundle, own_data
from med3d_ext.tools.new_bundle import plan as planning
from med3d_ext.tools.new_bundle.plan import grid_for, plan_bundle
from med3d_ext.tools.predict.verb import predict
from med3d_ext.tools.report import report
from med3d_ext.tools.zoo.pack import pack
from med3d_ext.transforms.load import load_volume
from med3d_ext.weights.initial import initial_weights_path, load_network

sys.path.insert(0, str(REPOSITORY / "tests" / "data"))
from tiny_domains import change_dataset, write_domain  # noqa: E402

TINY = {"spatial_size": [24, 24, 24], "coarse::spatial_size": [24, 24, 24], "device": "cpu", "init": "scratch"}
LENGTH = {"epochs": 2, "coarse::epochs": 2, "val_interval": 1, "margin_mm": 15.0}


@pytest.fixture(scope="module")
def kidneys(tmp_path_factory) -> Path:
    """Six CTs of two classes, one of them without a cyst."""
    folder = write_domain(tmp_path_factory.mktemp("data") / "Kidneys", 6, ("kidney", "cyst"), ("CT",))
    path = folder / "labelsTr" / "case_0.nii.gz"
    label = nibabel.load(path)
    voxels = np.asarray(label.dataobj)
    nibabel.save(nibabel.Nifti1Image(np.where(voxels == 2, 0, voxels).astype(np.uint8), label.affine), path)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, kidneys) -> Path:
    """In two stages."""
    folder = tmp_path_factory.mktemp("bundles")
    new_bundle("kidneys", dataset_dir=str(kidneys), output=str(folder), stages=2)
    return folder / "kidneys"


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_bundle_of_own_classes_trains_is_evaluated_segments_and_is_shared(tmp_path, kidneys, clean_process):
    said = new_bundle("kidneys", dataset_dir=str(kidneys), output=str(tmp_path))
    bundle = tmp_path / "kidneys"
    assert said.splitlines()[0] == f"'{bundle}': 0 background, 1 kidney, 2 cyst"
    assert " 0 errors" in f" {check(str(bundle), dataset_dir=str(kidneys), **SMALL)}"
    before = files_of(kidneys)
    options = {**SMALL, "dataset_dir": str(kidneys), "bundle_root": str(bundle)}
    run_bundle(bundle, "train", **options, epochs=2)
    run_bundle(bundle, "train", "evaluate", **options)
    summary = read_json(bundle / "eval" / "test" / "summary.json")
    assert summary["n"] == 1 and list(summary["domains"]) == ["Kidneys"]
    assert read_json(bundle / "eval" / "initial_weights.json")["share"] == 1.0  # the released encoder, by default
    page = Path(report(str(bundle))).read_text()
    assert "<td>Kidneys</td><td>val_mean_dice</td><td>1</td>" in page and page.count("<img") >= 3
    image = kidneys / "imagesTr" / "case_1.nii.gz"
    predict(str(bundle), str(image), output=str(tmp_path / "found"), device="cpu")
    found = nibabel.load(tmp_path / "found" / "case_1_seg.nii.gz")
    assert found.shape == nibabel.load(image).shape and np.array_equal(found.affine, nibabel.load(image).affine)
    assert "1=kidney" in found.header["descrip"].item().decode() or "kidney" in str(found.header.extensions[0])
    assert "kidneys_v0.1.0.zip" in pack(str(bundle), str(tmp_path / "zoo"))
    assert files_of(kidneys) == before


def test_its_metadata_and_texts_name_the_users_classes_and_no_path(tmp_path, kidneys):
    new_bundle("kidneys", dataset_dir=str(kidneys), output=str(tmp_path))
    bundle = tmp_path / "kidneys"
    formats = read_json(bundle / "configs" / "metadata.json")["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "kidney", "2": "cyst"}
    assert formats["outputs"]["pred"]["num_channels"] == 3 and formats["inputs"]["image"]["modality"] == "CT"
    texts = {path: path.read_text() for path in bundle.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if str(tmp_path) in text or str(kidneys.parent) in text]
    own = "\n".join(text for path, text in texts.items() if path.name != "LICENSE").lower()
    assert "lung" not in own.replace("lungdecoder", "") and 'phantoms": {' not in own
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
        ("my-kidneys", "a bundle's name must be letters, digits and _ without '_v', got 'my-kidneys'; rename it."),
        ("taken", "exists; choose another name, or remove it."),
        ("missing", "is not a folder; give the folder that holds"),
        ("several", r"holds several data sets \(A, B\); give one."),
        ("one_class", "names one class; name the background and what to segment."),
        ("channels", r"has 2 channels \(0: T1, 1: T2\) and none is chosen; name the channel by --channel"),
        ({"stages": 3}, "--stages must be"),
        ({"minutes": 0}, "--minutes must be"),
        ({"minutes": "soon"}, "--minutes must be"),
    ],
)
def test_what_cannot_be_a_bundle_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, fault, message):
    out, options = tmp_path / "out", fault if isinstance(fault, dict) else {}
    name = "kidneys" if options else fault
    folder = write_domain(tmp_path / "data" / "A", channels=("T1", "T2") if fault == "channels" else ("MRI",))
    (out / "taken").mkdir(parents=True)
    if fault == "several":
        write_domain(tmp_path / "data" / "B", seed=1)
    elif fault == "one_class":
        change_dataset(folder, labels={"0": "background"})
    data = {"missing": tmp_path / "nowhere", "several": folder.parent}.get(name, folder)
    with pytest.raises(InputError, match=message):
        new_bundle(name, dataset_dir=str(data), output=str(out), **options)
    assert files_of(out) == ["taken"]


def split_channels(folder: Path, images: Path) -> None:
    """Each image of several channels as a file for each."""
    images.mkdir(parents=True)
    for path in folder.iterdir():
        image = nibabel.load(path)
        for number in range(image.shape[3]):
            channel = nibabel.Nifti1Image(np.asarray(image.dataobj)[..., number], image.affine)
            nibabel.save(channel, images / path.name.replace(".nii.gz", f"_{number:04d}.nii.gz"))


@pytest.mark.parametrize("layout", ["nnU-Net", "images and labels"])
def test_every_layout_with_one_chosen_channel_becomes_a_bundle_that_takes_it(tmp_path, layout, clean_process):
    folder = write_domain(tmp_path / "source", 12, ("kidney",), ("T1", "T2"))
    root, labels = tmp_path / "Dataset100_Kidney", "labelsTr" if layout == "nnU-Net" else "labels"
    images = root / labels.replace("labels", "images")
    split_channels(folder / "imagesTr", images)
    (folder / "labelsTr").rename(root / labels)
    if layout == "nnU-Net":
        stated = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "kidney": 1}}
        (root / "dataset.json").write_text(json.dumps({**stated, "file_ending": ".nii.gz", "numTraining": 12}))
    with pytest.raises(InputError, match="0: .*1: .*--channel"):
        new_bundle("kidney", dataset_dir=str(root), output=str(tmp_path))
    new_bundle("kidney", dataset_dir=str(root), output=str(tmp_path), channel="t2" if layout == "nnU-Net" else "1")
    bundle = tmp_path / "kidney"
    data = workflow(bundle, "train", dataset_dir=str(root), bundle_root=str(bundle)).parser.get_parsed_content("data")
    assert len(data.training) == 10
    assert {Path(item["image"]).name[-8:] for item in data.training + data.test} == {"1.nii.gz"}


def test_all_channels_train_one_network_whether_they_are_in_one_file_or_in_several(tmp_path, clean_process):
    whole, split = write_domain(tmp_path / "Kidney", 4, ("kidney",), ("T1", "T2")), tmp_path / "split"
    split_channels(whole / "imagesTr", split / "images")
    shutil.copytree(whole / "labelsTr", split / "labels")
    bundle = tmp_path / "out" / "kidneys"
    new_bundle("kidneys", dataset_dir=str(split), output=str(bundle.parent), channel="all", stages=1)
    image = read_json(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == 2
    for data in (whole, split):
        options = {**SMALL, **places(bundle, tmp_path / "run" / data.name), "dataset_dir": str(data)}
        run_bundle(bundle, "train", **options, epochs=1)
        run_bundle(bundle, "train", "evaluate", **options)
        state = torch.load(tmp_path / "run" / data.name / "models" / "model.pt", weights_only=True)
        assert state["encoder.conv1.weight"].shape[1] == 2
    joined = tmp_path / "run" / "split" / "eval" / "prepared" / "split" / "images"
    maps = []
    for images in (whole / "imagesTr", split / "images"):
        found = tmp_path / "found" / images.name
        predict(
            str(bundle),
            str(images),
            output=str(found),
            device="cpu",
            ckpt_dir=str(tmp_path / "run" / "split" / "models"),
        )
        maps.append([nibabel.load(found / f"case_{number}_seg.nii.gz") for number in range(4)])
    for number, (first, second) in enumerate(zip(*maps)):
        voxels = [
            np.asarray(nibabel.load(folder / f"case_{number}.nii.gz").dataobj)
            for folder in (joined, whole / "imagesTr")
        ]
        assert np.array_equal(*voxels) and np.array_equal(first.affine, second.affine)
        assert np.array_equal(first.dataobj, second.dataobj)
    assert read_json(found / "case_1_seg.json")["image"].endswith("case_1_0000.nii.gz")
    assert not (found / ".channels").exists()
    (split / "images" / "case_2_0001.nii.gz").unlink()
    options = {"device": "cpu", "ckpt_dir": str(tmp_path / "run" / "split" / "models")}
    shutil.copyfile(
        whole / "imagesTr" / "case_0.nii.gz", split / "images" / "again_0001.nii.gz"
    )  # whole, though numbered
    with pytest.raises(SystemExit):  # the others have their results
        predict(str(bundle), str(split / "images"), output=str(tmp_path / "last"), **options)
    assert "'case_2' has the channels 0000, and the network takes 2" in (tmp_path / "last" / "summary.json").read_text()
    done = sorted(path.name[:6] for path in (tmp_path / "last").glob("*_seg.nii.gz"))
    assert done == ["again_", "case_0", "case_1", "case_3"]
    with pytest.raises(InputError, match="has one channel, and the network takes several"):
        load_volume(split / "images" / "case_2_0000.nii.gz", "all")


@pytest.fixture(scope="module")
def trained(bundle, kidneys, tmp_path_factory) -> Path:
    """Weights and records of an uninterrupted training of both stages."""
    run = tmp_path_factory.mktemp("whole")
    train(bundle, kidneys, run)
    return run


def train(bundle: Path, data: Path, run: Path, **options) -> None:
    given = {**TINY, **LENGTH, **places(bundle, run), "dataset_dir": str(data), **options}
    run_bundle(bundle, "train", **given)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "models" / "model.pt", weights_only=True)


def test_one_command_trains_both_stages_and_the_file_holds_both(trained):
    state, coarse = weights(trained), torch.load(trained / "models" / "coarse" / "model.pt", weights_only=True)
    assert coarse and all(torch.equal(state[f"coarse.{name}"], tensor) for name, tensor in coarse.items())
    assert any(name.startswith("fine.skips.") for name in state)
    cases = read_json(trained / "models" / "card.json")["cases"]
    assert len(cases["coarse_training"]) == len(cases["training"]) > 0


@pytest.mark.parametrize(("stage", "epoch"), [("coarse", 1), ("coarse", 2), ("fine", 1)])
def test_a_training_killed_in_or_between_its_stages_ends_as_if_nothing_had_happened(
    bundle, kidneys, trained, tmp_path, monkeypatch, clean_process, stage, epoch
):
    save = ResumableCheckpoint.save

    def dying(self, engine):
        save(self, engine)
        if (self.folder.name == "coarse") == (stage == "coarse") and engine.state.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ResumableCheckpoint, "save", dying)
        train(bundle, kidneys, tmp_path)
    train(bundle, kidneys, tmp_path)
    expected, found = weights(trained), weights(tmp_path)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_first_stage_is_not_trained_again(bundle, kidneys, trained, tmp_path, clean_process):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "eval" / "coarse" / "run.json"
    record = path.read_bytes()
    train(bundle, kidneys, tmp_path, epochs=3)
    assert path.read_bytes() == record
    train(bundle, kidneys, tmp_path, epochs=3, resume=False)
    assert path.read_bytes() != record


def test_evaluation_and_inference_run_the_cascade_on_the_own_grid(bundle, kidneys, trained, tmp_path, clean_process):
    options = {"ckpt_dir": str(trained / "models"), "device": "cpu", "dataset_dir": str(kidneys)}
    evaluated = run_bundle(bundle, "train", "evaluate", **options, output_dir=str(tmp_path / "eval"))
    figures = read_json(tmp_path / "eval" / "test" / "summary.json")["domains"]["Kidneys"]
    assert set(figures) >= {"val_mean_dice", "val_roi_recall", "val_roi_share"}
    found = run_bundle(bundle, "inference", **options, output_dir=str(tmp_path / "found"))
    for inferer in (
        evaluated.parser.get_parsed_content("validate::inferer"),
        found.parser.get_parsed_content("inferer"),
    ):
        assert (inferer.smallest_part, inferer.margin_mm) == (0.1, 15.0)  # a kidney is one of two; as in the training
    assert len(list((tmp_path / "found").glob("*_seg.nii.gz"))) == 6


def test_a_labelling_server_trains_the_fine_stage_of_the_weights_it_serves(
    bundle, kidneys, trained, tmp_path, monkeypatch, clean_process
):
    """It sends items and leaves ``dataset_dir`` at its default."""
    served = tmp_path / "kidneys"
    shutil.copytree(bundle, served)
    shutil.copytree(trained / "models", served / "models", ignore=shutil.ignore_patterns("coarse", "training_state.pt"))
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path))
    pairs = zip(sorted((kidneys / "imagesTr").iterdir()), sorted((kidneys / "labelsTr").iterdir()))
    items = [{"image": str(image), "label": str(label)} for image, label in pairs][:3]
    data = {"train::dataset::data": items, "validate::dataset::data": items[:1], "train::trainer::max_epochs": 1}
    run_bundle(served, "train", **data, **TINY, bundle_root=str(served))
    before, after = weights(trained), weights(served)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("coarse."))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("fine."))
    assert not (served / "models" / "coarse").exists()


def test_a_finished_model_is_where_a_training_with_new_cases_starts(bundle, kidneys, trained, tmp_path, clean_process):
    """Both stages with their heads: at a learning rate of nothing every parameter stays."""
    start = {"init": str(trained / "models" / "model.pt"), "init_head": True, "learning_rate": 1e-12}
    train(bundle, kidneys, tmp_path, **start, epochs=1, **{"coarse::epochs": 1})
    before, after = weights(trained), weights(tmp_path)
    learned = [name for name in before if name.endswith(("weight", "bias"))]
    assert any(name.startswith("coarse.head") for name in learned) and any("fine.head" in name for name in learned)
    for name in learned:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_every_reference_of_the_first_stage_is_in_its_section_or_shared(bundle):
    text = json.dumps(merged(bundle, "train")["coarse"])
    assert text.count("@train::dataset::data") == text.count("@validate::dataset::data") == 1  # what a server exchanges
    own = text.replace("@train::dataset::data", "").replace("@validate::dataset::data", "")
    for name in ("optimizer", "loss", "lr_scheduler", "initial_weights", "validate", "epochs", "spatial_size"):
        assert f"@{name}" not in own, name
    # What is decoded once serves both.
    assert set(own.split("@train::")[1:]) and "@train::preprocessing_transforms" in own
    assert "@train::trainer" not in text and "@train::crop" not in text and "@coarse::train::crop" in text


@pytest.mark.parametrize(("width", "stages"), [(5, 2), (40, 1)])
def test_an_organ_that_fills_little_of_a_scan_gets_two_stages(tmp_path, width, stages):
    """A cube of 20 or 160 mm in 256 mm: with 20 mm around it 1 % or 48 % of the scan."""
    folder = write_domain(tmp_path / "Cube", 3, ("organ",), ("CT",))
    for path in folder.glob("*Tr/*.nii.gz"):
        voxels = np.zeros((64, 64, 64), np.uint8)
        voxels[10 : 10 + width, 10 : 10 + width, 10 : 10 + width] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4, 4, 4, 1])), path)
    found = own_data(str(folder))
    assert plan_bundle(found, 2).stages == stages
    other = plan_bundle(found, 2, 3 - stages)
    assert other.stages == 3 - stages and "(as asked)" in other.reason


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(10, 600), min_size=3, max_size=3),
    st.lists(st.floats(0.3, 12), min_size=3, max_size=3),
    st.integers(32**3, 128**3),
)
def test_a_grid_keeps_to_its_voxels_to_the_stride_and_to_half_the_spacing(extent, spacing, voxels):
    extent, spacing = np.array(extent), np.array(spacing)
    grid = np.array(grid_for(extent, spacing, voxels))
    assert np.prod(grid) <= voxels and (grid % 8 == 0).all()
    finest = extent / np.maximum(grid - 8, 1)  # one step of the stride less would be too coarse
    assert ((grid == 16) | (finest >= spacing / 2 - 1e-6)).all()


def test_more_minutes_are_more_epochs_and_too_few_are_refused(kidneys, monkeypatch):
    monkeypatch.setattr(planning, "step_seconds", lambda *_: 0.5)
    found = own_data(str(kidneys))
    short, long = (plan_bundle(found, 3, 2, minutes) for minutes in (10, 20))
    assert 1.7 < long.epochs / short.epochs < 2.4 and short.coarse_epochs < long.coarse_epochs
    assert "in 10 minutes" in short.reason
    with pytest.raises(InputError, match="0.5 minutes are too few for one epoch"):
        plan_bundle(found, 3, 2, 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("coarse::epochs", 0), ("coarse::val_interval", -1), ("coarse::spatial_size", [24, 0, 24]), ("warmup_epochs", -2)],
)
def test_an_option_of_either_stage_that_no_run_can_use_is_refused_before_anything_is_written(
    bundle, kidneys, tmp_path, clean_process, option, value
):
    with pytest.raises(RuntimeError) as error:  # MONAI's, around ours
        train(bundle, kidneys, tmp_path, **{option: value})
    assert str(user_message(error.value)).startswith(f"{option} must be")
    assert not list(tmp_path.iterdir())


def run_here(arguments: dict, log: Path, descriptors: tuple = ()) -> int:
    """In place of a process of its own, which imports all anew."""
    options = dict(arguments)
    made = ConfigWorkflow(options.pop("config_file"), logging_file=False, workflow_type="train", **options)
    made.initialize()
    made.run()
    made.finalize()
    return 0


def test_one_command_cross_validates_and_leaves_the_mean_of_its_models(kidneys, tmp_path, monkeypatch, clean_process):
    new_bundle("kidneys", dataset_dir=str(kidneys), output=str(tmp_path), stages=1)
    bundle = tmp_path / "kidneys"
    small = {"spatial_size": [24, 24, 24], "device": "cpu", "init": "scratch", "epochs": 1}
    given = {**small, **places(bundle, tmp_path), "dataset_dir": str(kidneys)}
    arguments = (given["output_dir"], given["ckpt_dir"], str(bundle), config_files(bundle, "train", "folds"), given)
    monkeypatch.setattr(engine, "run_bundle", run_here)
    record = CrossValidation(2, *arguments).run()
    names = sorted(path.name for path in (kidneys / "imagesTr").iterdir())
    assert sorted(row["case"] for row in rows(tmp_path / "eval" / "folds.csv")) == names
    assert record["n"] == record["val_mean_dice"]["n"] == len(names) and record["seen_by_initial_weights"] == []
    folds = [tmp_path / "eval" / "folds" / f"fold{fold}" / "models" for fold in range(2)]
    seen = [{case["sha256"] for case in read_json(fold / "card.json")["cases"]["training"]} for fold in folds]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == len(names)
    assert len(read_json(tmp_path / "models" / "card.json")["cases"]["training"]) == len(names)

    def logits(folder: Path) -> torch.Tensor:
        options = {"bundle_root": str(bundle), "ckpt_dir": str(folder), "dataset_dir": str(kidneys), "device": "cpu"}
        network = workflow(bundle, "inference", **options).parser.get_parsed_content("network").eval()
        network.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        with torch.no_grad():
            return network(torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0)))

    torch.testing.assert_close(logits(tmp_path / "models"), sum(map(logits, folds)) / 2)
    monkeypatch.setattr(engine, "run_bundle", None)
    assert CrossValidation(2, *arguments).run() == record  # nothing is trained again
    image, found = kidneys / "imagesTr" / "case_1.nii.gz", tmp_path / "found"
    predict(str(bundle), str(image), output=str(found), device="cpu", ckpt_dir=str(tmp_path / "models"))
    assert (found / "case_1_seg.nii.gz").is_file()
    with pytest.raises(InputError, match="is the mean of several networks; give --init the model.pt of one of its"):
        load_network(torch.nn.Identity(), tmp_path / "models" / "model.pt")


def test_of_cascades_each_stage_is_the_mean_of_its_networks(bundle, kidneys, trained, tmp_path):
    for fold, factor in enumerate((1.0, 2.0)):
        shutil.copytree(trained / "models", tmp_path / str(fold))
        state = {
            name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in weights(trained).items()
        }
        torch.save(state, tmp_path / str(fold) / "model.pt")
    join_models([tmp_path / "0" / "model.pt", tmp_path / "1" / "model.pt"], tmp_path / "mean")
    x = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    found = []
    for name in ("mean", "0", "1"):
        options = {
            "bundle_root": str(bundle),
            "ckpt_dir": str(tmp_path / name),
            "dataset_dir": str(kidneys),
            "device": "cpu",
        }
        network = workflow(bundle, "inference", **options).parser.get_parsed_content("network").eval()
        network.load_state_dict(torch.load(tmp_path / name / "model.pt", weights_only=True))
        with torch.no_grad():
            found.append((network.coarse(x), network.fine(x)))
    for mean, first, second in zip(*found):
        torch.testing.assert_close(mean, (first + second) / 2)


def test_a_cross_validation_that_cannot_be_is_refused(bundle, kidneys, tmp_path):
    places_ = (str(tmp_path / "eval"), str(tmp_path / "models"), str(bundle), config_files(bundle, "train", "folds"))
    with pytest.raises(InputError, match="leave --fold out"):
        CrossValidation(2, *places_, {"dataset_dir": str(kidneys), "fold": 1})
    with pytest.raises(InputError, match="folds of a cross-validation must be|folds must be"):
        CrossValidation(None, *places_, {"dataset_dir": str(kidneys)})

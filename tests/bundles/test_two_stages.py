"""A bundle of two stages for any organ: planned, trained in one command, resumed between and inside its stages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import REPOSITORY, merged, run_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from med3d_ext.errors import InputError
from med3d_ext.handlers.checkpoint import ResumableCheckpoint
from med3d_ext.run.one_line import user_message
from med3d_ext.tools.new_bundle.plan import grid_for, plan
from med3d_ext.tools.new_bundle.verb import _one_domain, new_bundle

sys.path.insert(0, str(REPOSITORY / "tests" / "data"))
from tiny_domains import write_domain  # noqa: E402

SMALL = {"spatial_size": [24, 24, 24], "coarse::spatial_size": [24, 24, 24], "device": "cpu", "init": "scratch"}
LENGTH = {"epochs": 2, "coarse::epochs": 2, "val_interval": 1}


@pytest.fixture(scope="module")
def organs(tmp_path_factory) -> Path:
    """Six CTs of two classes."""
    return write_domain(tmp_path_factory.mktemp("data") / "Organs", 6, ("kidney", "cyst"), ("CT",))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, organs) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    new_bundle("organs", dataset_dir=str(organs), output=str(folder), stages=2)
    return folder / "organs"


@pytest.fixture(scope="module")
def trained(bundle, organs, tmp_path_factory) -> Path:
    """Weights and records of an uninterrupted training of both stages."""
    run = tmp_path_factory.mktemp("whole")
    train(bundle, organs, run)
    return run


def train(bundle: Path, data: Path, run: Path, **options) -> None:
    places = {"ckpt_dir": str(run / "models"), "output_dir": str(run / "eval")}
    run_bundle(bundle, "train", **{**SMALL, **LENGTH, **places, "dataset_dir": str(data), **options})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "models" / "model.pt", weights_only=True)


def stop_after(monkeypatch, stage: str, epoch: int) -> None:
    """Let a training die after it saved an epoch of a stage."""
    save = ResumableCheckpoint.save

    def dying(self, engine):
        save(self, engine)
        if (self.folder.name == "coarse") == (stage == "coarse") and engine.state.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableCheckpoint, "save", dying)


def test_one_command_trains_both_stages_and_the_file_holds_both(trained):
    state, coarse = weights(trained), torch.load(trained / "models" / "coarse" / "model.pt", weights_only=True)
    assert coarse and all(torch.equal(state[f"coarse.{name}"], tensor) for name, tensor in coarse.items())
    assert any(name.startswith("fine.skips.") for name in state)
    card = json.loads((trained / "models" / "card.json").read_text())
    assert len(card["cases"]["coarse_training"]) == len(card["cases"]["training"]) > 0


@pytest.mark.parametrize(("stage", "epoch"), [("coarse", 1), ("coarse", 2), ("fine", 1)])
def test_a_training_killed_in_or_between_its_stages_ends_as_if_nothing_had_happened(
    bundle, organs, trained, tmp_path, monkeypatch, clean_process, stage, epoch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, stage, epoch)
        train(bundle, organs, tmp_path)
    train(bundle, organs, tmp_path)
    expected, found = weights(trained), weights(tmp_path)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_first_stage_is_not_trained_again(bundle, organs, tmp_path, monkeypatch, clean_process):
    train(bundle, organs, tmp_path)
    record = (tmp_path / "eval" / "coarse" / "run.json").read_bytes()
    train(bundle, organs, tmp_path, epochs=3)
    assert (tmp_path / "eval" / "coarse" / "run.json").read_bytes() == record
    train(bundle, organs, tmp_path, epochs=3, resume=False)
    assert (tmp_path / "eval" / "coarse" / "run.json").read_bytes() != record


def test_evaluation_and_inference_run_the_cascade_on_the_own_grid(bundle, organs, trained, tmp_path, clean_process):
    places = {"ckpt_dir": str(trained / "models"), "device": "cpu", "dataset_dir": str(organs)}
    run_bundle(bundle, "train", "evaluate", **places, output_dir=str(tmp_path / "eval"))
    summary = json.loads((tmp_path / "eval" / "test" / "summary.json").read_text())
    figures = summary["domains"]["Organs"]
    assert set(figures) >= {"val_mean_dice", "val_roi_recall", "val_roi_share"}
    found = run_bundle(bundle, "inference", **places, output_dir=str(tmp_path / "found"))
    assert found.parser.get_parsed_content("inferer").smallest_part == 0.1  # a kidney is one of two
    assert len(list((tmp_path / "found").glob("*_seg.nii.gz"))) == 6


def test_a_labelling_server_trains_the_fine_stage_of_the_weights_it_serves(
    bundle, organs, trained, tmp_path, monkeypatch, clean_process
):
    """It sends items and leaves ``dataset_dir`` at its default."""
    served = tmp_path / "organs"
    shutil.copytree(bundle, served)
    shutil.copytree(trained / "models", served / "models", ignore=shutil.ignore_patterns("coarse", "training_state.pt"))
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path))
    pairs = zip(sorted((organs / "imagesTr").iterdir()), sorted((organs / "labelsTr").iterdir()))
    items = [{"image": str(image), "label": str(label)} for image, label in pairs][:3]
    data = {"train::dataset::data": items, "validate::dataset::data": items[:1], "train::trainer::max_epochs": 1}
    run_bundle(served, "train", **data, **SMALL, bundle_root=str(served))
    before, after = weights(trained), weights(served.parent / "organs")
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("coarse."))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("fine."))
    assert not (served / "models" / "coarse").exists()


def test_a_finished_model_is_where_a_training_with_new_cases_starts(bundle, organs, trained, tmp_path, clean_process):
    """Both stages with their heads: at a learning rate of nothing every parameter stays."""
    start = {"init": str(trained / "models" / "model.pt"), "init_head": True, "learning_rate": 1e-12}
    train(bundle, organs, tmp_path, **start, epochs=1, **{"coarse::epochs": 1})
    before, after = weights(trained), weights(tmp_path)
    learned = [name for name in before if name.endswith(("weight", "bias"))]
    assert any(name.startswith("coarse.head") for name in learned) and any("fine.head" in name for name in learned)
    for name in learned:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_every_reference_of_the_first_stage_is_in_its_section_or_shared(bundle):
    config = merged(bundle, "train")
    text = json.dumps(config["coarse"])
    assert text.count("@train::dataset::data") == text.count("@validate::dataset::data") == 1  # what a server exchanges
    own = text.replace("@train::dataset::data", "").replace("@validate::dataset::data", "")
    for name in ("optimizer", "loss", "lr_scheduler", "initial_weights", "validate", "epochs", "spatial_size"):
        assert f"@{name}" not in own, name
    assert "@train::preprocessing_transforms" in text  # what is decoded once serves both
    assert "@train::trainer" not in text.replace("@coarse::train::trainer", "")


@pytest.mark.parametrize(("width", "stages"), [(5, 2), (40, 1)])
def test_an_organ_that_fills_little_of_a_scan_gets_two_stages(tmp_path, width, stages):
    """A cube of 20 or 160 mm in 256 mm: with 20 mm around it 1 % or 48 % of the scan."""
    folder = write_domain(tmp_path / "Cube", 3, ("organ",), ("CT",))
    for path in folder.glob("*Tr/*.nii.gz"):
        voxels = np.zeros((64, 64, 64), np.uint8)
        voxels[10 : 10 + width, 10 : 10 + width, 10 : 10 + width] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4, 4, 4, 1])), path)
    found = _one_domain(str(folder))
    assert plan(found, 2).stages == stages
    other = plan(found, 2, 3 - stages)
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


def test_more_minutes_are_more_epochs_and_too_few_are_refused(organs, monkeypatch):
    from med3d_ext.tools.new_bundle import plan as module

    monkeypatch.setattr(module, "step_seconds", lambda network, grid: 0.5)
    found = _one_domain(str(organs))
    short, long = (plan(found, 3, 2, minutes) for minutes in (10, 20))
    assert 1.7 < long.epochs / short.epochs < 2.4 and short.coarse_epochs < long.coarse_epochs
    assert "in 10 minutes" in short.reason
    with pytest.raises(InputError, match="0.5 minutes are too few for one epoch"):
        plan(found, 3, 2, 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("coarse::epochs", 0), ("coarse::val_interval", -1), ("coarse::spatial_size", [24, 0, 24]), ("warmup_epochs", -2)],
)
def test_an_option_of_either_stage_that_no_run_can_use_is_refused_before_anything_is_written(
    bundle, organs, tmp_path, clean_process, option, value
):
    with pytest.raises(RuntimeError) as error:  # MONAI's, around ours
        train(bundle, organs, tmp_path, **{option: value})
    assert str(user_message(error.value)).startswith(f"{option} must be")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("stages", 3), ("minutes", 0), ("minutes", "soon")])
def test_stages_and_minutes_out_of_range_are_refused(tmp_path, organs, option, value):
    with pytest.raises(InputError, match=f"--{option} must be"):
        new_bundle("organs", dataset_dir=str(organs), output=str(tmp_path), **{option: value})
    assert not list(tmp_path.iterdir())

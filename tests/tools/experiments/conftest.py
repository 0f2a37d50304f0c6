from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experiment_stubs import TRAIN, Runner, write_split

import med3d_ext.tools.experiments.compare as compare
import med3d_ext.tools.experiments.engine as engine
import med3d_ext.tools.experiments.starts as starts
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.tools.experiments.compare import Comparison


@pytest.fixture
def real_encoder(tmp_path: Path) -> Path:
    """Weights of a ResNet-10."""
    torch.save(ResNetEncoder("resnet10").state_dict(), tmp_path / "real.pt")
    return tmp_path / "real.pt"


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch) -> Path:
    """What stands for weights that fit, without a card; only ``real.pt`` is really loaded."""
    load = starts.load_encoder
    monkeypatch.setattr(starts, "load_encoder", lambda _, path, *rest: path.name == "real.pt" and load(_, path, *rest))
    path = tmp_path / "weights" / "encoder.pt"
    path.parent.mkdir()
    path.write_text("tensors")
    return path


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Reports without their pictures, which cost more than all the rest."""
    monkeypatch.setattr(compare, "draw_curves", lambda *_: None)
    monkeypatch.setattr(compare, "draw_overlays", lambda *_: False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    configs = tmp_path / "bundles" / "small" / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text("{}")
    (configs / "train.json").write_text(json.dumps(TRAIN))
    (configs / "evaluate.json").write_text("{}")
    return configs.parent


@pytest.fixture
def runner(monkeypatch) -> Runner:
    runner = Runner()
    monkeypatch.setattr(engine, "run_bundle", runner)
    return runner


@pytest.fixture
def make(tmp_path: Path, bundle: Path, encoder: Path, runner: Runner) -> Callable[..., Comparison]:
    """Makes a comparison; its data is a prepared folder, or with folds a source folder."""
    prepared = write_split(tmp_path / "split_of_mine")

    def make(**changes) -> Comparison:
        source = tmp_path / "source" if changes.get("folds") else prepared
        options = {"dataset_dir": str(source), **changes.pop("options", {})}
        arguments = {"bundle": bundle, "inits": ["scratch", f"med3d={encoder}"], "seeds": [0, 1], "options": options}
        return Comparison(**{**arguments, "output": tmp_path / "out", **changes})

    return make

"""What the tests of bundles share: small phantoms, a process that is clean again after a run, the metadata's schema."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from bundle_files import REPOSITORY, places, workflow
from monai.utils import set_determinism

from med3d_ext.tools.phantoms.dataset import phantom_dataset

PHANTOMS = {
    "lits_coarse": ("lits", 6),
    "lits_fine": ("lits", 6),  # six torsos show every orientation
    "lung_segmentation": ("lung", 4),
    "nodule_classification": ("nodules", 16),
    "pretrain_3dseg8": ("3dseg8", 2),
}
FACTS = {
    "spacing_mean": [1.0, 1.0, 1.0],
    "spacing_median": [1.0, 1.0, 1.0],
    "hu_window": [-200, 250],
    "intensity_range": None,
    "channel": None,
    "cube_mm": 32.0,
    "spatial_size": [32, 32, 32],
}


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Nothing is taken from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MED3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Callable[[Path], Path]:
    """Folder of a bundle's phantoms."""

    @cache
    def make(bundle: Path) -> Path:
        kind, cases = PHANTOMS[bundle.name]
        return phantom_dataset(kind, tmp_path_factory.mktemp("phantoms") / kind, cases)

    return make


@pytest.fixture
def clean_process(monkeypatch):
    """A run adds the bundle to sys.path, fixes torch's random numbers and, as a command, changes how errors look."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)
    set_determinism(None)


@pytest.fixture(scope="session")
def schema() -> Path:
    """The schema of MONAI's metadata; skips without it."""
    folder = Path(os.environ.get("MED3D_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / "schema" / "meta_schema_20240725.json"
    if not path.is_file():
        pytest.skip(f"needs the schema of MONAI's metadata in {path} (set MED3D_DATA)")
    return path


@pytest.fixture
def folders(bundle, tmp_path) -> dict[str, str]:
    """A bundle's folder, and its outputs in one of the test's."""
    return places(bundle, tmp_path)


@pytest.fixture
def on_phantoms(bundle, folders, phantoms) -> dict[str, str]:
    """Options of a training from scratch on the bundle's phantoms."""
    return {**folders, "dataset_dir": str(phantoms(bundle)), "init": "scratch", "device": "cpu"}


@pytest.fixture
def weights(bundle, folders, tmp_path) -> Path:
    """Random weights of the bundle's network with their facts next to them, as a training leaves them."""
    network = workflow(bundle, "inference", **folders).network_def
    classes = dict(zip(getattr(network, "domains", ["liver"]), getattr(network, "num_classes", [2])))
    facts = {name: {**FACTS, "classes": {str(i): str(i) for i in range(count)}} for name, count in classes.items()}
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(network.state_dict(), path)
    path.with_name("facts.json").write_text(json.dumps({"domains": facts}))
    return path

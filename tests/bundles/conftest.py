"""What the tests of bundles share: small phantoms, a process that is clean again after a run, the metadata's schema."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from bundle_files import REPOSITORY
from monai.utils import set_determinism

from med3d_ext.data.phantoms import phantom_dataset

PHANTOMS = {
    "lits_coarse": ("lits", 6),
    "lits_fine": ("lits", 6),  # six torsos show every orientation
    "lung_segmentation": ("lung", 4),
    "nodule_classification": ("nodules", 16),
    "pretrain_3dseg8": ("3dseg8", 2),
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
    """The schema of MONAI's metadata; skips where it does not lie among the data."""
    folder = Path(os.environ.get("MED3D_DATA", REPOSITORY.parent / "shared" / "data"))
    path = folder / "schema" / "meta_schema_20240725.json"
    if not path.is_file():
        pytest.skip(f"needs the schema of MONAI's metadata in {path} (set MED3D_DATA)")
    return path

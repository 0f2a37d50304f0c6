"""A bundle that is small enough to be packed in a moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from med3d_ext.tools.zoo.pack import pack

METADATA = {
    "version": "0.2.0",
    "changelog": {"0.1.0": "first", "0.2.0": "better weights"},
    "name": "Tiny segmentation",
    "task": "Segment something small",
    "description": "One convolution",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT"}},
        "outputs": {"pred": {"type": "image", "format": "segmentation"}},
    },
}
INFERENCE = {
    "imports": ["$import os", "$import sys"],
    "bundle_root": ".",
    "channels": 2,
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": "@channels", "kernel_size": 3},
}
CARD = {
    "network": "tiny",
    "init": "scratch",
    "epochs": 3,
    "best": {"epoch": 2, "val_mean_dice": 0.5},
    "cases": {"training": [{"image": "a.nii", "domain": "x", "sha256": "0" * 64}], "validation": []},
}
FILES = {
    "LICENSE": "Apache License, Version 2.0\n",
    "configs/metadata.json": json.dumps(METADATA),
    "configs/inference.json": json.dumps(INFERENCE),
    "configs/train.json": '{"train": {"handlers": []}}',
    "configs/logging.conf": "[loggers]\n",
    "docs/README.md": "# Tiny\n\nSegments something small.\n",
    "docs/data_license.txt": "Generated data.\n",
    "large_files.yml": "large_files: []\n",
    "weights/card.json": json.dumps(CARD),
    "weights/facts.json": '{"domains": {"x": {}}}',
}


def make_bundle(folder: Path) -> Path:
    """Write the small bundle into ``folder``, which must not exist."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    generator = torch.Generator().manual_seed(0)
    state = {"weight": torch.randn(2, 1, 3, 3, 3, generator=generator), "bias": torch.zeros(2)}
    torch.save(state, folder / "weights" / "model.pt")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small bundle with released weights."""
    return make_bundle(tmp_path / "bundles" / "tiny_segmentation")


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    bundle = make_bundle(root / "tiny_segmentation")
    for version in ("0.1.0", "0.2.0"):
        (bundle / "configs" / "metadata.json").write_text(json.dumps({**METADATA, "version": version}))
        pack(str(bundle), str(root / "zoo"))
    return root / "zoo"


@pytest.fixture
def zoo(two_versions: Path, tmp_path: Path) -> Path:
    """A folder with two versions of the small bundle, each with its checksum beside it."""
    return shutil.copytree(two_versions, tmp_path / "zoo")


@pytest.fixture
def change() -> Callable[..., None]:
    """Changes keys of a JSON file; None takes one away."""

    def write(path: Path, **values) -> None:
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return write

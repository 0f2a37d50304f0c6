"""The bundles of the checkout, their configs as MONAI merges them, and what stands in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from med3d_ext.run.overrides import texts, walk

__all__ = ["texts", "walk"]

REPOSITORY = Path(__file__).parents[2]
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
SMALL = {"spatial_size": [32, 32, 32], "device": "cpu"}
COMBINATIONS = (
    ("train",),
    ("train", "evaluate"),
    ("train", "multi_gpu_train"),
    ("train", "evaluate", "multi_gpu_evaluate"),
    ("inference",),
)


def config_files(bundle: Path, *names: str) -> list[str]:
    """Paths of a bundle's configs by name."""
    return [str(bundle / "configs" / f"{name}.json") for name in names]


def merged(bundle: Path, *names: str) -> dict[str, Any]:
    """The configs merged as MONAI merges them, references and expressions as written."""
    return dict(ConfigParser.load_config_files(config_files(bundle, *names)))


def is_classifier(bundle: Path) -> bool:
    """Whether a bundle's network gives classes instead of a label map, as its metadata says."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    return metadata["network_data_format"]["outputs"]["pred"]["format"] == "classes"


def checkpointing_id(bundle: Path) -> str:
    """The id that switches gradient checkpointing of a bundle's encoder on."""
    node, path = merged(bundle, "train")["network_def"], "network_def"
    for key in ("fine", "encoder"):
        if key in node:
            node, path = node[key], f"{path}::{key}"
    return f"{path}::checkpointing"


def key_metric(bundle: Path) -> str:
    """Name of the metric that picks the best epoch."""
    return next(iter(merged(bundle, "train")["validate"]["key_metric"]))


def images_of(folder: Path) -> Path:
    """The folder of images in a bundle's data, or in the first domain of it."""
    return next(path for name in ("imagesTr", "images") for path in sorted(folder.rglob(name)))


def workflow(bundle: Path, *names: str, **overrides: Any) -> ConfigWorkflow:
    """What ``monai.bundle run`` makes of a command, initialized, in this process."""
    kind = "infer" if "inference" in names else "train"
    made = ConfigWorkflow(config_files(bundle, *names), logging_file=False, workflow_type=kind, **overrides)
    made.initialize()
    return made


def run_bundle(bundle: Path, *names: str, **overrides: Any) -> ConfigWorkflow:
    """:func:`workflow`, run to its end."""
    made = workflow(bundle, *names, **overrides)
    made.run()
    made.finalize()
    return made

"""The bundles of the checkout, their configs as MONAI merges them, and runs of them in this process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from med3d_ext.io.files import read_json

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


def each_of(*names: str) -> pytest.MarkDecorator:
    """A test with ``bundle``, once for each of these."""
    return pytest.mark.parametrize(
        "bundle", [each for each in BUNDLES if each.name in names], ids=lambda path: path.name
    )


each_bundle = each_of(*(bundle.name for bundle in BUNDLES))


def config_files(bundle: Path, *names: str) -> list[str]:
    """Paths of a bundle's configs by name."""
    return [str(bundle / "configs" / f"{name}.json") for name in names]


def merged(bundle: Path, *names: str) -> dict[str, Any]:
    """The configs merged as MONAI merges them, references and expressions as written."""
    return dict(ConfigParser.load_config_files(config_files(bundle, *names)))


def is_classifier(bundle: Path) -> bool:
    """Whether a bundle's network gives classes instead of a label map, as its metadata says."""
    metadata = read_json(bundle / "configs" / "metadata.json")
    return metadata["network_data_format"]["outputs"]["pred"]["format"] == "classes"


def checkpointing_id(bundle: Path) -> str:
    """The id that switches gradient checkpointing of a bundle's encoder on."""
    inside = {"lits_fine": "fine::encoder::", "lung_segmentation": "encoder::"}
    return f"network_def::{inside.get(bundle.name, '')}checkpointing"


def images_of(folder: Path) -> tuple[Path, dict[str, str]]:
    """The images of a bundle's data or of the first domain in it, and the option that chooses its branch."""
    images = next(path for name in ("imagesTr", "images") for path in sorted(folder.rglob(name)))
    return images, {} if images.parent == folder else {"branch": images.parent.name}


def places(bundle: Path, root: Path) -> dict[str, str]:
    """A bundle's folder, and its outputs in another one."""
    return {"bundle_root": str(bundle), "output_dir": str(root / "eval"), "ckpt_dir": str(root / "models")}


def rows(path: Path) -> list[dict[str, str]]:
    """A table with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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

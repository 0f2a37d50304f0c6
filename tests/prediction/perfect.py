"""A bundle whose network is never wrong: the label is the image, and what can go wrong is the geometry alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from med3d_ext.tools.predict import BundlePredictor

REPOSITORY = Path(__file__).parents[2]
LITS = REPOSITORY / "bundles" / "lits_coarse"
FACTS = {
    "spacing_mean": [1.0, 1.0, 1.0],
    "spacing_median": [1.0, 1.0, 1.0],
    "hu_window": [-200, 250],
    "intensity_range": None,
    "channel": None,
    "spatial_size": [64, 64, 64],
    "coarse_size": [64, 64, 64],
}


def body(shape: tuple[int, ...]) -> np.ndarray:
    """An ellipsoid off the center with a ball on one side: no axis can be turned without notice."""
    grid = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) / size for size in shape], indexing="ij"), axis=-1)
    ellipsoid = np.square((grid - [0.40, 0.44, 0.57]) / [0.27, 0.22, 0.24]).sum(axis=-1) < 1
    ball = np.square((grid - [0.66, 0.63, 0.36]) / 0.15).sum(axis=-1) < 1
    return ellipsoid | ball


def segmentation_bundles() -> list[Path]:
    """The bundles of the checkout that give label maps."""
    files = sorted(REPOSITORY.glob("bundles/*/configs/metadata.json"))
    formats = {
        file.parents[1]: json.loads(file.read_text())["network_data_format"]["outputs"]["pred"]["format"]
        for file in files
        if (file.parent / "inference.json").is_file()
    }
    return [bundle for bundle, kind in formats.items() if kind == "segmentation"]


def random_weights(bundle: Path, folder: Path, **facts: Any) -> dict[str, Any]:
    """Random weights of a bundle's network with their facts beside them, as a training leaves them.

    Returns:
        the options by which ``inference.json`` finds them; and for a cascade a margin that leaves something to cut off.
    """
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "ckpt_dir": str(folder), "output_dir": str(folder)})
    network = parser.get_parsed_content("network_def")
    classes = dict(zip(network.domains, network.num_classes)) if hasattr(network, "domains") else {"target": 2}
    domains = {
        name: {**FACTS, **facts, "classes": {str(number): f"class {number}" for number in range(count)}}
        for name, count in classes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "facts.json").write_text(json.dumps({"domains": domains}))
    return {"ckpt_dir": str(folder), **({"margin_mm": 2.0} if "margin_mm" in parser.get() else {})}


class PerfectNetwork(torch.nn.Module):
    """Class 1 where the image is brighter than halfway between its darkest and its brightest voxel.

    It is its own coarse and fine stage. ``spoil`` changes the logits: what a mistake in a pipeline would do.
    """

    def __init__(self, spoil: Any = None) -> None:
        super().__init__()
        self.spoil = spoil or (lambda logits: logits)

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        bright = x - (x.max() + x.min()) / 2 - 1e-3  # an even image is dark, whatever its rounding errors
        return self.spoil(torch.cat([-bright, bright], dim=1))

    @property
    def coarse(self) -> PerfectNetwork:
        return self

    @property
    def fine(self) -> PerfectNetwork:
        return self


def with_network(predictor: BundlePredictor, network: torch.nn.Module) -> BundlePredictor:
    """The predictor, with another network in its evaluators."""
    predictor._make = partial(predictor._make, network=network)
    return predictor

"""What a user's own bundle says of itself: metadata, README, the data's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from med3d_ext.data.domains import Domain
from med3d_ext.tools.new_bundle.plan import Plan

TERMS = "The terms of the data set {folder} are not stated here; state them before you share weights.\n"

README = """# Model Overview

Segments {targets} in {modality}, after Med3D (arXiv:1904.00625, section 3.3): {method}

{reason}.

## Data

The data set {folder}. A run splits its cases by content into training, validation and test.

## Training configuration

AdamW, learning rate 0.001 with warm-up and a cosine schedule, Dice loss and cross-entropy, batch size 2, {epochs},
the {window} resized to {grid} with rotation, scale, translation and changes of intensity. The weights are those of the
last epoch.

### Input

One channel, {modality}. {normalization}, one trilinear interpolation to the network's grid in RAS order.

### Output

{count} channels: {names}. Label maps are written on the input's own grid.

## Performance

Not measured yet: `eval/test/summary.json` has the figures after an evaluation.

## MONAI Bundle Commands

#### Train

```
python -m monai.bundle run --config_file configs/train.json --dataset_dir <folder>
```

#### Train on several GPUs

```
torchrun --standalone --nproc_per_node=2 -m monai.bundle run \\
  --config_file "['configs/train.json','configs/multi_gpu_train.json']" --dataset_dir <folder>
```

#### Evaluate on the test cases

```
python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json']" --dataset_dir <folder>
```

#### Segment new images

```
python -m monai.bundle run --config_file configs/inference.json --dataset_dir <folder of images> --output_dir <folder>
```

## Limits

Research only, not for clinical use. On other scanners, protocols and patients than the training's nothing is known.

## License

Apache 2.0 for the code; data and weights trained on it have terms of their own, see `data_license.txt`.
"""


def own_readme(settings: Domain, classes: Mapping[str, str], planned: Plan) -> str:
    """The bundle's README.

    Args:
        settings: the data set's settings.
        classes: class number to name, background first.
        planned: stages, grids and epochs.
    """
    two = planned.stages == 2
    return README.format(
        method=METHOD[planned.stages],
        reason=planned.reason[0].upper() + planned.reason[1:],
        epochs=f"{planned.coarse_epochs} epochs of the coarse and {planned.epochs} of the fine network"
        if two
        else f"{planned.epochs} epochs",
        window="whole volume (coarse) or the region of interest (fine)" if two else "whole volume",
        normalization=_normalization(settings),
        targets=_targets(classes),
        modality=settings.modality,
        folder=settings.folder,
        grid=" x ".join(map(str, planned.grid)),
        count=len(classes),
        names=_names(classes),
    )


def own_metadata(
    template: Mapping[str, Any], name: str, settings: Domain, classes: Mapping[str, str], planned: Plan
) -> dict[str, Any]:
    """The bundle's ``metadata.json``.

    Args:
        template: the metadata of the template, whose versions and formats hold on.
        name: the bundle's name.
        settings: the data set's settings.
        classes: class number to name, background first.
        planned: stages, grids and epochs.
    """
    grid = list(planned.grid)
    image = {**template["network_data_format"]["inputs"]["image"], "modality": settings.modality, "spatial_shape": grid}
    pred = {
        **template["network_data_format"]["outputs"]["pred"],
        "num_channels": len(classes),
        "spatial_shape": grid,
        "channel_def": dict(classes),
    }
    return {
        **template,
        "version": "0.1.0",
        "changelog": {"0.1.0": "first version"},
        "name": name.replace("_", " "),
        "task": f"Segment {_targets(classes)}",
        "description": METHOD[planned.stages],
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": settings.folder,
        "image_classes": f"single channel {settings.modality}; {_normalization(settings)}",
        "label_classes": f"single channel: {_names(classes)}",
        "pred_classes": f"{len(classes)} channels: {_names(classes)}",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


METHOD = {
    1: "a dilated 3D ResNet in a 3D DenseASPP with skip connections segments the whole scan.",
    2: "a coarse network finds the region of interest in the whole scan, where a dilated 3D ResNet in a 3D DenseASPP "
    "with skip connections segments it.",
}


def _normalization(settings: Domain) -> str:
    if settings.modality == "CT":
        return f"Window {list(settings.intensity_range or ())} HU to [-1, 1]"
    return "Clip to the volume's 0.5 and 99.5 percentile, z-score of the volume"


def _targets(classes: Mapping[str, str]) -> str:
    return ", ".join(name for number, name in classes.items() if number != "0")


def _names(classes: Mapping[str, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in classes.items())

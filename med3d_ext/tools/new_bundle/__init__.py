"""The verb ``new-bundle``: a bundle for a user's own labels, fine-tuned from the released encoder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med3d_ext.data.domains import merge_classes
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, scratch_folder, write_json
from med3d_ext.run.moved import renewed
from med3d_ext.tools.bundle_folder import METADATA, find_bundle
from med3d_ext.tools.layouts.prepare_3dseg8 import Found, find_domains
from med3d_ext.tools.layouts.table import channels_of
from med3d_ext.tools.new_bundle.configs import TEMPLATES, own_configs
from med3d_ext.tools.new_bundle.plan import Plan, plan_bundle
from med3d_ext.tools.zoo.pack import check_name
from med3d_ext.transforms.load import ALL

COPIED = ("LICENSE", "large_files.yml", "configs/logging.conf")
TERMS = "The terms of the data set {} are not stated here; state them before you share weights.\n"
METHOD = {
    1: "a dilated 3D ResNet in a 3D DenseASPP with skip connections segments the whole scan.",
    2: "a coarse network finds the region of interest in the whole scan, where a dilated 3D ResNet in a 3D DenseASPP "
    "with skip connections segments it.",
}


def new_bundle(
    name: str,
    *,
    dataset_dir: str = "",
    output: str = ".",
    channel: str | None = None,
    stages: int | None = None,
    minutes: float | None = None,
    folds: int | None = None,
    update: bool = False,
) -> str:
    """Write a bundle for a folder of labeled volumes, with its classes and modality, and print the next commands.

    Nothing is trained, but the labels are examined: if the organ is a small part of the scans, the bundle has two
    stages, of which the first finds the region that the second segments; the grids follow from the organ's size. The
    training starts from the released encoder, and no path of this machine is in the bundle, so that it can be shared.

    Args:
        name: the bundle's name: letters, digits and _; with `--update` its folder.
        dataset_dir: a folder of labelled volumes: the Decathlon's or nnU-Net's layout, images/ with labels/ and others.
        output: where the bundle's folder is made. Defaults to the current folder.
        channel: name or number of the channel to take of images that have several; `all` trains on all of them at once.
        stages: 1 or 2. Defaults to what suits the data.
        minutes: how long the training may take on this machine in total; some steps are timed now, and the number
            of epochs is written into the config. Defaults to as many steps as a small data set needs.
        folds: plan and print a cross-validation: so many trainings, together within `--minutes`, whose models are one
            in the end. Defaults to one training.
        update: rewrite the configs of a bundle that an earlier version wrote, where they name what has moved since.
    """
    if update:
        return _update(find_bundle(name))
    if not dataset_dir:
        raise InputError("new-bundle: --dataset_dir is missing; give the folder of the labeled volumes.")
    if stages not in (None, 1, 2):
        raise InputError(f"new-bundle: --stages must be 1 or 2, got {stages}.")
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        raise InputError(f"new-bundle: --minutes must be a number above 0, got {minutes}.")
    if folds is not None and not (isinstance(folds, int) and folds >= 2):
        raise InputError(f"new-bundle: --folds must be a whole number of at least 2, got {folds}.")
    check_name(name)
    folder = Path(output).expanduser() / name
    if folder.exists():
        raise InputError(f"'{folder}' exists; choose another name, or remove it.")
    found = own_data(dataset_dir, channel)
    classes, _ = merge_classes(found.source.classes, found.settings.merge)
    planned = plan_bundle(found, len(classes), stages, minutes and minutes / (folds or 1))
    with scratch_folder(folder) as scratch:
        draft = scratch / name
        _write(draft, found, classes, planned)
        os.replace(draft, folder)
    bundle, data = shlex.quote(str(folder)), shlex.quote(dataset_dir)
    run, configs = "python -m monai.bundle run --config_file", f"{folder}/configs"
    once = f'{run} "{configs}/train.json" --dataset_dir {data}'
    several = f"{run} \"['{configs}/train.json','{configs}/folds.json']\" --folds {folds} --dataset_dir {data}"
    commands = {
        "check": f"python -m med3d_ext check {bundle} --dataset_dir {data}",
        "train": several if folds else once,
        "evaluate": ""
        if folds
        else f"{run} \"['{configs}/train.json','{configs}/evaluate.json']\" --dataset_dir {data}",
        "report": "" if folds else f"python -m med3d_ext report {bundle}",
        "segment": f"python -m med3d_ext predict {bundle} IMAGES --output FOLDER",
        "share": f"python -m med3d_ext zoo pack {bundle} ARCHIVES",
    }
    steps = [f"  {step:<9} {command}" for step, command in commands.items() if command]
    return "\n".join([f"'{folder}': {_names(classes)}", f"  {planned.reason}", *steps])


def _update(bundle: Path) -> str:
    """Give a bundle's configs the names of today; each file is replaced as a whole, or stays as it is."""
    changed = []
    for path in sorted((bundle / "configs").glob("*.json")):
        before = read_json(path)
        after = renewed(before)
        if after != before:
            write_json(path, after)
            changed.append(path.name)
    return f"'{bundle}': rewrote {', '.join(changed)}." if changed else f"'{bundle}' names nothing that has moved."


def own_data(dataset_dir: str, channel: str | None = None) -> Found:
    """A data set's cases and settings.

    Raises:
        InputError: there is none or several, only one class, or no channel that is chosen.
    """
    domains = find_domains(Path(dataset_dir).expanduser(), channel=channel)
    if len(domains) > 1:
        raise InputError(f"dataset_dir '{dataset_dir}' holds several data sets ({', '.join(domains)}); give one.")
    found = next(iter(domains.values()))
    if len(found.source.classes) < 2:
        raise InputError(f"'{found.folder / 'dataset.json'}' names one class; name the background and what to segment.")
    return found


def _write(bundle: Path, found: Found, classes: Mapping[str, str], planned: Plan) -> None:
    settings, channel, two = found.settings, found.source.chosen, planned.stages == 2
    template = find_bundle(TEMPLATES[planned.stages])
    for name in ("configs", "docs"):
        (bundle / name).mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(template / name, bundle / name)
    targets, names = ", ".join(label for number, label in classes.items() if number != "0"), _names(classes)
    normalization = "Clip to the volume's 0.5 and 99.5 percentile, z-score of the volume"
    if settings.modality == "CT":
        normalization = f"Window {list(settings.intensity_range or ())} HU to [-1, 1]"
    channels = ["image"]
    if channel is not None and channel[0] == ALL:
        count = channels_of(found.source)[1]
        channels = [found.source.modality.get(number, f"channel {number}") for number in range(count)]
        normalization += ", each channel by itself" if settings.modality != "CT" else ""
    chosen = None if channel is None else channel[1]
    configs = own_configs(template.parent, planned, settings.modality, len(classes), chosen, len(channels))
    files = {f"configs/{name}.json": config for name, config in configs.items()}
    several = f"{len(channels)} channels ({', '.join(channels)})"
    inputs = several if len(channels) > 1 else "single channel"
    grid: dict[str, Any] = {"spatial_shape": list(planned.grid)}
    metadata = read_json(template / METADATA)
    formats = metadata["network_data_format"]
    image = {**formats["inputs"]["image"], "modality": settings.modality, **grid}
    image |= {"num_channels": len(channels), "channel_def": {str(number): each for number, each in enumerate(channels)}}
    pred = {**formats["outputs"]["pred"], "num_channels": len(classes), **grid, "channel_def": dict(classes)}
    files[METADATA] = {
        **metadata,
        "version": "0.1.0",
        "changelog": {"0.1.0": "first version"},
        "name": bundle.name.replace("_", " "),
        "task": f"Segment {targets}",
        "description": METHOD[planned.stages],
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": settings.folder,
        "image_classes": f"{inputs} {settings.modality}; {normalization}",
        "label_classes": f"single channel: {names}",
        "pred_classes": f"{len(classes)} channels: {names}",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
    texts = {name: json.dumps(content, indent=4) + "\n" for name, content in files.items()}
    epochs = f"{planned.epochs} epochs"
    if two:
        epochs = f"{planned.coarse_epochs} epochs of the coarse and {planned.epochs} of the fine network"
    readme = Path(__file__).with_name("templates") / "README.md"
    texts["docs/README.md"] = readme.read_text(encoding="utf-8").format(
        method=METHOD[planned.stages],
        reason=planned.reason[0].upper() + planned.reason[1:],
        epochs=epochs,
        window="whole volume (coarse) or the region of interest (fine)" if two else "whole volume",
        normalization=normalization,
        targets=targets,
        modality=settings.modality,
        inputs=several if len(channels) > 1 else "One channel",
        folder=settings.folder,
        grid=" x ".join(map(str, planned.grid)),
        count=len(classes),
        names=names,
    )
    texts["docs/data_license.txt"] = TERMS.format(settings.folder)
    for name, text in texts.items():
        (bundle / name).write_text(text, encoding="utf-8")


def _names(classes: Mapping[str, str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in classes.items())

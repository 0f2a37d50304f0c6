"""The verb ``new-bundle``: a bundle for a user's own labels, fine-tuned from the released encoder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from med3d_ext.data.domains import merge_classes
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, scratch_folder, write_json
from med3d_ext.run.moved import renewed
from med3d_ext.tools.bundle_folder import METADATA, find_bundle
from med3d_ext.tools.layouts.prepare_3dseg8 import Found, find_domains
from med3d_ext.tools.new_bundle.configs import TEMPLATES, own_configs
from med3d_ext.tools.new_bundle.plan import Plan, plan
from med3d_ext.tools.new_bundle.texts import TERMS, own_metadata, own_readme
from med3d_ext.tools.zoo.stage import check_name

COPIED = ("LICENSE", "large_files.yml", "configs/logging.conf")


def new_bundle(
    name: str,
    *,
    dataset_dir: str = "",
    output: str = ".",
    channel: str | None = None,
    stages: int | None = None,
    minutes: float | None = None,
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
        channel: name or number of the channel to take of images that have several.
        stages: 1 or 2. Defaults to what suits the data.
        minutes: how long the training may take on this machine in total; some steps are timed now, and the number
            of epochs is written into the config. Defaults to as many steps as a small data set needs.
        update: rewrite the configs of a bundle that an earlier version wrote, where they name what has moved since.
    """
    if update:
        return update_bundle(find_bundle(name))
    if not dataset_dir:
        raise InputError("new-bundle: --dataset_dir is missing; give the folder of the labeled volumes.")
    if stages not in (None, 1, 2):
        raise InputError(f"new-bundle: --stages must be 1 or 2, got {stages}.")
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        raise InputError(f"new-bundle: --minutes must be a number above 0, got {minutes}.")
    check_name(name)
    folder = Path(output).expanduser() / name
    if folder.exists():
        raise InputError(f"'{folder}' exists; choose another name, or remove it.")
    found = _one_domain(dataset_dir, channel)
    classes, _ = merge_classes(found.source.classes, found.settings.merge)
    planned = plan(found, len(classes), stages, minutes)
    with scratch_folder(folder) as scratch:
        draft = scratch / name
        _write(draft, found, classes, planned)
        os.replace(draft, folder)
    return _next_steps(folder, dataset_dir, classes, planned)


def update_bundle(bundle: Path) -> str:
    """Give a bundle's configs the names of today; each file is replaced as a whole, or stays as it is."""
    changed = []
    for path in sorted((bundle / "configs").glob("*.json")):
        before = read_json(path)
        after = renewed(before)
        if after != before:
            write_json(path, after)
            changed.append(path.name)
    return f"'{bundle}': rewrote {', '.join(changed)}." if changed else f"'{bundle}' names nothing that has moved."


def _one_domain(dataset_dir: str, channel: str | None = None) -> Found:
    """The data set's cases and settings.

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
    settings, channel = found.settings, found.source.chosen
    template = find_bundle(TEMPLATES[planned.stages])
    for name in ("configs", "docs"):
        (bundle / name).mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(template / name, bundle / name)
    configs = own_configs(template.parent, planned, settings.modality, len(classes), channel and channel[1])
    files = {f"configs/{name}.json": config for name, config in configs.items()}
    files[METADATA] = own_metadata(read_json(template / METADATA), bundle.name, settings, classes, planned)
    texts = {name: json.dumps(content, indent=4) + "\n" for name, content in files.items()}
    texts["docs/README.md"] = own_readme(settings, classes, planned)
    texts["docs/data_license.txt"] = TERMS.format(folder=settings.folder)
    for name, text in texts.items():
        (bundle / name).write_text(text, encoding="utf-8")


def _next_steps(folder: Path, dataset_dir: str, classes: Mapping[str, str], planned: Plan) -> str:
    bundle, data = shlex.quote(str(folder)), shlex.quote(dataset_dir)
    run, configs = "python -m monai.bundle run --config_file", f"{folder}/configs"
    steps = {
        "check": f"python -m med3d_ext check {bundle} --dataset_dir {data}",
        "train": f'{run} "{configs}/train.json" --dataset_dir {data}',
        "evaluate": f"{run} \"['{configs}/train.json','{configs}/evaluate.json']\" --dataset_dir {data}",
        "report": f"python -m med3d_ext report {bundle}",
        "segment": f"python -m med3d_ext predict {bundle} IMAGES --output FOLDER",
        "share": f"python -m med3d_ext zoo pack {bundle} ARCHIVES",
    }
    names = ", ".join(f"{number} {name}" for number, name in classes.items())
    return "\n".join(
        [f"'{folder}': {names}", f"  {planned.reason}", *(f"  {step:<9} {command}" for step, command in steps.items())]
    )

"""What a run reads: its network and weights, what a training starts from, and the data, prepared as the run would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai.bundle import verify_net_in_out
from torch import nn

from med3d_ext.data.datalists import list_images, named_images
from med3d_ext.data.leakage import seen_cases
from med3d_ext.data.prepared_files import DATALIST, absent_classes
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.io.facts import weights_domains
from med3d_ext.run.one_line import heard_warnings
from med3d_ext.tools.bundle_folder import Bundle, quiet
from med3d_ext.tools.check import Finding, error, ok, warning
from med3d_ext.tools.layouts.table import layout_of
from med3d_ext.tools.lidc.xml import is_lidc
from med3d_ext.transforms.load import LoadVolumed
from med3d_ext.weights.files import fit, read_checkpoint
from med3d_ext.weights.initial import initial_weights_path
from med3d_ext.weights.loading import encoder_of, fit_weights, read_weights


def build_network(bundle: Bundle) -> nn.Module:
    """The network of inference on the meta device: shapes without values, thus at once."""
    with torch.device("meta"):
        return bundle.value("inference", "network_def")


def check_shapes(bundle: Bundle) -> Iterator[Finding]:
    """One forward pass against what the metadata states of image and prediction."""
    metadata = str(bundle.folder / "configs" / "metadata.json")
    (config,) = bundle.files("inference")
    options = {**bundle.options("inference"), "device": "meta"}
    try:
        with quiet(), torch.device("meta"):
            verify_net_in_out("network_def", metadata, config, **options)
    except ValueError as fault:
        yield error("network", f"{str(fault).rstrip('.')}; correct network_data_format in metadata.json.")
        return
    formats = bundle.metadata["network_data_format"]
    channels = [formats[side][key]["num_channels"] for side, key in (("inputs", "image"), ("outputs", "pred"))]
    millions = sum(parameter.numel() for parameter in build_network(bundle).parameters()) / 1e6
    yield ok("network", f"{channels[0]} channel in, {channels[1]} out, {millions:.1f} million parameters")


def check_weights(bundle: Bundle) -> Iterator[Finding]:
    """What inference would load: names, shapes, finite values, and the facts next to it."""
    try:
        path = bundle.weights()
    except InputError as fault:
        yield warning("weights", f"no inference yet: {fault}")
        return
    faults = fit(read_checkpoint(path)[0], build_network(bundle).state_dict())
    for fault_text in faults:
        yield error("weights", f"'{path}' {fault_text}; train with these options or give other weights.")
    domains = weights_domains(path)  # refuses where it is missing
    if not path.with_name("card.json").is_file():
        yield warning("weights", f"'{path.with_name('card.json')}' is missing: it is unknown which cases were seen.")
    served = min((file.name for file in path.parent.glob("*.pt")), key=len)
    if len(served) < len(path.name):
        yield warning("weights", f"MONAI Label would serve '{served}' instead of it (the shortest name); move it away.")
    if not faults:
        yield ok("weights", f"'{path}' fits the network; trained on {', '.join(domains)}")


def check_initial_weights(bundle: Bundle) -> Iterator[Finding]:
    """What a training would start from: found, of this architecture, and how much of the encoder it covers."""
    path = initial_weights_path(str(bundle.value("train", "init")), bundle.folder)
    if path is None:
        yield ok("init", "from scratch")
        return
    state, source = read_weights(path)
    encoder = encoder_of(build_network(bundle)).state_dict()
    _, report = fit_weights(encoder, state, source, str(path))
    yield ok("init", f"'{path}' covers {report.share:.1%} of the encoder ({report.network})")


def check_data(bundle: Bundle) -> Iterator[Finding]:
    """Every file, the label values and the split; or the images alone, read as inference reads them."""
    dataset_dir = bundle.overrides.get("dataset_dir")
    if dataset_dir is None:
        if bundle.merged("train")["data"].get("phantoms", True):
            yield warning("data", "no --dataset_dir: a run uses generated phantoms, whose figures say nothing.")
        else:
            yield warning("data", "no --dataset_dir: this bundle needs its own data, and so does a run.")
        return
    if is_unlabelled(dataset_dir):
        yield from _check_images(bundle, str(dataset_dir))
        return
    data = bundle.value("train", "data")
    for name in data.domains:
        yield from check_domain(data, name)
    try:
        seen = seen_cases(bundle.card())
    except InputError:
        return  # without weights or card there is nothing to compare
    leaks = [item for item in data.items("test") if item["sha256"] in seen]
    if leaks:
        first = Path(leaks[0]["image"]).name
        yield warning("data", f"the weights have seen {len(leaks)} of the test cases, '{first}' first: train again.")


def is_unlabelled(dataset_dir: Any) -> bool:
    """Whether a folder holds images and nothing that names or holds labels: it is for inference alone."""
    folder = Path(str(dataset_dir)).expanduser()
    inside = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if (folder / DATALIST).is_file() or any(map(layout_of, [folder, *inside])) or is_lidc(folder):
        return False
    try:
        return bool(list_images(folder))
    except InputError:
        return False


def _check_images(bundle: Bundle, folder: str) -> Iterator[Finding]:
    """Each image as the run would read it: what is refused, and what is warned of."""
    try:
        with quiet():
            transforms = bundle.value("inference", "preprocessing").transforms
    except Exception:  # the check of the weights, whose facts it needs, says why
        transforms = []
    readers = [each for each in transforms if isinstance(each, LoadVolumed)]
    load = readers[0] if readers else LoadVolumed("image", default_spacing=(1.0, 1.0, 1.0))
    for item in named_images([folder])[0]:
        with heard_warnings(alone=True) as heard:
            try:
                bundle.image_sizes.append(load({"image": item["image"]})["image"].numel())
            except InputError as fault:
                yield error("data", str(fault))
        for sentence in heard:
            yield warning("data", sentence)
    if bundle.image_sizes:
        yield ok("data", f"{len(bundle.image_sizes)} images without labels in '{folder}': for inference only")


def check_domain(data: Any, name: str) -> Iterator[Finding]:
    """The cases of a domain of prepared data."""
    counts = {split: sum(item["domain"] == name for item in data.items(split)) for split in SPLITS}
    parts = ", ".join(f"{n} {split}" for split, n in counts.items())
    yield ok("data", f"{name}: {sum(counts.values())} cases, {parts}")
    if counts["training"] == 0:
        yield error("data", f"{name} has no training case; give more labeled cases.")
    if counts["validation"] == 0:
        yield warning("data", f"{name} is too small for validation cases: the best epoch is chosen on training cases.")
    if counts["test"] == 0:
        yield warning("data", f"{name} has no test case: no evaluation; give more labeled cases.")
    for sentence in absent_classes(data.domains[name], data.cases[name]):
        yield warning("data", f"{name}: {sentence}; is it the right data set?")

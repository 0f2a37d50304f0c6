"""The network against the metadata, its weights, and the weights that a training starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from monai.bundle import verify_net_in_out
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.io.facts import weights_domains
from med3d_ext.tools.bundle_folder import Bundle, quiet
from med3d_ext.tools.check.findings import Finding, error, ok, warning
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
    if served != path.name and len(served) < len(path.name):
        yield warning("weights", f"MONAI Label would serve '{served}' instead of it (the shortest name); move it away.")
    if not faults:
        yield ok("weights", f"'{path}' fits the network; trained on {', '.join(domains)}")


def check_initial_weights(bundle: Bundle) -> Iterator[Finding]:
    """What a training would start from: found, of this architecture, and how much of the encoder it covers."""
    init = str(bundle.value("train", "init"))
    path = initial_weights_path(init, bundle.folder)
    if path is None:
        yield ok("init", "from scratch")
        return
    state, source = read_weights(path)
    encoder = encoder_of(build_network(bundle)).state_dict()
    _, report = fit_weights(encoder, state, source, str(path))
    yield ok("init", f"'{Path(path)}' covers {report.share:.1%} of the encoder ({report.network})")

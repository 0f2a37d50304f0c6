"""The verb ``export``: a bundle's network and weights in one file that other programs run."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from med3d_ext.errors import InputError
from med3d_ext.io.files import scratch_folder
from med3d_ext.networks.med3d import PADDING_LOGIT
from med3d_ext.run.overrides import split_id
from med3d_ext.tools.bundle_folder import Bundle, quiet
from med3d_ext.tools.check import ERROR
from med3d_ext.tools.check.configs import check_options
from med3d_ext.weights.initial import load_network

TOLERANCE = 1e-3
"""Largest difference between the file's logits and the network's, relative to the largest logit."""
OF_THE_WEIGHTS = re.compile(r"@(weights|ckpt_dir|bundle_root)\b")


def export(bundle: str, out: str, *, part: str = "", overwrite: bool = False, **overrides: Any) -> str:
    """Write network and weights as TorchScript (`.ts`) or ONNX (`.onnx`) and compare its output with the network's.

    A `.ts` also contains the metadata and an inference.json that needs no other file, as MONAI Deploy reads them; keep
    its name. An `.onnx` is for the grid that the weights were trained on, with any batch size.

    Args:
        bundle: a bundle's folder or name; its trained weights are used or, if there are none, its released ones.
        out: the new file.
        part: one network of a bundle that has two, `coarse` or `fine`.
        overwrite: replace an existing file.
        overrides: options of inference, such as `--network_name resnet50 --branch Task09_Spleen`.
    """
    target = Path(out).expanduser()
    if target.suffix not in (".ts", ".onnx"):
        raise InputError(f"out must end with .ts or .onnx, got '{target}'.")
    if target.exists() and not overwrite:
        raise InputError(f"'{target}' exists; give another name or --overwrite.")
    found = Bundle.find(bundle, overrides)
    if any(split_id(name)[0] == "network" for name in overrides):
        raise InputError("--network has no effect, export takes network_def; give its options, such as --network_name.")
    for finding in check_options(found):
        if finding.level == ERROR:
            raise InputError(finding.text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI about reading configs, of torch about exporters
        network = found.value("inference", "network_def")
        load_network(network, found.weights())
        parts = [name for name, child in network.named_children() if any(True for _ in child.parameters())]
        if part and part not in parts:
            raise InputError(f"part must be one of {', '.join(parts)}, got '{part}'.")
        network = (getattr(network, part) if part else network).float().eval()
        domain = found.value("inference", "domain")  # channels and grid are those that the weights were trained with
        grid = (domain.get("coarse_size") if part == "coarse" else None) or domain["spatial_size"]
        channels = found.metadata["network_data_format"]["inputs"]["image"]["num_channels"]
        image = torch.randn(1, channels, *map(int, grid), generator=torch.Generator().manual_seed(0))
        with scratch_folder(target) as folder:
            made = folder / target.name  # a TorchScript archive holds its file's name
            is_onnx = target.suffix == ".onnx"
            run = write_onnx(network, image, made) if is_onnx else write_torchscript(network, made, found)
            difference = _difference(run(image), network, image)
            os.replace(made, target)
    shape = " x ".join(map(str, image.shape))
    return f"'{target}': the same as the network to {difference:.1e} of the largest logit, for an image of {shape}."


def write_torchscript(network: nn.Module, path: Path, bundle: Bundle) -> Callable[..., Tensor]:
    """Write a TorchScript archive with metadata.json and inference.json, and give back what it computes."""
    from monai.data import save_net_with_metadata

    files = {"inference.json": json.dumps(self_contained(bundle)).encode()}
    plain = {"include_config_vals": False, "append_timestamp": False}  # the metadata states its versions
    scripted = torch.jit.script(network)
    save_net_with_metadata(scripted, str(path), meta_values=bundle.metadata, more_extra_files=files, **plain)
    loaded = torch.jit.load(str(path)).eval()
    return lambda x: loaded(x)


def write_onnx(network: nn.Module, image: Tensor, path: Path) -> Callable[..., Tensor]:
    """Write an ONNX model with the input `image` and the output `pred`, and give back what onnxruntime computes."""
    try:
        import onnx  # noqa: F401  the exporter needs it
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX needs the package {error.name}; `pip install onnx onnxruntime`.") from error
    axes = {"image": {0: "batch"}, "pred": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": axes}
    torch.onnx.export(network, (image,), str(path), dynamo=False, **names)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["pred"], {"image": x.numpy()})[0])


def self_contained(bundle: Bundle) -> dict[str, Any]:
    """The inference config with the facts of the weights in the place of what would read them from a file."""
    config = dict(bundle.merged("inference"))
    for name, value in bundle.merged("inference").items():
        if isinstance(value, Mapping) and "_target_" in value and OF_THE_WEIGHTS.search(json.dumps(value)):
            with quiet():
                found = bundle.value("inference", name)
            if isinstance(found, dict | list | int | float | str):
                config[name] = found
    written = bundle.as_written("inference")
    folders = ("bundle_root", "ckpt_dir", "output_dir", "dataset_dir")  # this machine's are no one else's business
    return {**config, "weights": None, **{name: written[name] for name in folders if name in written}}


def _difference(found: Tensor, network: nn.Module, image: Tensor) -> float:
    with torch.inference_mode():
        expected = network(image)
    if found.shape != expected.shape:
        shapes = f"gives {tuple(found.shape)}, the network {tuple(expected.shape)}"
        raise InputError(f"the export {shapes}; use the other format.")
    # The logits of channels that a branch does not have would excuse any difference.
    real = expected[expected > PADDING_LOGIT]
    difference = float((found - expected).abs().max() / real.abs().max().clamp(min=1e-6))
    if not difference < TOLERANCE:
        raise InputError(
            f"the export differs from the network by {difference:.1e} of the largest logit, more than {TOLERANCE:g}; "
            "nothing was written: use the other format."
        )
    return difference

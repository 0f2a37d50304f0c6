"""Disk, RAM and GPU memory that a training needs, against what is free; each line says what the number rests on."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from med3d_ext.data.loader import chosen_workers
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check.findings import Finding, error, ok, warning
from med3d_ext.tools.check.memory import inference_bytes, parameter_bytes, state_bytes, training_bytes
from med3d_ext.tools.check.network import build_network

WORKSPACE = 2.2
"""Kernels need room to work in: steps on a CPU took 1.5 to 2.1 times the bytes of their tensors (docs/check.md)."""
VOLUMES_WHILE_LOADING = 5
"""Volumes in float32 that reading and resampling one holds at once."""
MOMENTS = {"Adam": 2, "AdamW": 2, "SGD": 1}
GB = 1e9


def check_resources(bundle: Bundle, with_data: bool = True) -> Iterator[Finding]:
    """One line for each of the three; for images without labels, what their inference needs of two.

    Args:
        bundle: the bundle.
        with_data: take the volumes of ``dataset_dir``; not where they have been found to be at fault.
    """
    network = build_network(bundle)
    shape = training_shape(bundle, with_data)
    moments = MOMENTS.get(bundle.merged("train")["optimizer"]["_target_"].rpartition(".")[2], 2)
    weights = state_bytes(network) + (1 + moments) * parameter_bytes(network)
    step = state_bytes(network) + moments * parameter_bytes(network) + WORKSPACE * training_bytes(network, shape)
    device = torch.device(bundle.value("train", "device"))
    single = (1, *shape[1:])
    forward = state_bytes(network) + WORKSPACE * inference_bytes(network, single)
    if bundle.image_sizes:
        parts = {"Python and its packages": psutil.Process().memory_info().rss}
        parts["the largest volume"] = VOLUMES_WHILE_LOADING * 4 * max(bundle.image_sizes)
        yield _ram(parts | ({"one forward pass": forward} if device.type == "cpu" else {}))
        basis = f"{_size(single)} in float32, measured on shapes, times {WORKSPACE} for the kernels' work space"
        yield _device(device, f"one forward pass {_gb(forward)}", forward, basis)
        return
    volumes = _volumes(bundle) if with_data else {}
    yield _disk(bundle, volumes, weights + 2 * state_bytes(network))
    yield _ram(_training_parts(bundle, volumes, step if device.type == "cpu" else 0.0))
    basis = f"{_size(shape)} in float32, measured on shapes, times {WORKSPACE} for the kernels' work space"
    yield _device(device, f"training {_gb(step)}, one forward pass {_gb(forward)}", step, basis)


def training_shape(bundle: Bundle, with_data: bool = True) -> list[int]:
    """The input of a training step, N x C x D x H x W, of the domain with the largest grid."""
    with_data = with_data and not bundle.image_sizes
    grid = _item(bundle, "grids", with_data) or _item(bundle, "spatial_size", with_data)
    if isinstance(grid, Mapping):
        grid = max(grid.values(), key=math.prod)
    image = bundle.metadata["network_data_format"]["inputs"]["image"]
    if grid is None:  # known only from data that was not given
        grid = [size if isinstance(size, int) else 128 for size in image["spatial_shape"]]
    return [int(_item(bundle, "batch_size") or 1), image["num_channels"], *map(int, grid)]


def _item(bundle: Bundle, name: str, with_data: bool = True) -> Any:
    """A value of the training's config; None where it has none, or needs data that was not given."""
    config = bundle.merged("train")
    needs_data = (bundle.overrides.get("dataset_dir") is None or not with_data) and re.search(
        r"@data\b", str(config.get(name))
    )
    return None if name not in config or needs_data else bundle.value("train", name)


def _volumes(bundle: Bundle) -> dict[str, list[int]]:
    """Voxels of each training and validation volume; empty without data."""
    if bundle.overrides.get("dataset_dir") is None:
        return {}
    data = bundle.value("train", "data")
    sizes = {
        case["sha256"]: math.prod(case["shape"]) for cases in data.cases.values() for case in cases if "shape" in case
    }
    splits = {"training": data.training, "validation": data.validation}
    return {name: [sizes.get(item.get("sha256"), 0) for item in items] for name, items in splits.items()}


def _disk(bundle: Bundle, volumes: Mapping[str, Sequence[int]], weights: float) -> Finding:
    folder = Path(bundle.value("train", "output_dir"))
    while not folder.exists():
        folder = folder.parent
    kept = 3 * sum(volumes.get("training", []))  # float16 images, uint8 labels
    basis = f"weights and training state {_gb(weights)}"
    store = _item(bundle, "store")
    if volumes and store is not None:
        basis += f"; of {_gb(kept)} of volumes '{store.folder}' keeps up to {_gb(store.limit)}"
    if not os.access(folder, os.W_OK):
        return error("disk", f"'{folder}' cannot be written to; give another --output_dir.")
    return _compare("disk", weights, shutil.disk_usage(folder).free, basis, f"in '{folder}'")


def _training_parts(bundle: Bundle, volumes: Mapping[str, Sequence[int]], step: float) -> dict[str, float]:
    given = _item(bundle, "num_workers")
    workers = 1 + int(chosen_workers(bundle.value("train", "device")) if given is None else given)
    loading = workers * VOLUMES_WHILE_LOADING * 4 * max(volumes.get("training", []), default=0)
    kept = len(volumes.get("validation", [])) * 2 * 4 * math.prod(training_shape(bundle)[2:])
    python = workers * psutil.Process().memory_info().rss
    return {"Python and its packages": python, "the largest volume": loading, "kept validation": kept, "a step": step}


def _ram(parts: Mapping[str, float]) -> Finding:
    basis = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)
    return _compare("RAM", sum(parts.values()), psutil.virtual_memory().available, basis)


def _device(device: torch.device, need: str, size: float, basis: str) -> Finding:
    if device.type != "cuda":
        return ok("GPU", f"none is used; on one: {need} ({basis})")
    if not torch.cuda.is_available():
        return error("GPU", f"device is '{device}' and torch finds no GPU; give --device cpu or install another torch.")
    return _compare("GPU", size, torch.cuda.mem_get_info(device)[0], f"{need}; {basis}")


def _compare(topic: str, needed: float, free: float, basis: str, where: str = "") -> Finding:
    text = f"{_gb(needed)} needed, {_gb(free)} free{where and ' ' + where} ({basis})"
    if needed > free:
        repair = "another --output_dir" if topic == "disk" else "a smaller --batch_size or --spatial_size"
        return error(topic, f"{text}; give {repair}.")
    return warning(topic, f"{text}: it is close.") if needed > 0.8 * free else ok(topic, text)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 1e6:.0f} MB"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

"""Disk, RAM and GPU memory that a training needs, against what is free; each line says what the number rests on.

A step is measured without any memory: on torch's meta device, where tensors have shapes alone.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from med3d_ext.data.loader import chosen_workers
from med3d_ext.tools.bundle_folder import Bundle
from med3d_ext.tools.check import Finding, error, ok, warning
from med3d_ext.tools.check.inputs import build_network

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
    device = torch.device(bundle.value("train", "device"))
    is_cpu = device.type == "cpu"
    shape = training_shape(bundle, with_data)
    state, parameters = tensor_bytes(network.state_dict().values()), tensor_bytes(network.parameters())
    forward = state + WORKSPACE * peak_bytes(network, (1, *shape[1:]))
    python = psutil.Process().memory_info().rss
    if bundle.image_sizes:
        volume = VOLUMES_WHILE_LOADING * 4 * max(bundle.image_sizes)
        yield _ram(python, {"the largest volume": volume, "one forward pass": forward if is_cpu else 0.0})
        yield _gpu(device, f"one forward pass {_gb(forward)}", forward, (1, *shape[1:]))
        return
    moments = MOMENTS.get(bundle.merged("train")["optimizer"]["_target_"].rpartition(".")[2], 2)
    step = state + moments * parameters + WORKSPACE * peak_bytes(network, shape, training=True)
    volumes = _volumes(bundle) if with_data else {}
    yield _disk(bundle, volumes, 3 * state + (1 + moments) * parameters)
    given = _item(bundle, "num_workers")
    workers = 1 + int(chosen_workers(device) if given is None else given)
    parts = {
        "the largest volume": workers * VOLUMES_WHILE_LOADING * 4 * max(volumes.get("training", []), default=0),
        "kept validation": len(volumes.get("validation", [])) * 2 * 4 * math.prod(training_shape(bundle)[2:]),
        "a step": step if is_cpu else 0.0,
    }
    yield _ram(workers * python, parts)
    yield _gpu(device, f"training {_gb(step)}, one forward pass {_gb(forward)}", step, shape)


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
    has_data = with_data and bundle.overrides.get("dataset_dir") is not None
    if name not in config or not has_data and re.search(r"@data\b", str(config[name])):
        return None
    return bundle.value("train", name)


def _volumes(bundle: Bundle) -> dict[str, list[int]]:
    """Voxels of each training and validation volume; empty without data."""
    if bundle.overrides.get("dataset_dir") is None:
        return {}
    data = bundle.value("train", "data")
    cases = [case for cases in data.cases.values() for case in cases if "shape" in case]
    sizes = {case["sha256"]: math.prod(case["shape"]) for case in cases}
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
    return _compare("disk", weights, shutil.disk_usage(folder).free, basis, f" in '{folder}'")


def _ram(python: float, parts: Mapping[str, float]) -> Finding:
    parts = {"Python and its packages": python, **parts}
    basis = ", ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)
    return _compare("RAM", sum(parts.values()), psutil.virtual_memory().available, basis)


def _gpu(device: torch.device, need: str, size: float, shape: Sequence[int]) -> Finding:
    grid = " x ".join(map(str, shape))
    basis = f"{grid} in float32, measured on shapes, times {WORKSPACE} for the kernels' work space"
    if device.type != "cuda":
        return ok("GPU", f"none is used; on one: {need} ({basis})")
    if not torch.cuda.is_available():
        return error("GPU", f"device is '{device}' and torch finds no GPU; give --device cpu or install another torch.")
    return _compare("GPU", size, torch.cuda.mem_get_info(device)[0], f"{need}; {basis}")


def _compare(topic: str, needed: float, free: float, basis: str, where: str = "") -> Finding:
    text = f"{_gb(needed)} needed, {_gb(free)} free{where} ({basis})"
    if needed > free:
        repair = "another --output_dir" if topic == "disk" else "a smaller --batch_size or --spatial_size"
        return error(topic, f"{text}; give {repair}.")
    return warning(topic, f"{text}: it is close.") if needed > 0.8 * free else ok(topic, text)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.1 * GB else f"{size / 1e6:.0f} MB"


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live at the same time while it is entered.

    Attributes:
        peak: the most bytes so far, in tensors that operations made (views and tensors from before do not count).
    """

    def __init__(self, before: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of a network's state, or of its parameters: one set of gradients, or one of an optimizer's moments."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(network: nn.Module, shape: Sequence[int], training: bool = False) -> int:
    """Most bytes that one forward pass keeps in addition to the network; a training's also with its gradients.

    Args:
        network: on the meta device.
        shape: of the input, N x C x D x H x W.
        training: also run cross-entropy and the backward pass.
    """
    image = torch.zeros(*shape, device="meta")
    with PeakBytes(network.state_dict().values()) as counter, torch.set_grad_enabled(training):
        logits = network.train(training)(image)
        if training:
            label = torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.long, device="meta")
            F.cross_entropy(logits, label).backward()
    return counter.peak + image.numel() * image.element_size()

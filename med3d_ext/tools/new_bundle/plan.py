"""What a bundle for own data should look like, planned from the data: stages, grids, and epochs for the time given."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from med3d_ext.data.domains import STRIDE
from med3d_ext.engines import computes_bfloat16
from med3d_ext.errors import InputError
from med3d_ext.networks import DenseASPP, ResNetEncoder, SegmentationNetwork, SkipConnections
from med3d_ext.tools.layouts.prepare_3dseg8 import Found
from med3d_ext.tools.layouts.table import channels_of
from med3d_ext.transforms.load import ALL, load_volume
from med3d_ext.transforms.sampling import axis_spacing, box_to_ras, target_box, to_ras

MARGIN_MM = 20.0
WHOLE = 1 / 3
"""If the region of interest fills this share of a scan or more, a first stage that finds it gains too little."""

LOOKED_AT = 24  # labels
FINE_VOXELS, QUICK_VOXELS, COARSE_VOXELS = 96**3, 80**3, 80**3
QUICK_MINUTES = 30
BATCH = 2
STEPS, COARSE_STEPS = 2400, 600  # if no time is given
COARSE_SHARE = 0.2  # of the time
LOADING = 0.08  # s that a sample of a prepared volume takes next to the network
VALIDATIONS = 10
LONGEST = 2000  # epochs


@dataclass(frozen=True)
class Plan:
    """How a bundle trains: the grid (RAS order) and epochs of its last stage and of the first of two, and why."""

    stages: int
    grid: Sequence[int]
    epochs: int
    val_interval: int
    coarse_grid: Sequence[int]
    coarse_epochs: int
    reason: str


def grid_for(extent: np.ndarray, spacing: np.ndarray, voxels: int) -> list[int]:
    """A grid of at most ``voxels`` for a window of ``extent`` (mm): cubic voxels if the data have them.

    Its axes are multiples of the stride, none sampled finer than half the data's ``spacing`` (mm), which a stride of 8
    makes use of.
    """
    finest = np.asarray(spacing) / 2
    for voxel in itertools.count(float(finest.min()), 0.05):
        size = np.ceil(extent / np.maximum(voxel, finest) / STRIDE - 1e-6).astype(int) * STRIDE
        size = np.maximum(size, 2 * STRIDE)
        if np.prod(size) <= max(voxels, (2 * STRIDE) ** 3):
            return [int(each) for each in size]
    raise AssertionError


def plan_bundle(found: Found, classes: int, stages: int | None = None, minutes: float | None = None) -> Plan:
    """Plan a bundle from some of its data set's labels.

    Without ``stages``, two if the region of interest is a small part of the scans; without ``minutes`` for the whole
    training on this machine, as many steps as a small data set needs.

    Raises:
        InputError: ``minutes`` are too few for one epoch of each stage, or no label holds a target.
    """
    cases = found.source.cases
    chosen = cases[:: max(1, -(-len(cases) // LOOKED_AT))]
    background = {value for value, target in found.settings.merge.items() if target == 0} - {0}
    rows, begin = [], time.perf_counter()
    for case in chosen:
        label = load_volume(case["label"])
        ras, shape = to_ras(label.affine.numpy(), label.shape[1:])
        spacing = axis_spacing(label.affine.numpy() @ ras)
        values = label.as_tensor()
        for value in background:
            values = torch.where(values == value, 0, values)
        box = target_box(values)
        if box is not None:
            low, high = box_to_ras(box, ras) * spacing
            volume = shape * spacing
            rows.append((volume, np.minimum(high - low + 2 * MARGIN_MM, volume), spacing))
    if not rows:
        raise InputError(f"'{found.folder}': none of {len(chosen)} labels holds a target; label some cases first.")
    reading = (time.perf_counter() - begin) / len(chosen)  # s for a label
    share = float(np.median([np.prod(region / volume) for volume, region, _ in rows]))
    volume, region, spacing = (np.median(each, axis=0) for each in zip(*rows))

    two = (stages or (1 if share >= WHOLE else 2)) == 2
    voxels = QUICK_VOXELS if minutes is not None and minutes < QUICK_MINUTES else FINE_VOXELS
    extent = region if two else volume
    grid, coarse_grid = grid_for(extent, spacing, voxels), grid_for(volume, spacing, COARSE_VOXELS)
    steps = max(1, -(-round(0.8 * len(cases)) // BATCH))  # of an epoch: a tenth each for validation and test
    epochs, coarse_epochs, timing = -(-STEPS // steps), -(-COARSE_STEPS // steps), ""
    if minutes is not None:
        seconds = minutes * 60 * 0.9 - 45 - len(cases) * 4 * reading  # image and label, for facts and store
        channels = channels_of(found.source)[1] if found.source.channel == ALL else 1
        fine_step = step_seconds(own_network(classes, channels), grid, channels)
        coarse_step = step_seconds(own_network(2, channels), coarse_grid, channels) if two else 0.0
        first = COARSE_SHARE * seconds if two else 0.0
        epochs, coarse_epochs = (
            min(LONGEST, int(part / (1.1 * steps * (step + BATCH * LOADING)))) if step else 0
            for part, step in ((seconds - first, fine_step), (first, coarse_step))
        )
        if epochs < 1 or (two and coarse_epochs < 1):
            raise InputError(f"new-bundle: {minutes:g} minutes are too few for one epoch of {steps} steps; give more.")
        timing = f"; {epochs} epochs" + (f" after {coarse_epochs} coarse ones" if two else "")
        timing += f" in {minutes:g} minutes ({fine_step:.2f} s a step here)"
    grids = _described(grid, extent)
    if two:
        grids = f"coarse {_described(coarse_grid, volume)}; fine {grids}"
    text = f"{'two stages' if two else 'one stage'}{' (as asked)' if stages else ''}: the target with {MARGIN_MM:g} mm"
    text += f" around it fills {share:.0%} of a scan; {grids}{timing}"
    return Plan(1 + two, grid, epochs, max(1, epochs // VALIDATIONS), coarse_grid, coarse_epochs, text)


def _described(grid: Sequence[int], extent: np.ndarray) -> str:
    millimeters = " x ".join(f"{each:.1f}" for each in extent / np.asarray(grid))
    return f"{' x '.join(map(str, grid))} voxels of {millimeters} mm"


def own_network(classes: int, channels: int = 1) -> nn.Module:
    """The network of either stage, as the config composes it."""
    encoder = ResNetEncoder("resnet10", channels)
    decoder = DenseASPP(encoder.channels[-1])
    skips = SkipConnections(decoder.out_channels, encoder.channels)
    return SegmentationNetwork(encoder, decoder, classes, dropout=0.1, skips=skips)


def step_seconds(network: nn.Module, grid: Sequence[int], channels: int = 1, steps: int = 3) -> float:
    """Median seconds of a training step on noise, the first not counted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters())
    x, seconds = torch.randn(BATCH, channels, *grid, device=device), []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device)):
            loss = network(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:]))

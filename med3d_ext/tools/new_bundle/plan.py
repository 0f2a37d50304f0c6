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
from med3d_ext.transforms.load import load_volume
from med3d_ext.transforms.sampling import axis_spacing, box_to_ras, target_box, to_ras

MARGIN_MM = 20.0
WHOLE = 1 / 3
"""From this share on that the region of interest fills of a scan, a first stage that finds it gains too little."""

LOOKED_AT = 24  # labels
FINE_VOXELS, QUICK_VOXELS, COARSE_VOXELS = 96**3, 80**3, 80**3
QUICK_MINUTES = 30
BATCH = 2
STEPS, COARSE_STEPS = 2400, 600  # if no time is given
COARSE_SHARE = 0.2  # of the time
VALIDATIONS = 10
LONGEST = 2000  # epochs


@dataclass(frozen=True)
class Plan:
    """How a bundle trains.

    Args:
        stages: 1 or 2.
        grid: of the last stage, RAS order.
        epochs: of the last stage.
        val_interval: epochs between its validations.
        coarse_grid: of the first of two stages.
        coarse_epochs: its epochs.
        reason: what was chosen and why, for people.
    """

    stages: int
    grid: Sequence[int]
    epochs: int
    val_interval: int
    coarse_grid: Sequence[int]
    coarse_epochs: int
    reason: str


@dataclass(frozen=True)
class Extents:
    """Sizes of a data set (mm, RAS order): medians over its labels, and the seconds that reading a case takes."""

    volume: np.ndarray
    region: np.ndarray
    spacing: np.ndarray
    share: float
    cases: int
    seconds: float


def measure(found: Found) -> Extents:
    """Read some of a data set's labels.

    Raises:
        InputError: none of them holds what is to be segmented.
    """
    cases = found.source.cases
    chosen = cases[:: max(1, -(-len(cases) // LOOKED_AT))]
    background = {value for value, target in found.settings.merge.items() if target == 0} | {0}
    rows, begin = [], time.perf_counter()
    for case in chosen:
        label = load_volume(case["label"])
        ras, shape = to_ras(label.affine.numpy(), label.shape[1:])
        spacing = axis_spacing(label.affine.numpy() @ ras)
        values = label.as_tensor()
        for value in background - {0}:
            values = torch.where(values == value, 0, values)
        box = target_box(values)
        if box is not None:
            low, high = box_to_ras(box, ras) * spacing
            volume = shape * spacing
            rows.append((volume, np.minimum(high - low + 2 * MARGIN_MM, volume), spacing))
    if not rows:
        raise InputError(f"'{found.folder}': none of {len(chosen)} labels holds a target; label some cases first.")
    seconds = (time.perf_counter() - begin) / len(chosen)
    share = float(np.median([np.prod(region / volume) for volume, region, _ in rows]))
    volume, region, spacing = (np.median(each, axis=0) for each in zip(*rows))
    return Extents(volume, region, spacing, share, len(cases), seconds)


def grid_for(extent: np.ndarray, spacing: np.ndarray, voxels: int) -> list[int]:
    """A grid for a window of ``extent`` (mm): cubic voxels as far as the data have them, multiples of the stride.

    Args:
        extent: size of the window (mm).
        spacing: the data's spacing (mm); no axis is sampled finer than half of it, which a stride of 8 makes use of.
        voxels: most voxels of the grid.
    """
    finest = np.asarray(spacing) / 2
    for voxel in itertools.count(float(finest.min()), 0.05):
        size = np.ceil(extent / np.maximum(voxel, finest) / STRIDE - 1e-6).astype(int) * STRIDE
        size = np.maximum(size, 2 * STRIDE)
        if np.prod(size) <= max(voxels, (2 * STRIDE) ** 3):
            return [int(each) for each in size]
    raise AssertionError


def plan(found: Found, classes: int, stages: int | None = None, minutes: float | None = None) -> Plan:
    """Plan a bundle.

    Args:
        found: the data set.
        classes: number of classes, background counted.
        stages: 1 or 2. Defaults to None: two where the region of interest is a small part of the scans.
        minutes: how long the whole training may take on this machine, preparation and validation counted. Defaults to
            None: as many steps as a small data set needs.

    Raises:
        InputError: ``minutes`` are too few for one epoch of each stage, or a label holds no target.
    """
    sizes = measure(found)
    chosen = stages or (1 if sizes.share >= WHOLE else 2)
    voxels = QUICK_VOXELS if minutes is not None and minutes < QUICK_MINUTES else FINE_VOXELS
    extent = sizes.volume if chosen == 1 else sizes.region
    grid, coarse_grid = grid_for(extent, sizes.spacing, voxels), grid_for(sizes.volume, sizes.spacing, COARSE_VOXELS)
    steps = max(1, -(-round(0.8 * sizes.cases) // BATCH))  # of an epoch: a tenth each for validation and test
    epochs, coarse_epochs, timing = -(-STEPS // steps), -(-COARSE_STEPS // steps), ""
    if minutes is not None:
        seconds = minutes * 60 * 0.9 - 45 - sizes.cases * 4 * sizes.seconds  # image and label, for facts and store
        fine_step = step_seconds(own_network(classes), grid)
        coarse_step = 0.0 if chosen == 1 else step_seconds(own_network(2), coarse_grid)
        first = COARSE_SHARE * seconds if chosen == 2 else 0.0
        epochs, coarse_epochs = (
            min(LONGEST, int(share / (1.1 * steps * (step + BATCH * LOADING)))) if step else 0
            for share, step in ((seconds - first, fine_step), (first, coarse_step))
        )
        if epochs < 1 or (chosen == 2 and coarse_epochs < 1):
            raise InputError(f"new-bundle: {minutes:g} minutes are too few for one epoch of {steps} steps; give more.")
        timing = f"; {epochs} epochs" + (f" after {coarse_epochs} coarse ones" if chosen == 2 else "")
        timing += f" in {minutes:g} minutes ({fine_step:.2f} s a step here)"
    place = f"the target with {MARGIN_MM:g} mm around it fills {sizes.share:.0%} of a scan"
    asked = " (as asked)" if stages else ""
    text = f"{'one stage' if chosen == 1 else 'two stages'}{asked}: {place}"
    text += "" if chosen == 1 else f"; coarse {described(coarse_grid, sizes.volume)}"
    text += f"; {'' if chosen == 1 else 'fine '}{described(grid, extent)}{timing}"
    return Plan(chosen, grid, epochs, max(1, epochs // VALIDATIONS), coarse_grid, coarse_epochs, text)


LOADING = 0.08
"""Seconds that a sample of a prepared volume takes next to the network."""


def described(grid: Sequence[int], extent: np.ndarray) -> str:
    """A grid and its voxels for people."""
    millimeters = " x ".join(f"{each:.1f}" for each in extent / np.asarray(grid))
    return f"{' x '.join(map(str, grid))} voxels of {millimeters} mm"


def own_network(classes: int) -> nn.Module:
    """The network of either stage, as the config composes it."""
    encoder = ResNetEncoder("resnet10")
    decoder = DenseASPP(encoder.channels[-1])
    skips = SkipConnections(decoder.out_channels, encoder.channels)
    return SegmentationNetwork(encoder, decoder, classes, dropout=0.1, skips=skips)


def step_seconds(network: nn.Module, grid: Sequence[int], steps: int = 3) -> float:
    """Median seconds of a training step on noise, the first not counted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters())
    x, seconds = torch.randn(BATCH, 1, *grid, device=device), []
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

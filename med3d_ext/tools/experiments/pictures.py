"""The paper's figures 5, 6 (training curves) and 1 (segmentations at the same epoch) of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from med3d_ext.io.files import write_atomically
from med3d_ext.tools.experiments.arm_results import ArmResult
from med3d_ext.tools.experiments.curves import Curve

Panel = tuple[str, str, Mapping[str, Curve], Mapping[str, Any]]
"""Title, axis label, curves, and what :func:`~med3d_ext.tools.experiments.curves.iterations_to_reach` says of them."""


def draw_curves(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw a row of panels per share: means over the seeds, bands from the lowest to the highest seed."""
    # Not pyplot: its state and its choice of a screen belong to the caller.
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(6.5 * columns, 4.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (title, label, curves, reach) in zip(grid.flat, (panel for row in rows for panel in row)):
        for name, curve in curves.items():
            n = len(curve.seeds)
            seeds = "1 seed" if n == 1 else f"{n} seeds"
            marker = "." if len(curve.iterations) < 50 else None
            (line,) = axes.plot(curve.iterations, curve.mean, marker=marker, label=f"{name} ({seeds})")
            if n > 1:
                low, high = curve.values.min(axis=0), curve.values.max(axis=0)
                axes.fill_between(curve.iterations, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        if reach["level"] is not None:
            axes.axhline(reach["level"], color="gray", linestyle=":", label=f"end of {reach['reference']}")
        axes.set(title=title, xlabel="iteration", ylabel=label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)


def draw_overlays(path: Path, results: Sequence[ArmResult]) -> bool:
    """Draw one validation case at the same epochs of all arms: a column per arm, a row per epoch.

    Args:
        path: the PNG to write.
        results: one result per arm, all of one share, fold and seed.

    Returns:
        whether all arms have snapshots of the same case; else nothing is drawn.
    """
    from matplotlib.figure import Figure

    shots = {result.start: _snapshots(result.folder / "snapshots") for result in results}
    epochs = sorted(set.intersection(*(set(found) for found in shots.values())))
    if not epochs or len({str(shot["case"]) for found in shots.values() for shot in found.values()}) != 1:
        return False
    first = next(iter(shots.values()))[epochs[0]]
    height = 3 * first["image"].shape[0] * float(first["aspect"]) / first["image"].shape[1]
    size = (3 * len(shots), (height + 0.2) * len(epochs) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(epochs), len(shots), squeeze=False)
    for row, epoch in zip(grid, epochs):
        for axes, (name, found) in zip(row, shots.items()):
            _draw_slice(axes, found[epoch])
            axes.set_title(f"{name}, epoch {epoch}", fontsize="small")
    case = str(first["case"])
    figure.suptitle(
        f"validation case {case}, seed {results[0].facts['seed']}: prediction red, label green", fontsize="small"
    )
    with write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=100)
    return True


def _snapshots(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """Epoch to arrays."""
    found = {}
    for path in sorted(folder.glob("epoch_*.npz")):
        with np.load(path, allow_pickle=False) as content:
            found[int(path.stem.rpartition("_")[2])] = {key: content[key] for key in content.files}
    return found


def _draw_slice(axes: Any, shot: Mapping[str, np.ndarray]) -> None:
    image = shot["image"].astype(np.float32)
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", origin="lower", aspect=float(shot["aspect"]), vmin=low, vmax=high)
    for key, color in (("label", "lime"), ("prediction", "red")):
        for value in np.unique(shot[key])[1:] if (shot[key] == 0).any() else np.unique(shot[key]):
            mask = shot[key] == value
            if not mask.all():
                axes.contour(mask, levels=[0.5], colors=color, linewidths=1)
    axes.set_axis_off()

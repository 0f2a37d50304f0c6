"""Draw docs/picture.png, the picture at the top of the README: a liver in a public CT, and curves of transfer.

    python -m med3d_ext predict lits_fine torso_ct/example_ct_sm.nii.gz --output found
    python docs/picture.py torso_ct found/example_ct_sm_seg.nii.gz

``torso_ct`` holds ``example_ct_sm.nii.gz`` and ``example_seg.nii.gz``, test data of TotalSegmentator
(https://github.com/wasserth/TotalSegmentator, Apache-2.0). The curves are those of docs/results/transfer_search.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

DOCS = Path(__file__).parent
LIVER = 5  # in the label map of TotalSegmentator
ARMS = {
    "released_enc0.1": ("released encoder", "#c1272d", "-"),
    "scratch": ("from scratch", "#0072b2", "-"),
    "scratch_0.003": ("from scratch, learning rate x 3", "#0072b2", ":"),
}
TASKS = {"Abdomen_MR": "4 organs in MR", "Heart_CMR": "heart in cine MR"}


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def draw_liver(axes, folder: Path, found: Path) -> None:
    """The axial slice with most liver, the patient's right on the left."""
    image, truth = voxels(folder / "example_ct_sm.nii.gz"), voxels(folder / "example_seg.nii.gz") == LIVER
    mask = voxels(found) > 0
    index = int(truth.sum(axis=(0, 1)).argmax())
    axes.imshow(np.flipud(image[::-1, :, index].T), cmap="gray", vmin=-150, vmax=250, interpolation="bicubic")
    for shape, color, width, style in ((truth, "#56b4e9", 1.2, "--"), (mask, "#ff4b4b", 1.8, "-")):
        axes.contour(np.flipud(shape[::-1, :, index].T), levels=[0.5], colors=color, linewidths=width, linestyles=style)
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    axes.set_title(f"lits_fine (red) and TotalSegmentator (blue)\nDice of the two {dice:.2f}", fontsize=9)
    axes.axis("off")


def draw_curves(axes, task: str) -> None:
    """Dice on whole test volumes after so many training steps."""
    rows = json.loads((DOCS / "results" / "transfer_search.json").read_text(encoding="utf-8"))["rows"]
    for arm, (name, color, style) in ARMS.items():
        own = sorted((row["step"], row["mean"]) for row in rows if (row["task"], row["arm"]) == (task, arm))
        axes.plot(*zip(*own), style, color=color, marker="o", markersize=3, label=name)
    cases = len({case for row in rows if row["task"] == task for case in row["dice"]})
    axes.set_title(f"Fine-tuning: {TASKS[task]}\n{cases} test cases, one seed", fontsize=9)
    axes.set_xlabel("training steps", fontsize=8)
    axes.set_ylabel("Dice", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def main(folder: str, found: str) -> None:
    figure, (left, *right) = plt.subplots(1, 3, figsize=(9.6, 3.1), width_ratios=[1.25, 1, 1])
    draw_liver(left, Path(folder), Path(found))
    for axes, task in zip(right, TASKS):
        draw_curves(axes, task)
    right[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(DOCS / "picture.png", dpi=125, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Draw the figures of docs/results.md from the records next to this file.

    python docs/results/figures.py

Each row of a figure is one record and domain: a dot for each test case, the mean with its 95 % interval, and the
paper's figure as a cross if it has one. Run it again after a record has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).parent
METRIC = "val_mean_dice"
PAPER = {  # table 2, eight domains
    "Task01_BrainTumour": 0.554,
    "Task04_Hippocampus": 0.909,
    "Task05_Prostate": 0.751,
    "Task03_Liver": 0.901,
    "Task02_Heart": 0.910,
    "Task07_Pancreas": 0.743,
    "Task08_HepaticVessel": 0.545,
    "Task09_Spleen": 0.938,
}
LITS = 0.946  # table 5, two stages
FIGURES = {  # name of the picture: label of each record's rows
    "lits": {
        "lits_fine_cascade": "two stages",
        "lits_fine_sliding": "fine network slid",
        "lits_fine_coarse": "coarse network alone",
        "lits_coarse_stride8": "first stage, stride 8",
        "lits_coarse_stride32": "first stage, stride 32",
    },
    "own": {
        "own_spleen": "spleen",
        "own_pancreas": "pancreas",
        "own_atrium": "left atrium",
        "own_mr": "4 organs in MR",
    },
    "pretrain": {"pretrain_released": "", "pretrain_eight_domains": "cross-entropy alone"},
    "hippocampus": {"pretrain_hippocampus_large_grid": "96 x 144 x 96", "pretrain_hippocampus": "80 x 120 x 80"},
}


def rows_of(figure: str, record: str, label: str) -> list[tuple[str, dict, list[float], float | None]]:
    """Label, mean with interval, cases and the paper's figure of each domain of a record."""
    content = json.loads((FOLDER / f"{record}.json").read_text(encoding="utf-8"))
    found = []
    for domain, metrics in content["test"]["domains"].items():
        cases = [row[METRIC] for row in content["cases"] if row["domain"] == domain and row[METRIC] == row[METRIC]]
        name = domain.split("_", 1)[-1]
        text = label if figure != "pretrain" else f"{name}, {label}" if label else name
        paper = LITS if record == "lits_fine_cascade" else PAPER.get(domain) if figure == "pretrain" else None
        found.append((text, metrics[METRIC], cases, paper))
    return found


def draw(figure: str) -> None:
    """Write one picture."""
    rows = [row for record, label in FIGURES[figure].items() for row in rows_of(figure, record, label)]
    if figure == "pretrain":
        rows.sort(key=lambda row: row[0])
    canvas, axes = pyplot.subplots(figsize=(7, 0.6 + 0.34 * len(rows)), layout="constrained")
    for place, (_, facts, cases, paper) in enumerate(rows):
        axes.plot(cases, [place] * len(cases), "o", color="0.6", markersize=4, alpha=0.7, zorder=1)
        if facts["interval_95"]:
            axes.plot(facts["interval_95"], [place, place], "-", color="#0072b2", linewidth=3, zorder=2)
        axes.plot(facts["mean"], place, "D", color="#0072b2", markersize=6, zorder=3)
        if paper:
            axes.plot(paper, place, "x", color="#c1272d", markersize=7, zorder=3)
    axes.set_yticks(range(len(rows)), [f"{text}  (n = {facts['n']})" for text, facts, _, _ in rows])
    axes.set(
        ylim=(len(rows) - 0.5, -0.5),
        xlim=(-0.02, 1),
        xlabel="Dice of the test cases; blue: mean, 95 % interval; cross: the paper",
    )
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.savefig(FOLDER / f"{figure}.png", dpi=110, metadata={"Software": None})
    pyplot.close(canvas)


if __name__ == "__main__":
    for name in FIGURES:
        draw(name)

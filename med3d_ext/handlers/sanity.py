"""What a training is about to learn, for the eye: labels on their images, and what is odd about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine

from med3d_ext.data.prepared_files import absent_classes
from med3d_ext.handlers.base import Handler
from med3d_ext.handlers.overlay import draw_slices, gray_range, slice_through, to_radiological
from med3d_ext.io.files import case_name, write_atomically, write_json

logger = logging.getLogger("med3d_ext.sanity")
TINY_VOXELS = 10
COLORS = ("lime", "red", "deepskyblue", "orange", "magenta", "yellow")


@dataclass(eq=False)
class SanitySheet(Handler):
    """Before the first epoch, write ``sanity.png`` and ``sanity.json``: training cases and what is odd about them.

    The picture shows an axial and a coronal slice through the label of a few cases, odd ones first, as the network is
    given them before its random transforms: the patient's right is on the left, each class has its contour. A label
    that is mirrored or elsewhere shows. The lines come from the facts of all training cases and are warnings, not
    errors.

    Args:
        output_dir: folder of the two files, made if missing.
        dataset: the :class:`~med3d_ext.data.SeededDataset` that is trained on.
        data: the :class:`~med3d_ext.data.PreparedData` with the facts of its cases. Defaults to None, no facts.
        maximum: cases in the picture. Defaults to 6.
    """

    output_dir: str
    dataset: Any
    data: Any = None
    maximum: int = 6

    def started(self, engine: Engine) -> None:
        domains, every = ({}, {}) if self.data is None else (self.data.domains, self.data.cases)
        known = {(name, case["image"]): case for name, cases in every.items() for case in cases}
        odd: dict[int, list[str]] = {}
        for number, item in enumerate(self.dataset.data):
            case = known.get((item.get("domain"), item["image"]))
            if case is not None and item["label"] is not None:
                odd[number] = list(case_oddities(case, domains[item["domain"]]))
        chosen = choose(self.dataset.data, odd, self.maximum)
        drawn = {number: self.dataset.before_random(number) for number in chosen}
        for number, item in drawn.items():
            odd[number] = odd.get(number, []) + list(picture_oddities(item["image"], item["label"]))
        lines = [
            f"{name}: {sentence}"
            for name, cases in every.items()
            if cases
            for sentence in absent_classes(domains[name], cases)
        ]
        names = {number: case_name(self.dataset.data[number]["image"]) for number in {*odd, *chosen}}
        lines += [f"{names[number]}: {fault}" for number, faults in sorted(odd.items()) for fault in faults]
        for line in lines:
            logger.warning(line)
        facts = {"cases": [names[number] for number in chosen], "oddities": lines}
        write_json(Path(self.output_dir) / "sanity.json", facts)
        if drawn:
            self._draw({names[number]: (item, odd[number]) for number, item in drawn.items()})

    def _draw(self, cases: Mapping[str, tuple[Any, Sequence[str]]]) -> None:
        from matplotlib.figure import Figure

        rows = -(-len(cases) // 2)
        figure = Figure(figsize=(14, 3.8 * rows), layout="constrained")
        panels = figure.subplots(rows, 4, squeeze=False)
        for panel in panels.flat:
            panel.set_axis_off()
        for pair, (name, (item, faults)) in zip(panels.reshape(-1, 2), cases.items()):
            volumes = (item[key].float() for key in ("image", "label"))
            (image, label), spacing = to_radiological(item["image"].affine, *volumes)
            classes = [int(value) for value in np.unique(label) if value > 0]
            masks = [(label == value, COLORS[(value - 1) % len(COLORS)]) for value in classes]
            draw_slices(pair, image, masks, spacing, slice_through(label > 0))
            volume = ", ".join(f"{value}: {(label == value).sum() * spacing.prod() / 1000:.3g} ml" for value in classes)
            head = f"{name} ({volume or 'no label'})"
            pair[0].set_title("\n".join([head, *faults]), fontsize=9, color="red" if faults else "black", loc="left")
        with write_atomically(Path(self.output_dir) / "sanity.png") as file:
            figure.savefig(file, dpi=80, format="png")


def case_oddities(case: Mapping[str, Any], domain: Mapping[str, Any]) -> Iterator[str]:
    """What is odd about a labeled case by what a scan found of it, and by its domain's facts."""
    foreground = sum(count for value, count in (case.get("labels") or {}).items() if int(value) > 0)
    if not foreground:
        yield "the label has no foreground"
    elif foreground < TINY_VOXELS:
        yield f"the label has {foreground} voxels only"
    if box := case.get("target_box"):
        faces = sum(low == 0 for low in box[0]) + sum(high == size for high, size in zip(box[1], case["shape"]))
        if faces:
            yield f"the label touches {faces} of the 6 faces of the image"
    spacing, median = case.get("spacing"), domain.get("spacing_median")
    if spacing and median:
        ratio = max(max(a / b, b / a) for a, b in zip(sorted(spacing), sorted(median)))
        if ratio > 3 or not all(0.05 <= size <= 20 for size in spacing):
            texts = (" x ".join(f"{value:.3g}" for value in values) for values in (spacing, median))
            yield "its spacing {} mm is far from the median {} mm".format(*texts)
    if intensity := case.get("intensity"):
        low, high = intensity["minimum"], intensity["maximum"]
        is_ct = domain.get("modality") == "CT" or "hu_window" in domain
        if is_ct and not (low < -50 and high < 50_000):
            yield f"its values from {low:g} to {high:g} are not the HU of a CT"
        if low == high:
            yield "all voxels of the image are equal"


def picture_oddities(image: Any, label: Any) -> Iterator[str]:
    """What is odd about a label on its image (C, X, Y, Z): it lies where the image is as dark as it gets."""
    voxels, inside = np.asarray(image)[:1].astype(np.float32), np.asarray(label) > 0
    low, high = gray_range(voxels)
    if inside.any() and high > low:
        share = float((voxels[inside] <= low + 0.02 * (high - low)).mean())
        if share > 0.5:
            yield f"{share:.0%} of the label is on the darkest background"


def choose(items: Sequence[Mapping[str, Any]], odd: Mapping[int, Sequence[str]], maximum: int) -> list[int]:
    """Numbers of the items to draw: odd ones, then one of each domain, then spread over the rest."""
    labelled = [number for number, item in enumerate(items) if item["label"] is not None]
    firsts = list({items[number].get("domain"): number for number in reversed(labelled)}.values())
    spread = [labelled[round(place)] for place in np.linspace(0, len(labelled) - 1, maximum)] if labelled else []
    # Half of the picture at most is for odd ones: it should show what is usual, too.
    wanted = [number for number in labelled if odd.get(number)][: (maximum + 1) // 2]
    return list(dict.fromkeys([*wanted, *firsts, *spread]))[:maximum]

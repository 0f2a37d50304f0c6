"""What a training is about to learn, for the eye: labels on their images, and what is odd about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from med3d_ext.data.prepared_files import absent_classes
from med3d_ext.handlers.overlay import draw_panel, gray_range, ras_order, slice_through, to_radiological
from med3d_ext.io.files import case_name, write_atomically, write_json
from med3d_ext.run.rank import rank

logger = logging.getLogger("med3d_ext.sanity")
TINY_VOXELS = 10
COLORS = ("lime", "red", "deepskyblue", "orange", "magenta", "yellow")


class SanitySheet:
    """Before the first epoch, write ``sanity.png`` and ``sanity.json``: training cases and what is odd about them.

    The picture shows an axial and a coronal slice through the label of a few cases, odd ones first, as the network is
    given them before its random transforms: the patient's right is on the left, each class has its contour. A label
    that is mirrored or elsewhere shows. The lines come from the facts of all training cases and are warnings, not
    errors. Rank 0 writes.

    Args:
        output_dir: folder of the two files, made where missing.
        dataset: the :class:`~med3d_ext.data.SeededDataset` that is trained on.
        data: the :class:`~med3d_ext.data.PreparedData` with the facts of its cases. Defaults to None, no facts.
        maximum: cases in the picture. Defaults to 6.
    """

    def __init__(self, output_dir: str, dataset: Any, data: Any = None, maximum: int = 6) -> None:
        self.folder = Path(output_dir)
        self.dataset = dataset
        self.domains: Mapping[str, Mapping[str, Any]] = {} if data is None else data.domains
        self.cases: Mapping[str, Sequence[Mapping[str, Any]]] = {} if data is None else data.cases
        self.maximum = maximum

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if rank() == 0:
            engine.add_event_handler(Events.STARTED, self.write)

    def write(self, engine: Engine) -> None:
        """Look at the cases, draw some, and log what is odd."""
        known = {(name, case["image"]): case for name, cases in self.cases.items() for case in cases}
        odd: dict[int, list[str]] = {}
        for number, item in enumerate(self.dataset.data):
            case = known.get((item.get("domain"), item["image"]))
            if case is not None and item["label"] is not None:
                odd[number] = list(case_oddities(case, self.domains[item["domain"]]))
        chosen = choose(self.dataset.data, odd, self.maximum)
        drawn = {number: self.dataset.before_random(number) for number in chosen}
        for number, item in drawn.items():
            odd[number] = odd.get(number, []) + list(picture_oddities(item["image"], item["label"]))
        lines = [
            f"{name}: {sentence}"
            for name, cases in self.cases.items()
            if cases
            for sentence in absent_classes(self.domains[name], cases)
        ]
        names = {number: case_name(self.dataset.data[number]["image"]) for number in {*odd, *chosen}}
        lines += [f"{names[number]}: {fault}" for number, faults in sorted(odd.items()) for fault in faults]
        for line in lines:
            logger.warning(line)
        write_json(self.folder / "sanity.json", {"cases": [names[number] for number in chosen], "oddities": lines})
        self._draw({names[number]: (item, odd[number]) for number, item in drawn.items()})

    def _draw(self, cases: Mapping[str, tuple[Any, Sequence[str]]]) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        if not cases:
            return
        rows = -(-len(cases) // 2)
        figure, axes = pyplot.subplots(rows, 4, figsize=(14, 3.8 * rows), squeeze=False, layout="constrained")
        for panel in axes.flat:
            panel.set_axis_off()
        for place, (name, (item, faults)) in enumerate(cases.items()):
            pair = axes[place // 2, 2 * (place % 2) : 2 * (place % 2) + 2]
            affine = item["image"].affine
            image, label = (to_radiological(item[key].float(), affine) for key in ("image", "label"))
            spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)[ras_order(affine)]
            classes = [int(value) for value in np.unique(label) if value > 0]
            masks = [(label == value, COLORS[(value - 1) % len(COLORS)]) for value in classes]
            center = slice_through(label > 0)
            for panel, axis in zip(pair, (2, 1)):
                draw_panel(panel, image, masks, axis, center[axis], spacing, gray_range(image))
            volume = ", ".join(f"{value}: {(label == value).sum() * spacing.prod() / 1000:.3g} ml" for value in classes)
            head = f"{name} ({volume or 'no label'})"
            pair[0].set_title("\n".join([head, *faults]), fontsize=9, color="red" if faults else "black", loc="left")
        with write_atomically(self.folder / "sanity.png") as file:
            figure.savefig(file, dpi=80, format="png")
        pyplot.close(figure)


def case_oddities(case: Mapping[str, Any], domain: Mapping[str, Any]) -> Iterator[str]:
    """What is odd about a labeled case by what a scan found of it, and by its domain's facts."""
    counts = {int(value): count for value, count in (case.get("labels") or {}).items()}
    foreground = sum(count for value, count in counts.items() if value > 0)
    if not foreground:
        yield "the label has no foreground"
    elif foreground < TINY_VOXELS:
        yield f"the label has {foreground} voxels only"
    box = case.get("target_box")
    if box:
        faces = sum(low == 0 for low in box[0]) + sum(high == size for high, size in zip(box[1], case["shape"]))
        if faces:
            yield f"the label touches {faces} of the 6 faces of the image"
    median = domain.get("spacing_median")
    if case.get("spacing") and median:
        ratio = max(max(a / b, b / a) for a, b in zip(sorted(case["spacing"]), sorted(median)))
        if ratio > 3 or not all(0.05 <= size <= 20 for size in case["spacing"]):
            yield f"its spacing {_numbers(case['spacing'])} mm is far from the median {_numbers(median)} mm"
    intensity = case.get("intensity")
    if intensity and _is_ct(domain) and not (intensity["minimum"] < -50 and intensity["maximum"] < 50_000):
        yield f"its values from {intensity['minimum']:g} to {intensity['maximum']:g} are not the HU of a CT"
    if intensity and intensity["minimum"] == intensity["maximum"]:
        yield "all voxels of the image are equal"


def picture_oddities(image: Any, label: Any) -> Iterator[str]:
    """What is odd about a label on its image (1, X, Y, Z): it lies where the image is as dark as it gets."""
    voxels, inside = np.asarray(image).astype(np.float32), np.asarray(label) > 0
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


def _is_ct(domain: Mapping[str, Any]) -> bool:
    return domain.get("modality") == "CT" or "hu_window" in domain


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)

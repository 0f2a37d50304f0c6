"""What a case leaves behind: label map, picture and facts, all of them or none; and what became of all cases."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor

from med3d_ext.errors import InputError
from med3d_ext.handlers.overlay import draw_overlay
from med3d_ext.io.files import read_json, write_json
from med3d_ext.io.label_maps import write_label_map
from med3d_ext.run.provenance import command_line, versions
from med3d_ext.tools.predict.predictor import LabelMap
from med3d_ext.transforms.sampling import axis_spacing

MAP, FACTS, PICTURE, SEGMENTATION = "_seg.nii.gz", "_seg.json", "_preview.png", "_seg.dcm"
"""How the names of a case's files end; `monai.bundle run` gives the label map the same name."""


@dataclass(frozen=True)
class Case:
    """One image to segment."""

    name: str  # what its results are called
    image: str  # its file, or the folder of its DICOM series
    source: str = ""  # what it was made of, if that is another file


@dataclass(frozen=True)
class Origin:
    """What makes results: two of them that differ in any of these are not the same."""

    bundle: str
    version: str
    weights: str  # SHA-256
    options: dict[str, Any]  # those of the config that were given

    def of(self, case: Case) -> dict[str, Any]:
        """What a case's JSON says about where it comes from."""
        facts = {"image": case.source or case.image, "bundle": self.bundle, "version": self.version}
        return {**facts, "weights_sha256": self.weights, "options": self.options}


def is_done(output: Path, case: Case, origin: Origin, dicom_seg: bool = False) -> bool:
    """Whether the folder has a result of this bundle, weights and image, with a DICOM segmentation if one is wanted.

    Raises:
        InputError: another result has its place.
    """
    path, facts = (output / f"{case.name}{ending}" for ending in (MAP, FACTS))
    if not path.exists():
        return False
    found = read_json(facts) if facts.is_file() else {}
    differing = [key for key, value in origin.of(case).items() if found.get(key) != value]
    if differing:
        others = ", ".join(key.removesuffix("_sha256") for key in differing)
        raise InputError(f"'{path}' is the result of another {others}; choose another --output or give --overwrite.")
    return not dicom_seg or (output / f"{case.name}{SEGMENTATION}").exists()


def volumes(result: LabelMap, names: Mapping[int, str], is_scaled: bool = True) -> dict[str, dict[str, Any]]:
    """Name, voxels and volume (ml) of every label, by its value; a value without a name is called "label N".

    ``is_scaled``: whether the affine's voxel size is the image's own; without it there is no volume (None).
    """
    voxels: Counter[int] = Counter()
    for plane in result.labels:  # numpy counts with 8 bytes for each voxel
        values, counts = np.unique(plane, return_counts=True)
        voxels.update(dict(zip(values.tolist(), counts.tolist())))
    milliliters = abs(float(np.linalg.det(result.affine[:3, :3]))) / 1000
    return {
        str(value): {
            "name": names.get(value, f"label {value}"),
            "voxels": voxels[value],
            "volume_ml": round(voxels[value] * milliliters, 3) if is_scaled else None,
        }
        for value in sorted({*names, *voxels} - {0})
    }


def write_results(
    output: Path,
    case: Case,
    result: LabelMap,
    image: MetaTensor,
    names: Mapping[int, str],
    facts: Mapping[str, Any],
    write_segmentation: Callable[[Path], None] | None = None,
    sources: Mapping[int, Sequence[int]] | None = None,
) -> None:
    """Write a case's files as temporary neighbors of their places and move them there, the label map last.

    A map in its place thus says that the case is complete. ``image`` is for the picture, ``facts`` for the JSON next to
    shape, spacing and orientation; ``write_segmentation`` writes the DICOM segmentation to a path.
    """
    scratch = output / f".{case.name}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    scratch.mkdir(parents=True)
    try:
        path, about, picture, segmentation = (
            scratch / f"{case.name}{end}" for end in (MAP, FACTS, PICTURE, SEGMENTATION)
        )
        plain = MetaTensor(image.as_tensor(), affine=torch.from_numpy(result.affine))
        draw_overlay(picture, plain, torch.from_numpy(result.labels)[None])
        if write_segmentation is not None:
            write_segmentation(segmentation)
        grid = {
            "shape": list(result.labels.shape),
            "spacing": [round(float(size), 6) for size in axis_spacing(result.affine)],
            "orientation": "".join(nibabel.aff2axcodes(result.affine)),
        }
        write_json(scratch / f"{case.name}{FACTS}", {**facts, **grid})
        write_label_map(path, result.labels, result.affine, names, case.image, sources)
        for file in sorted(scratch.iterdir(), key=lambda each: each == path):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    case: str  # its name, or what was typed where no image was found
    status: str  # "done", "skipped" (its result was there) or "failed"
    reason: str = ""  # of a failure, a sentence
    seconds: float = 0.0
    labels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name, voxels and volume of each
    warnings: tuple[str, ...] = ()  # what must be known about its result, a sentence each

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.case} FAILED: {self.reason}"
        if self.status == "skipped":
            return f"{self.case}: already has a result, skipped (--overwrite replaces it)"
        sizes = [(each["name"], each["volume_ml"]) for each in self.labels.values()]
        found = [f"{name} {'of unknown volume' if size is None else f'{size:.1f} ml'}" for name, size in sizes]
        return f"{self.case}: {', '.join(found)}; {self.seconds:.1f} s"


class Summary:
    """Outcomes of one run of ``total`` cases, written to ``summary.json`` after each, with where they come from."""

    def __init__(self, path: Path, origin: Mapping[str, Any], total: int) -> None:
        self.path, self.origin, self.total = path, origin, total
        self.outcomes: list[Outcome] = []
        self._begin = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Note an outcome and write the file."""
        self.outcomes.append(outcome)
        content = {
            **command_line(),
            **self.origin,
            "versions": versions(),
            "complete": len(self.outcomes) == self.total,
            "seconds": round(time.monotonic() - self._begin, 2),
            "done": [
                {key: getattr(each, key) for key in ("case", "seconds", "labels", "warnings")}
                for each in self.of("done")
            ],
            "skipped": [each.case for each in self.of("skipped")],
            "failed": [{"case": each.case, "reason": each.reason} for each in self.of("failed")],
        }
        write_json(self.path, content)

    def of(self, status: str) -> list[Outcome]:
        """The outcomes of one status."""
        return [each for each in self.outcomes if each.status == status]

    @property
    def seconds_left(self) -> float:
        """How long the other cases will take if they take as long as those so far."""
        return (time.monotonic() - self._begin) / len(self.outcomes) * (self.total - len(self.outcomes))

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self.of(status))} {status}" for status in ("done", "skipped", "failed"))
        warned = [f"  {each.case}: {sentence}" for each in self.of("done") for sentence in each.warnings]
        failed = [f"  {each}" for each in self.of("failed")]
        return "\n".join([*(["warnings:", *warned] if warned else []), *failed, f"{counts}; see '{self.path}'"])

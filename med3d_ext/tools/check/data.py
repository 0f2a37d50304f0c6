"""The data set as a run would take it: prepared by the run's own code, so that the run does not do it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import list_images
from med3d_ext.data.leakage import seen_cases
from med3d_ext.data.prepared_files import header_of
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.tools.check.configs import BundleConfigs, quiet
from med3d_ext.tools.check.findings import Finding, error, ok, warning
from med3d_ext.weights.initial import find_weights

LABELLED = ("dataset.json", "datalist.json", "*/dataset.json", "labels*", "**/volume-*", "*.csv")


def check_data(configs: BundleConfigs) -> Iterator[Finding]:
    """Every file, the label values and the split; or the images alone, where the folder holds no labels."""
    dataset_dir = configs.overrides.get("dataset_dir")
    if dataset_dir is None:
        yield warning("data", "no --dataset_dir: a run takes generated phantoms, whose figures say nothing.")
        return
    if _is_unlabelled(Path(str(dataset_dir)).expanduser()):
        yield from _check_images(str(dataset_dir))
        return
    data = configs.value("train", "data")
    for name, facts in data.fingerprint["domains"].items():
        yield from _check_domain(data, name, facts)
    yield from _check_leakage(configs, data)


def _is_unlabelled(folder: Path) -> bool:
    if any(next(folder.glob(pattern), None) for pattern in LABELLED):
        return False
    try:
        return bool(list_images(folder))
    except InputError:
        return False


def _check_images(folder: str) -> Iterator[Finding]:
    """Headers alone: what inference would refuse before it computes."""
    images = [item["image"] for item in list_images(folder)]
    bad = 0
    for image in images:
        try:
            if header_of(image)["spacing"] is None:
                yield warning("data", f"'{image}' has no usable voxel spacing; that of the training is taken.")
        except InputError as fault:
            bad += 1
            yield error("data", str(fault))
    if bad < len(images):
        yield ok("data", f"{len(images) - bad} images without labels in '{folder}': for inference alone")


def _check_domain(data: Any, name: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    cases = facts["cases"]
    counts = {split: sum(item["domain"] == name for item in data.items(split)) for split in SPLITS}
    yield ok("data", f"{name}: {len(cases)} cases, " + ", ".join(f"{n} {split}" for split, n in counts.items()))
    if counts["training"] == 0:
        yield error("data", f"{name} has no training case; give more labelled cases.")
    if counts["validation"] == 0:
        yield warning("data", f"{name} is too small for validation cases: training cases choose the best epoch.")
    if counts["test"] == 0:
        yield warning("data", f"{name} has no test case: no evaluation; give more labelled cases.")
    seen: Counter[str] = Counter(value for case in cases for value in case.get("labels", {}))
    for value, class_name in facts.get("classes", {}).items():
        if seen and seen[str(value)] == 0:
            yield warning("data", f"{name}: no label holds the value {value} ({class_name}); is it the right data set?")


def _check_leakage(configs: BundleConfigs, data: Any) -> Iterator[Finding]:
    """Whether the weights that an evaluation would take have seen its test cases."""
    try:
        with quiet():
            card = find_weights(configs.folder, configs.value("train", "ckpt_dir")).with_name("card.json")
        seen = seen_cases(card)
    except InputError:
        return  # without weights or card there is nothing to compare
    leaks = [item for item in data.items("test") if item["sha256"] in seen]
    if leaks:
        name = Path(leaks[0]["image"]).name
        yield warning("data", f"the weights have seen {len(leaks)} of the test cases, '{name}' first: train anew.")

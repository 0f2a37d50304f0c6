"""The data set as a run would take it: prepared by the run's own code, so that the run does not do it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from med3d_ext.data.datalists import list_images, named_images
from med3d_ext.data.leakage import seen_cases
from med3d_ext.data.prepared_files import DATALIST, absent_classes
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.run.one_line import heard_warnings
from med3d_ext.tools.bundle_folder import Bundle, quiet
from med3d_ext.tools.check.findings import Finding, error, ok, warning
from med3d_ext.tools.layouts.table import layout_of
from med3d_ext.tools.lidc.xml import is_lidc
from med3d_ext.transforms.load import LoadVolumed


def check_data(bundle: Bundle) -> Iterator[Finding]:
    """Every file, the label values and the split; or the images alone, read as inference reads them."""
    dataset_dir = bundle.overrides.get("dataset_dir")
    if dataset_dir is None:
        if bundle.merged("train")["data"].get("phantoms", True):
            yield warning("data", "no --dataset_dir: a run uses generated phantoms, whose figures say nothing.")
        else:
            yield warning("data", "no --dataset_dir: this bundle needs its own data, and so does a run.")
        return
    if is_unlabelled(dataset_dir):
        yield from _check_images(bundle, str(dataset_dir))
        return
    data = bundle.value("train", "data")
    for name, facts in data.domains.items():
        yield from _check_domain(data, name, facts)
    yield from _check_leakage(bundle, data)


def is_unlabelled(dataset_dir: Any) -> bool:
    """Whether a folder holds images and nothing that names or holds labels: it is for inference alone."""
    folder = Path(str(dataset_dir)).expanduser()
    inside = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if (folder / DATALIST).is_file() or any(map(layout_of, [folder, *inside])) or is_lidc(folder):
        return False
    try:
        return bool(list_images(folder))
    except InputError:
        return False


def _check_images(bundle: Bundle, folder: str) -> Iterator[Finding]:
    """Each image as the run would read it: what is refused, and what is warned of."""
    load = _inference_reader(bundle)
    items = named_images([folder])[0]
    for item in items:
        with heard_warnings(alone=True) as heard:
            try:
                bundle.image_sizes.append(load({"image": item["image"]})["image"].numel())
            except InputError as fault:
                yield error("data", str(fault))
        for sentence in heard:
            yield warning("data", sentence)
    if bundle.image_sizes:
        yield ok("data", f"{len(bundle.image_sizes)} images without labels in '{folder}': for inference only")


def _inference_reader(bundle: Bundle) -> LoadVolumed:
    """The first transform of inference; without weights, whose facts it needs, one with the defaults."""
    try:
        with quiet():
            transforms = bundle.value("inference", "preprocessing").transforms
    except Exception:  # the check of the weights says why
        transforms = []
    found = [each for each in transforms if isinstance(each, LoadVolumed)]
    return found[0] if found else LoadVolumed("image", default_spacing=(1.0, 1.0, 1.0))


def _check_domain(data: Any, name: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    counts = {split: sum(item["domain"] == name for item in data.items(split)) for split in SPLITS}
    parts = ", ".join(f"{n} {split}" for split, n in counts.items())
    yield ok("data", f"{name}: {sum(counts.values())} cases, {parts}")
    if counts["training"] == 0:
        yield error("data", f"{name} has no training case; give more labeled cases.")
    if counts["validation"] == 0:
        yield warning("data", f"{name} is too small for validation cases: the best epoch is chosen on training cases.")
    if counts["test"] == 0:
        yield warning("data", f"{name} has no test case: no evaluation; give more labeled cases.")
    for sentence in absent_classes(facts, data.cases[name]):
        yield warning("data", f"{name}: {sentence}; is it the right data set?")


def _check_leakage(bundle: Bundle, data: Any) -> Iterator[Finding]:
    """Whether the weights that an evaluation would take have seen its test cases."""
    try:
        seen = seen_cases(bundle.card())
    except InputError:
        return  # without weights or card there is nothing to compare
    leaks = [item for item in data.items("test") if item["sha256"] in seen]
    if leaks:
        name = Path(leaks[0]["image"]).name
        yield warning("data", f"the weights have seen {len(leaks)} of the test cases, '{name}' first: train again.")

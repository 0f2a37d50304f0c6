"""The branches of pretrained weights: which domains, with how many classes."""

from __future__ import annotations

from pathlib import Path

from med3d_ext.io.facts import facts_path, read_facts

# 3DSeg-8 on the Decathlon's labels, liver and tumor merged: what a network without weights is built with.
DECATHLON_CLASSES = {
    "Task01_BrainTumour": 4,
    "Task04_Hippocampus": 3,
    "Task05_Prostate": 3,
    "Task03_Liver": 2,
    "Task02_Heart": 2,
    "Task07_Pancreas": 3,
    "Task08_HepaticVessel": 3,
    "Task09_Spleen": 2,
}


def branch_classes(bundle_root: str, ckpt_dir: str | None = None) -> dict[str, int]:
    """Domain to number of classes of the weights that inference takes; the Decathlon's where there are no weights yet.

    The network can then be built, checked and exported before anything was trained.

    Args:
        bundle_root: the bundle's folder.
        ckpt_dir: where its training writes. Defaults to None: ``models`` in the bundle.
    """
    return _classes_of_weights(bundle_root, ckpt_dir) or dict(DECATHLON_CLASSES)


def class_count(bundle_root: str, ckpt_dir: str | None = None, default: int = 2) -> int:
    """Number of classes of the weights that the inference of a one-domain bundle takes.

    Args:
        bundle_root: the bundle's folder.
        ckpt_dir: where its training writes. Defaults to None: ``models`` in the bundle.
        default: what a network without weights is built with. Defaults to 2.
    """
    return next(iter(_classes_of_weights(bundle_root, ckpt_dir).values()), default)


def _classes_of_weights(bundle_root: str, ckpt_dir: str | None) -> dict[str, int]:
    for folder in (Path(ckpt_dir or Path(bundle_root) / "models"), Path(bundle_root) / "weights"):
        if (folder / "model.pt").is_file() and facts_path(folder) is not None:
            return {name: len(domain["classes"]) for name, domain in read_facts(folder)["domains"].items()}
    return {}

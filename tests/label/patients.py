"""What a server needs of each bundle: the bundle as it is packed, weights, a folder of studies with labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from med3d_ext.tools.phantoms.dataset import phantom_dataset

REPOSITORY = Path(__file__).parents[2]
KINDS = {"lits_coarse": "lits", "lits_fine": "lits", "lung_segmentation": "lung", "pretrain_3dseg8": "3dseg8"}
BRANCH = "Task09_Spleen"  # a server sends 3D images and knows no branches: the copy's configs name one
LABELLED = 3


def install_bundle(name: str, app: Path) -> Path:
    """Copy a bundle to where the app looks for it, with the package inside, as a packed bundle has it."""
    folder = app / "model" / name
    ignore = shutil.ignore_patterns("models", "eval", "weights", "__pycache__")
    shutil.copytree(REPOSITORY / "bundles" / name, folder, ignore=ignore)
    shutil.copytree(REPOSITORY / "med3d_ext", folder / "med3d_ext", ignore=shutil.ignore_patterns("__pycache__"))
    if name == "pretrain_3dseg8":
        for path in (folder / "configs" / "inference.json", folder / "configs" / "train.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "branch": BRANCH}))
    return folder


def train(bundle: Path, data: Path, folder: Path, *options: str) -> None:
    """One epoch in this environment; of what it leaves, the bundle gets what inference reads."""
    folders = ("--output_dir", folder / "eval", "--ckpt_dir", folder / "models")
    run_bundle(bundle, "train", "--dataset_dir", data, "--epochs", 1, "--init", "scratch", *folders, *options)
    (bundle / "models").mkdir()
    for name in ("model.pt", "facts.json", "card.json"):
        shutil.copyfile(folder / "models" / name, bundle / "models" / name)


def run_bundle(bundle: Path, config: str, *options: object) -> None:
    """``monai.bundle run`` in this environment, away from the repository: the bundle's own package is used."""
    words = ("-m", "monai.bundle", "run", "--config_file", bundle / "configs" / f"{config}.json", *options)
    environment = {**os.environ, "PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=bundle.parent, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])


def phantom_patients(name: str, folder: Path) -> tuple[Path, Path]:
    """Generated patients: the data set to train on, and in it the folder with images and labels."""
    kind = KINDS[name]
    data = phantom_dataset(kind, folder / kind, 6 if kind == "lits" else None)
    images = data if (data / "imagesTr").is_dir() else data / BRANCH
    return data, images


def make_studies(images: Path, folder: Path) -> list[Path]:
    """A folder as MONAI Label wants it: images, and the final labels of the first three.

    Returns:
        the images.
    """
    (folder / "labels" / "final").mkdir(parents=True)
    files = sorted((images / "imagesTr").glob("*.nii.gz"))[: LABELLED + 1]
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / file.name)
        if number < LABELLED:
            shutil.copyfile(images / "labelsTr" / file.name, folder / "labels" / "final" / file.name)
    return [folder / file.name for file in files]

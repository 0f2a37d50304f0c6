"""Next to other code on the same CPU: the authors' training step and loader, the zoo's spleen bundle, data in memory.

    python benchmarks/comparisons.py ROWS.jsonl --authors MedicalNet --spleen spleen_ct_segmentation --data FOLDER

``steps``: a training step of ResNet-10, 18 and 50 at 2 x 64 x 96 x 64, ours in float32 and bfloat16, the authors' in
float32 as they wrote it. ``sample``: one sample of a 257 x 257 x 140 CT on 64 x 96 x 64, ours from a warm store, theirs
by their loader. ``epochs``: samples a second of the first epoch, nothing read before, against the network alone on
the same batches in memory. ``processes``: one CT of 512 x 512 x 119, ``predict lits_fine`` against the zoo's bundle
with its published ``inference.json`` and random weights, whole processes. What is compared takes turns; a figure is
the median of five turns (epochs: one). Nothing else may run meanwhile. A row that is there is not measured again.
``--authors``, ``--spleen`` and ``--data`` (Decathlon tasks) are folders that you have; a measurement without its folder
is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
from growth import read

BUNDLES = Path(__file__).parents[1] / "bundles"
GRID = (64, 96, 64)
TURNS = 5
Measured = dict[str, Any]


def turns(contenders: dict[str, Callable[[], Any]], warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each contender in each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + TURNS):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            if turn >= warm_up:
                seconds[name].append(round(time.perf_counter() - begin, 4))
    return seconds


def compared(seconds: dict[str, list[float]], against: str) -> Measured:
    """All turns, and each median as a ratio to that of ``against``."""
    base = median(seconds[against])
    return {"seconds": seconds, "ratio": {name: round(median(each) / base, 3) for name, each in seconds.items()}}


def module_of(path: Path) -> Any:
    """A module of code that is not installed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps(given: argparse.Namespace, work: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Measured]]]:
    """Training steps of one segmentation network each."""
    import torch

    from med3d_ext.networks import Med3DNet

    theirs = module_of(given.authors / "models" / "resnet.py")
    image = torch.randn(2, 1, *GRID)

    def trained(network: torch.nn.Module, half: bool) -> Callable[[], None]:
        optimizer = torch.optim.SGD(network.train().parameters(), 0.001, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = network(image)
            target = torch.zeros((2, *logits.shape[2:]), dtype=torch.long)
            torch.nn.functional.cross_entropy(logits.float(), target).backward()
            optimizer.step()

        return step

    for depth in ("resnet10", "resnet18", "resnet50"):

        def measure(depth: str = depth) -> Measured:
            size = dict(zip(("sample_input_D", "sample_input_H", "sample_input_W"), GRID))
            kind = {"shortcut_type": "B" if depth == "resnet50" else "A", "no_cuda": True, "num_seg_classes": 2}
            ours = {"network_name": depth, "in_channels": 1, "num_classes": {"one": 2}, "output_stride": 8}
            contenders = {
                "authors": trained(getattr(theirs, depth)(**size, **kind), half=False),
                "float32": trained(Med3DNet(**ours), half=False),
                "bfloat16": trained(Med3DNet(**ours), half=True),
            }
            return compared(turns(contenders), "authors")

        yield {"network": depth, "batch": 2, "size": list(GRID)}, measure


def ct(path: Path, shape: tuple[int, ...], spacing: tuple[float, ...], seed: int = 0) -> tuple[Path, Path]:
    """A noisy body in air with a box of tissue, and the label of the box."""
    voxels = np.full(shape, -1000, np.int16)
    body = tuple(slice(size // 8, size - size // 8) for size in shape[:2])
    voxels[body] = np.random.default_rng(seed).normal(-50, 30, voxels[body].shape)
    box = tuple(slice(size // 3, size // 2) for size in shape)
    label = np.zeros(shape, np.uint8)
    label[box], voxels[box] = 1, voxels[box] + 200
    affine = np.diag([*spacing, 1])
    for name, values in (("image", voxels), ("label", label)):
        (path / name).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), path / name / "case.nii.gz")
    return path / "image" / "case.nii.gz", path / "label" / "case.nii.gz"


def sample(given: argparse.Namespace, work: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Measured]]]:
    """One training sample, read and drawn."""

    def measure() -> Measured:
        from monai.bundle import ConfigParser
        from scipy import ndimage

        data = work / "Task03_Liver"
        for number in range(12):
            image, label = ct(work / "made", (257, 257, 140), (1.4, 1.4, 2.5), number)
            for source, place in ((image, "imagesTr"), (label, "labelsTr")):
                (data / place).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, data / place / f"liver_{number}.nii.gz")
        pairs = [{"image": f"imagesTr/liver_{n}.nii.gz", "label": f"labelsTr/liver_{n}.nii.gz"} for n in range(12)]
        about = {"name": "Liver", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
        (data / "dataset.json").write_text(json.dumps({**about, "training": pairs}), encoding="utf-8")
        parser = ConfigParser()
        parser.read_config(BUNDLES / "pretrain_3dseg8" / "configs" / "train.json")
        places = {"output_dir": str(work / "eval"), "ckpt_dir": str(work / "models"), "store_dir": str(work / "store")}
        parser.update({**places, "dataset_dir": str(data), "spatial_size": list(GRID)})
        ours = parser.get_parsed_content("train::dataset")
        # Two calls that newer libraries have dropped; what they did is unchanged.
        nibabel.Nifti1Image.get_data = lambda self: np.asanyarray(self.dataobj)
        ndimage.interpolation = SimpleNamespace(zoom=ndimage.zoom)
        names = work / "list.txt"
        names.write_text(f"{pairs[0]['image']} {pairs[0]['label']}\n", encoding="utf-8")
        sets = SimpleNamespace(phase="train", **dict(zip(("input_D", "input_H", "input_W"), GRID)))
        authors = module_of(given.authors / "datasets" / "brains18.py").BrainS18Dataset(str(data), str(names), sets)
        return compared(turns({"authors": lambda: authors[0], "store": lambda: ours[0]}, warm_up=3), "authors")

    yield {"volume": [257, 257, 140], "size": list(GRID)}, measure


def epochs(given: argparse.Namespace, work: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Measured]]]:
    """The first epoch of two bundles, and their networks alone."""
    for bundle, folder, more in (
        ("pretrain_3dseg8", given.data, {"samples_per_domain": 8, "spatial_size": [112, 112, 64]}),
        ("lits_fine", given.data and given.data / "Task03_Liver", {"coarse_weights": None, "epochs": 1}),
    ):

        def measure(bundle: str = bundle, folder: Path = folder, more: dict[str, Any] = more) -> Measured:
            from monai.bundle import ConfigParser

            def trainer_of(place: str, **options: Any) -> Any:
                parser = ConfigParser()
                parser.read_config(BUNDLES / bundle / "configs" / "train.json")
                places = {"output_dir": f"{work}/{place}/eval", "ckpt_dir": f"{work}/{place}/models"}
                options = {**more, **places, "store_dir": f"{work}/{place}/store", **options}
                parser.update({"dataset_dir": str(folder), "init": "scratch", "train::handlers": [], **options})
                trainer = parser.get_parsed_content("train::trainer")
                trainer.state.max_epochs = 1
                return trainer, parser.get_parsed_content("train::dataloader")

            trainer, loader = trainer_of("first")
            begin = time.perf_counter()
            trainer.run()
            first = time.perf_counter() - begin
            batches = list(loader)
            alone, _ = trainer_of("first")  # a new network; the batches are in memory
            alone.data_loader = batches
            begin = time.perf_counter()
            alone.run()
            network = time.perf_counter() - begin
            samples = sum(len(batch["image"]) for batch in batches)
            rates = {"first_epoch": round(samples / first, 3), "network_alone": round(samples / network, 3)}
            return {"samples": samples, "samples_a_second": rates, "ratio": round(network / first, 3)}

        if folder:
            yield {"bundle": bundle, **more}, measure


def processes(given: argparse.Namespace, work: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Measured]]]:
    """Whole processes on one CT."""

    def measure() -> Measured:
        image, _ = ct(work / "ct", (512, 512, 119), (0.74, 0.74, 2.4))
        (work / "imagesTs").mkdir(exist_ok=True)
        shutil.copy(image, work / "imagesTs" / "case.nii.gz")
        memory: dict[str, list[float]] = {"zoo": [], "lits_fine": []}

        def run(name: str, *words: Any) -> Callable[[], None]:
            def process() -> None:
                code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True); "
                code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
                command = [sys.executable, "-c", code, sys.executable, "-m", *map(str, words)]
                environment = {**os.environ, "MED3D_STORE": str(work / "empty")}
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                memory[name].append(round(int(done.stdout) * 1024 / 1e9, 3))

            return process

        out = ("--device", "cpu", "--overwrite", "--output", work / "ours")
        zoo = ("--config_file", given.spleen / "configs" / "inference.json", "--bundle_root", given.spleen)
        zoo += ("--dataset_dir", work, "--output_dir", work / "theirs", "--device", "cpu", "--load_pretrain", "False")
        contenders = {
            "zoo": run("zoo", "monai.bundle", "run", *zoo),
            "lits_fine": run("lits_fine", "med3d_ext", "predict", BUNDLES / "lits_fine", image.parent, *out),
        }
        found = compared(turns(contenders), "zoo")
        ratio = round(median(memory["lits_fine"]) / median(memory["zoo"]), 3)
        return {**found, "largest_process_gb": memory, "memory_ratio": ratio}

    yield {"volume": [512, 512, 119]}, measure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    for name in ("authors", "spleen", "data"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", help="some of steps, sample, epochs, processes, joined by commas")
    given = parser.parse_args()
    needs = {"steps": "authors", "sample": "authors", "epochs": "data", "processes": "spleen"}
    for name in given.only.split(",") if given.only else [name for name, need in needs.items() if vars(given)[need]]:
        if name not in needs:
            parser.error(f"--only takes {', '.join(needs)}, got '{name}'")
        if vars(given)[needs[name]] is None:
            parser.error(f"{name} needs --{needs[name]} FOLDER")
        with tempfile.TemporaryDirectory() as scratch:
            for settings, measure in globals()[name](given, Path(scratch)):
                if any((row["what"], row["settings"]) == (name, settings) for row in read(given.rows)):
                    continue
                row = {"what": name, "settings": settings, "time": time.strftime("%F %T"), "found": measure()}
                with open(given.rows, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(name, settings, row["found"], flush=True)


if __name__ == "__main__":
    main()

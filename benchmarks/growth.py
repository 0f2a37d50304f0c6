"""How time and memory grow with the size of a volume and the number of cases: rows that resume, and their plot.

    python benchmarks/growth.py ROWS.jsonl [--only volumes,headers,cases] [--largest 1000] [--work FOLDER]
    python benchmarks/growth.py ROWS.jsonl --plot GROWTH.png

``volumes``: one CT of 128^3 to 512 x 512 x 1000 through ``predict lits_fine``; seconds and peak memory of the whole
process. ``headers``: the first pass over 10 to 1,000 files. ``cases``: 10 to 1,000 phantom cases through ``prepare``
and one epoch, with an empty and a full store of volumes. A row that is there is not measured again. Each measurement
is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

BUNDLES = Path(__file__).parents[1] / "bundles"
SHAPES = [(128, 128, 128), (256, 256, 128), (256, 256, 256), (512, 512, 119), (512, 512, 250), (512, 512, 500)]
SHAPES += [(512, 512, 1000)]
COUNTS = [10, 30, 100, 300, 1000]


def run(folder: Path, *words: Any) -> dict[str, float]:
    """A command in a process of its own: its seconds and the most memory (GB) that it or a worker of it held.

    Raises:
        RuntimeError: it failed.
    """
    own = {"MED3D_STORE": str(folder / "store"), "MED3D_CACHE": str(folder / "phantoms")}
    begin = time.monotonic()
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    command = [sys.executable, "-c", code, sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))} failed:\n{done.stderr[-2000:]}")
    memory = int(done.stdout.strip().splitlines()[-1]) * 1024 / 1e9
    return {"seconds": round(time.monotonic() - begin, 2), "memory_gb": round(memory, 3)}


def ct(path: Path, shape: tuple[int, ...]) -> None:
    """A body with a liver-like block, and noise, which hardly compresses, as that of a CT."""
    voxels = np.random.default_rng(0).normal(-100, 30, shape).astype(np.int16)
    voxels[tuple(slice(size // 3, 2 * size // 3) for size in shape)] += 200
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([400 / shape[0], 400 / shape[1], 400 / shape[2], 1])), path)


def volumes(folder: Path, largest: int) -> Iterator[tuple]:
    """One volume through the cascade."""
    for shape in SHAPES:
        if shape[2] > largest:
            continue

        def measure(shape: tuple = shape) -> dict[str, float]:
            ct(folder / "ct" / "scan.nii.gz", shape)
            words = ("predict", BUNDLES / "lits_fine", folder / "ct", "--output", folder / "out", "--overwrite")
            return run(folder, "med3d_ext", *words, "--device", "cpu")

        yield {"shape": list(shape), "megavoxels": round(float(np.prod(shape)) / 1e6, 2)}, measure


def headers(folder: Path, largest: int) -> Iterator[tuple]:
    """The first pass, over headers alone."""
    for count in [number for number in COUNTS if number <= largest]:

        def measure(count: int = count) -> dict[str, float]:
            from med3d_ext.data.fingerprint import read_header

            ct(folder / "one" / "scan.nii.gz", (64, 64, 32))
            paths = [folder / "many" / f"{number}.nii.gz" for number in range(count)]
            paths[0].parent.mkdir(exist_ok=True)
            for path in paths:
                shutil.copy(folder / "one" / "scan.nii.gz", path)
            begin = time.monotonic()
            for path in paths:
                read_header(path)
            return {"seconds": round(time.monotonic() - begin, 3)}

        yield {"cases": count}, measure


def cases(folder: Path, largest: int) -> Iterator[tuple]:
    """Phantom cases through ``prepare`` and an epoch of the coarse network on a small grid; first and second start."""
    for count in [number for number in COUNTS if number <= largest]:

        def measure(count: int = count) -> dict[str, Any]:
            data, store = folder / f"data{count}", folder / "store"
            shutil.rmtree(store, ignore_errors=True)
            run(folder, "med3d_ext", "phantoms", "lits", "--folder", data, "--cases", count)
            prepared = folder / f"prepared{count}"
            found: dict[str, Any] = {"prepare": run(folder, "med3d_ext", "prepare", "lits", data, "--output", prepared)}
            config = BUNDLES / "lits_coarse" / "configs" / "train.json"
            for name in ("epoch", "epoch_with_a_warm_store"):
                place = folder / f"{name}{count}"
                words = ("monai.bundle", "run", "--config_file", config, "--dataset_dir", prepared, "--epochs", 1)
                words += ("--init", "scratch", "--spatial_size", "[32,32,32]", "--val_interval", 1, "--device", "cpu")
                words += ("--output_dir", place / "eval", "--ckpt_dir", place / "models")
                found[name] = run(folder, *words)
                shutil.rmtree(place)
            found["store_gb"] = round(sum(path.stat().st_size for path in store.glob("*.pt")) / 1e9, 3)
            shutil.rmtree(data)
            return found

        yield {"cases": count}, measure


MEASUREMENTS: dict[str, Callable[[Path, int], Iterator[tuple]]] = {
    "volumes": volumes,
    "headers": headers,
    "cases": cases,
}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows so far; a line that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}}")]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory by size, each with the straight line through its first and last row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    for row in rows:
        settings, found = row["settings"], row["found"]
        size = settings.get("megavoxels", settings.get("cases"))
        unit = "megavoxels" if "megavoxels" in settings else "cases"
        parts = {name: value for name, value in found.items() if isinstance(value, dict)} or {"": found}
        for name, part in parts.items():
            for quantity in ("seconds", "memory_gb"):
                if quantity in part:
                    key = f"{row['what']} {name}: {quantity}".replace(" :", ":")
                    series.setdefault(key, (unit, []))[1].append((size, part[quantity]))
    if not series:
        raise SystemExit("there is nothing to draw yet")
    columns = min(3, len(series))
    lines = -(-len(series) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(5 * columns, 3.5 * lines), squeeze=False, layout="constrained"
    )
    for axis, (name, (unit, points)) in zip(axes.flat, series.items()):
        points.sort()
        axis.plot(*zip(*points), "o-")
        axis.plot([points[0][0], points[-1][0]], [points[0][1], points[-1][1]], ":", color="gray")
        axis.set(title=name, xlabel=unit, ylim=(0, None))
    for axis in list(axes.flat)[len(series) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--only", default=",".join(MEASUREMENTS))
    parser.add_argument("--largest", type=int, default=1000, help="most slices of a volume, most cases of a data set")
    parser.add_argument("--work", type=Path, help="where data are made, on a disk with room; removed afterwards")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.plot is not None:
        plot(read(options.rows), options.plot)
        return
    for name in options.only.split(","):
        if name not in MEASUREMENTS:
            parser.error(f"--only takes {', '.join(MEASUREMENTS)}, got '{name}'")
        with tempfile.TemporaryDirectory(dir=options.work) as scratch:
            for settings, measure in MEASUREMENTS[name](Path(scratch), options.largest):
                if any((row["what"], row["settings"]) == (name, settings) for row in read(options.rows)):
                    continue
                row = {"what": name, "settings": settings, "time": time.strftime("%F %T"), "found": measure()}
                with open(options.rows, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(name, settings, row["found"], flush=True)


if __name__ == "__main__":
    main()

"""The whole command on phantoms, with real processes, killed once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from med3d_ext.tools.phantoms.dataset import phantom_dataset

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_runs_nothing_twice(tmp_path, real_encoder) -> None:
    data, out = phantom_dataset("lits", tmp_path / "phantoms", cases=6), tmp_path / "out"
    words = ["compare", "lits_coarse", "--inits", f"scratch,med3d={real_encoder}", "--dataset_dir", data]
    words += ["--output", out, "--epochs", 2, "--val_interval", 1, "--spatial_size", "[32,32,32]", "--num_workers", 0]
    words += ["--initial_weights::scratch_learning_rate", 0.001]  # one arm from scratch is enough here
    command = [sys.executable, "-m", "med3d_ext", *map(str, words)]
    settings = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, **settings)
    wait_for(out / "arms" / "scratch_0.001_seed0" / "loss.csv")
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "comparison.json").read_text())
    assert record["complete"]
    assert [run["starts"] for run in record["runs"]] == [1, 1], "the orphan's training was waited for"
    assert {run["iterations"] for run in record["runs"]} == {record["budgets"][0]["iterations"]}
    assert {arm["n"] for entry in record["results"] for arm in entry["arms"].values()} == {1}
    assert all((out / name).is_file() for name in ("table.md", "curves.png", "overlays.png"))
    assert {path.name for path in out.rglob("epoch_*.npz")} == {"epoch_0001.npz", "epoch_0002.npz"}
    times = {path: path.stat().st_mtime_ns for path in out.rglob("summary.json")}
    assert len(times) == 2
    again = subprocess.run(command, capture_output=True, text=True, **settings)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 400
    while not (path.is_file() and len(path.read_text().splitlines()) > 1):
        assert time.monotonic() < deadline, f"no {path} after 400 s"
        time.sleep(0.05)

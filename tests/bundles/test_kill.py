"""A training killed in the middle of an epoch, continued by the same command, against one that nobody disturbed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time

import pytest
from bundle_files import REPOSITORY
from test_commands import RUN, each_bundle, succeed

EPOCHS = 3


def losses(folder):
    """(iteration, epoch, loss) as written, digit by digit."""
    with open(folder / "eval" / "loss.csv", encoding="utf-8") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def command(name, data, folder):
    config = REPOSITORY / "bundles" / name / "configs" / "train.json"
    words = ["--config_file", config, "--dataset_dir", data, "--epochs", EPOCHS, "--spatial_size", "[32,32,32]"]
    words += ["--output_dir", folder / "eval", "--ckpt_dir", folder / "models", "--val_interval", 1]
    # Some phantom sets have two cases to train on: an epoch needs an inside to be killed in.
    words += ["--batch_size", 1]
    return [str(word) for word in (*RUN, *words)]


@pytest.mark.slow
@each_bundle
def test_a_killed_training_continues_bit_for_bit(name, phantoms, tmp_path):
    data = phantoms(REPOSITORY / "bundles" / name)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed(*command(name, data, whole), cwd=REPOSITORY)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(name, data, killed), cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    wait_for_second_epoch(killed)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = losses(killed)
    assert before[-1][1] == "2"
    per_epoch = sum(row[1] == "1" for row in losses(whole))
    assert len(before) < 2 * per_epoch, "the kill came after the epoch's end"
    succeed(*command(name, data, killed), cwd=REPOSITORY)
    assert losses(killed) == losses(whole)


def wait_for_second_epoch(folder):
    """Until the first loss of the second epoch is on disk."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (folder / "eval" / "loss.csv").is_file() and any(row[1] == "2" for row in losses(folder)):
            return
        time.sleep(0.01)
    raise TimeoutError("the second epoch has not begun after 300 s")

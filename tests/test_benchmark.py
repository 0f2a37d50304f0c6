"""What a benchmark times is what passes, and it leaves nothing behind."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from ignite.engine import Engine

from med3d_ext.errors import InputError
from med3d_ext.tools import benchmark as module
from med3d_ext.tools.benchmark import HEADS, Measured, StepTimer, benchmark, measure_authors

BUNDLES = Path(__file__).parents[1] / "bundles"


def slow_batches(seconds: float, count: int = 4):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_steps_and_waits_are_timed_apart_and_the_first_does_not_count():
    slow_first = iter([0.5, *[0.2] * 9])
    engine = Engine(lambda engine, batch: time.sleep(next(slow_first)))
    timer = StepTimer(4, engine)
    engine.run(slow_batches(0.02, 9), max_epochs=1, epoch_length=9)
    step, wait = timer.figures()
    assert len(timer.steps) == 4  # and no more: the training ends
    assert 0.2 <= step < 0.5 <= timer.steps[0]
    assert 0.02 <= wait < 0.2


def test_a_bundles_own_training_is_timed_and_leaves_its_folder_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("MED3D_CACHE", str(tmp_path / "cache"))
    before = sorted(BUNDLES.rglob("*"))
    text = benchmark("lits_coarse", iterations=3, spatial_size=[32, 32, 32], epochs=7, device="cpu")
    lines = text.splitlines()
    head = r"2 x 1 x 32 x 32 x 32, CPU, \d+ threads, (bfloat16|float32), an epoch of (\d+) steps, 7 epochs$"
    length = int(re.match(head, lines[0])[2])
    assert re.split(" {2,}", lines[1]) == HEADS
    name, step, volumes, wait, memory, epoch, whole = re.split(" {2,}", lines[2])
    assert name == "resnet10" and float(volumes) == pytest.approx(2 / float(step), rel=0.1) and float(memory) > 0.1
    assert seconds(epoch) == pytest.approx(length * (float(step) + float(wait)), abs=1)
    assert seconds(whole) == pytest.approx(7 * length * float(step), abs=1)
    assert sorted(BUNDLES.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 2}, "--iterations must be at least 3, got 2"),
        ({"against": "/nowhere"}, "--against '/nowhere' has no models/resnet.py; give the folder of the authors'"),
        ({"network_name": "resnet10,resnet11"}, "network_name must be one of resnet10, "),
        ({"epoch": 3}, "override 'epoch' matches no id of train.json; did you mean 'epochs'?"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_sentence(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        benchmark("lits_coarse", **options)


def seconds(text: str) -> int:
    hours, minutes, rest = map(int, text.split(":"))
    return 3600 * hours + 60 * minutes + rest


AUTHORS = """
import torch
from torch import nn

def resnet10(sample_input_D, sample_input_H, sample_input_W, num_seg_classes, shortcut_type="B", no_cuda=False):
    assert (sample_input_D, sample_input_H, sample_input_W) == (32, 40, 24) and shortcut_type == "B"
    return nn.Conv3d(1, num_seg_classes, 3, stride=2)

def resnet18(shortcut_type, no_cuda, **others):
    assert shortcut_type == "A" and no_cuda
    return nn.Conv3d(1, 2, 3)
"""


def test_depths_and_the_authors_networks_are_rows_of_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_apart", lambda function, *arguments: function(*arguments))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet.py").write_text(AUTHORS)
    options = {"spatial_size": [32, 40, 24], "device": "cpu", "init": "scratch"}
    text = benchmark("lits_coarse", iterations=3, network_name="resnet10, resnet18", against=str(tmp_path), **options)
    rows = [re.split(" {2,}", line) for line in text.splitlines()[2:]]
    names = [row[0] for row in rows]
    assert names == ["resnet10", "resnet10, authors' float32", "resnet18", "resnet18, authors' float32"]
    assert all(float(row[1]) > 0 for row in rows)
    assert [len(row) for row in rows] == [7, 4, 7, 4]


def test_the_authors_code_is_refused_in_a_sentence_where_it_is_not(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "resnet.py").write_text("import nothing_of_that_name")
    ours = Measured("resnet50", (2, 1, 8, 8, 8), "CPU", "float32", 1.0, 0.0, 1.0, 1, 1)
    with pytest.raises(InputError, match="cannot be imported .*nothing_of_that_name"):
        measure_authors(tmp_path, ours, 3)
    (tmp_path / "models" / "resnet.py").write_text(AUTHORS)
    with pytest.raises(InputError, match="has no resnet50"):
        measure_authors(tmp_path, ours, 3)

"""What a benchmark times is what passes, and it leaves nothing behind."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from ignite.engine import Engine

from med3d_ext.errors import InputError
from med3d_ext.tools.benchmark import StepTimer, benchmark

BUNDLES = Path(__file__).parents[1] / "bundles"


def slow_batches(seconds: float, count: int = 4):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_steps_and_waits_are_timed_apart_and_the_first_does_not_count():
    slow_first = iter([0.5, *[0.2] * 9])
    engine = Engine(lambda engine, batch: time.sleep(next(slow_first)))
    timer = StepTimer(4)
    timer.attach(engine)
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
    assert re.match(r"resnet10, 2 x 1 x 32 x 32 x 32, CPU, \d+ threads, (bfloat16|float32)", lines[0])
    seconds, a_second = re.match(r"training step +([\d.]+) s, ([\d.]+) volumes a second \(median\)$", lines[1]).groups()
    assert float(a_second) == pytest.approx(2 / float(seconds), rel=0.1)
    assert lines[-1].startswith("the whole training 7 epochs, 0:")
    assert sorted(BUNDLES.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 2}, "--iterations must be at least 3, got 2"),
        ({"epoch": 3}, "override 'epoch' matches no id of train.json; did you mean 'epochs'?"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_sentence(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        benchmark("lits_coarse", **options)

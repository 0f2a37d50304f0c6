"""What a run needs of the machine: measured on shapes alone, against hand counts and a step with real numbers."""

from __future__ import annotations

from collections import namedtuple

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from med3d_ext.networks import Segmenter
from med3d_ext.tools.check import resources
from med3d_ext.tools.check.resources import PeakBytes, check_resources, peak_bytes, tensor_bytes, training_shape

FLOAT = 4
GIB = 2**30


@pytest.fixture
def found(configs, liver_folder, tmp_path):
    """Level and text by topic, of a run on a small liver folder with these options."""
    folders = {"dataset_dir": str(liver_folder(cases=12)), "output_dir": str(tmp_path / "eval")}

    def check(**options) -> dict[str, tuple[str, str]]:
        return {each.topic: (each.level, each.text) for each in check_resources(configs(**folders, **options))}

    return check


def test_the_needs_of_a_small_run_are_met(found):
    made = found(spatial_size=[32, 32, 32], device="cpu")
    assert {topic: level for topic, (level, _) in made.items()} == {"disk": "ok", "RAM": "ok", "GPU": "ok"}
    assert "the largest volume" in made["RAM"][1] and "of volumes '" in made["disk"][1]
    # two copies of the state; the training state holds it with the parameters once and Adam's two moments
    network = Segmenter("resnet10", 1, 2, 8)
    total = (3 * tensor_bytes(network.state_dict().values()) + 3 * tensor_bytes(network.parameters())) / 1e9
    assert f"weights and training state {total:.1f} GB" in made["disk"][1]


def test_too_little_of_anything_is_an_error_with_a_repair(found, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: usage(GIB, GIB, 1000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("memory", "available")(GIB // 4))
    made = found(device="cpu")
    assert made["disk"][0] == made["RAM"][0] == "error"
    assert made["disk"][1].endswith("give another --output_dir.")
    assert made["RAM"][1].endswith("give a smaller --batch_size or --spatial_size.")
    monkeypatch.setattr(resources.os, "access", lambda *_: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = found(device="cuda")
    assert "cannot be written to" in made["disk"][1] and "torch finds no GPU" in made["GPU"][1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, level in ((GIB // 8, "error"), (64 * GIB, "ok")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, GIB))
        assert found(device="cuda")["GPU"][0] == level


def test_the_input_of_a_step_comes_from_the_options_the_data_or_the_metadata(configs, edit):
    assert training_shape(configs()) == [2, 1, 128, 128, 64]
    assert training_shape(configs(batch_size=3, spatial_size=[32, 32, 16])) == [3, 1, 32, 32, 16]
    edit("train", lambda content: content.update(grids={"a": [8, 8, 8], "b": [16, 16, 16]}))
    assert training_shape(configs()) == [2, 1, 16, 16, 16]
    edit("train", lambda content: content.update(grids="$@data.per_domain('spatial_size')", spatial_size=None))
    assert training_shape(configs()) == [2, 1, 128, 128, 64]


def test_the_peak_is_what_lives_at_one_time_and_was_made_meanwhile():
    before = torch.zeros(1000)
    with PeakBytes([before]) as counter:
        before.add_(1)
        first = torch.zeros(1000)
        del first
        second = torch.zeros(500)
        second.view(5, 100)
    assert counter.peak == 1000 * FLOAT


def test_a_forward_pass_by_hand():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1, bias=False), nn.Conv3d(8, 2, 1, bias=False))
        norm = nn.BatchNorm3d(8)  # whose buffers are part of the state and not of the gradients
    image, hidden, output = (channels * 10**3 * FLOAT for channels in (1, 8, 2))
    assert peak_bytes(network, (1, 1, 10, 10, 10)) == image + hidden + output
    assert tensor_bytes(network.parameters()) == (8 * 27 + 16) * FLOAT
    assert tensor_bytes(norm.parameters()) == 16 * FLOAT and tensor_bytes(norm.state_dict().values()) == 32 * FLOAT + 8


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_takes_as_much_as_one_with_real_numbers(checkpointing):
    arguments = ("resnet10", 1, 2, 8, None, checkpointing)
    with torch.device("meta"):
        network = Segmenter(*arguments)
        measured, small = (
            peak_bytes(network, shape, training=True) for shape in ((2, 1, 32, 32, 24), (1, 1, 16, 16, 16))
        )
        assert tensor_bytes(network.parameters()) < small < measured > peak_bytes(network, (2, 1, 32, 32, 24))
    network = Segmenter(*arguments)
    image, label = torch.zeros(2, 1, 32, 32, 24), torch.zeros(2, 32, 32, 24, dtype=torch.long)
    with PeakBytes(network.state_dict().values()) as counter:
        F.cross_entropy(network(image), label).backward()
    assert measured == pytest.approx(counter.peak, rel=0.02)

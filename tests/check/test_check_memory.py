"""Memory measured on shapes alone, against hand counts and against a step with real numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from med3d_ext.networks import Classifier, Segmenter
from med3d_ext.tools.check.resources import PeakBytes, peak_bytes, tensor_bytes

FLOAT = 4


def test_the_peak_is_what_lives_at_one_time():
    with PeakBytes() as counter:
        first = torch.zeros(1000)
        del first
        second = torch.zeros(500)
        second.view(5, 100)
    assert counter.peak == 1000 * FLOAT


def test_tensors_from_before_do_not_count():
    before = torch.zeros(1000)
    with PeakBytes([before]) as counter:
        before.add_(1)
    assert counter.peak == 0


def test_a_forward_pass_by_hand():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1, bias=False), nn.Conv3d(8, 2, 1, bias=False))
    image, hidden, output = (channels * 10**3 * FLOAT for channels in (1, 8, 2))
    assert peak_bytes(network, (1, 1, 10, 10, 10)) == image + hidden + output
    assert tensor_bytes(network.parameters()) == tensor_bytes(network.state_dict().values()) == (8 * 27 + 16) * FLOAT


def test_buffers_are_part_of_the_state_and_not_of_the_gradients():
    with torch.device("meta"):
        network = nn.BatchNorm3d(8)
    assert tensor_bytes(network.parameters()) == 16 * FLOAT
    assert tensor_bytes(network.state_dict().values()) == 32 * FLOAT + 8


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_takes_as_much_as_one_with_real_numbers(checkpointing):
    arguments = ("resnet10", 1, 2, 8, None, checkpointing)
    with torch.device("meta"):
        measured = peak_bytes(Segmenter(*arguments), (2, 1, 32, 32, 24), training=True)
    network = Segmenter(*arguments)
    image, label = torch.zeros(2, 1, 32, 32, 24), torch.zeros(2, 32, 32, 24, dtype=torch.long)
    with PeakBytes(list(network.state_dict().values())) as counter:
        F.cross_entropy(network(image), label).backward()
    assert measured == pytest.approx(counter.peak, rel=0.02)


def test_training_takes_more_than_inference_and_a_larger_grid_more_than_a_smaller():
    with torch.device("meta"):
        network = Classifier("resnet10")
    small, large = (peak_bytes(network, (1, 1, size, size, size), training=True) for size in (32, 64))
    assert peak_bytes(network, (1, 1, 64, 64, 64)) < large
    assert small < large
    assert small > tensor_bytes(network.parameters())

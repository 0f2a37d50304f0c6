"""The dilated convolution that goes in blocks of channels: the same network, to the rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from med3d_ext.networks.resnet import DilatedConv3d


def twins(in_channels: int, out_channels: int, **options) -> tuple[nn.Conv3d, DilatedConv3d]:
    plain = nn.Conv3d(in_channels, out_channels, 3, padding=2, dilation=2, bias=False, **options)
    ours = DilatedConv3d(in_channels, out_channels, 3, padding=2, dilation=2, bias=False, **options)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


@pytest.mark.parametrize(("in_channels", "out_channels"), [(300, 270), (520, 8), (8, 520), (16, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_in_bfloat16_results_and_gradients_are_those_of_one_convolution(in_channels, out_channels, stride):
    torch.manual_seed(0)
    plain, ours = twins(in_channels, out_channels, stride=stride)
    x = torch.randn(1, in_channels, 5, 4, 3)
    expected, results = plain(x), []
    cotangent = torch.randn_like(expected)
    for convolution in (plain, ours):
        convolution.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = convolution(inputs)
        y.float().backward(cotangent)
        results.append((y.float(), inputs.grad, convolution.weight.grad))
    for one, blocks in zip(*results):
        assert (one - blocks).abs().max() <= 0.01 * one.abs().max()
    assert (expected - results[1][0]).abs().max() <= 0.01 * expected.abs().max()


def test_in_float32_and_in_torchscript_it_is_the_convolution_to_the_bit():
    plain, ours = twins(300, 270)
    x = torch.randn(1, 300, 5, 4, 3)
    assert torch.equal(plain(x), ours(x)) and torch.equal(plain(x), torch.jit.script(ours)(x))


def test_blocks_are_taken_only_above_256_channels_with_dilation_in_bfloat16_on_a_cpu(monkeypatch):
    taken = []
    monkeypatch.setattr(DilatedConv3d, "_in_blocks", lambda self, x: taken.append(self.in_channels) or x)

    def blocks(channels: int, dilation: int, dtype: torch.dtype, device: str = "cpu") -> int:
        taken.clear()
        convolution = DilatedConv3d(channels, 8, 3, dilation=dilation, padding=dilation, device=device, dtype=dtype)
        convolution(torch.zeros(1, channels, 3, 3, 3, device=device, dtype=dtype))
        return len(taken)

    assert blocks(257, 2, torch.bfloat16) == 1
    assert blocks(256, 2, torch.bfloat16) == blocks(257, 1, torch.bfloat16) == blocks(257, 2, torch.float32) == 0
    assert blocks(257, 2, torch.bfloat16, "meta") == 0

"""Residual blocks, shortcuts and stages, with the tensor names of the published weights (He et al. 2016a, 2016b)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_OF_A_BLOCK = 256


class DilatedConv3d(nn.Conv3d):
    """A convolution that is also fast in bfloat16 on a CPU: above 256 channels it is then computed in blocks.

    oneDNN has no fast kernel for a dilated bfloat16 convolution of more than 256 channels: 512 to 512 channels on
    20 x 20 x 12 voxels took 12 s forward and backward, in blocks it takes 0.8 s, in float32 2.1 s. Parameters and, but
    for rounding, results are those of ``nn.Conv3d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102
            # Joined by "and", TorchScript would compile this condition.
            if self._is_slow(input):
                return self._in_blocks(input)
        return self._conv_forward(input, self.weight, self.bias)

    def _is_slow(self, x: Tensor) -> bool:
        wide = max(self.in_channels, self.out_channels) > CHANNELS_OF_A_BLOCK and max(self.dilation) > 1
        return wide and x.device.type == "cpu" and (x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))

    def _in_blocks(self, x: Tensor) -> Tensor:
        blocks = [
            sum(
                F.conv3d(channels, weight, None, self.stride, self.padding, self.dilation)
                for channels, weight in zip(x.split(CHANNELS_OF_A_BLOCK, 1), weights.split(CHANNELS_OF_A_BLOCK, 1))
            )
            for weights in self.weight.split(CHANNELS_OF_A_BLOCK)
        ]
        return torch.cat(blocks, 1)  # type: ignore[arg-type]


def _conv3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv3d:
    return DilatedConv3d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


class ZeroPadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th voxel, with zeros as the new channels (He et al. 2016a, option A). No parameters.

    The authors' code builds it from ``.data``, which cuts the gradient; here the gradient passes.

    Args:
        new_channels: number of zero channels appended, may be 0.
        stride: step along each spatial axis.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride, :: self.stride]
        return F.pad(x, [0, 0, 0, 0, 0, 0, 0, self.new_channels])


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions, both dilated; the first one strides."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _conv3(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3, 1x1x1 convolutions; the middle one strides and is dilated."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _conv3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return self.relu(out)


class PreActivationBottleneck(nn.Module):
    """The bottleneck with normalization and ReLU before each convolution (He et al. 2016b).

    The shortcut takes the input as it is, before ``bn1``, as in the released Kinetics weights.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, downsample: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm3d(in_channels)
        self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv2 = _conv3(width, width, stride, dilation)
        self.bn3 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, width * self.expansion, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        out += self.downsample(x)
        return out


Block = type[BasicBlock] | type[Bottleneck] | type[PreActivationBottleneck]


def make_stage(
    block: Block, in_channels: int, width: int, depth: int, stride: int, dilation: int, shortcut: str
) -> nn.Sequential:
    """``depth`` blocks: the first one strides and changes the channels, all of them are dilated."""
    out_channels = width * block.expansion
    first = block(in_channels, width, stride, dilation, _downsample(in_channels, out_channels, stride, shortcut))
    rest = [block(out_channels, width, 1, dilation, nn.Identity()) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def _downsample(in_channels: int, out_channels: int, stride: int, shortcut: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if shortcut == "A":
        return ZeroPadShortcut(out_channels - in_channels, stride)
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm3d(out_channels)
    )

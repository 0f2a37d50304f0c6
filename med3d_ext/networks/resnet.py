"""The 3D residual encoders of Med3D (section 3.2), with the tensor names and shapes of the published weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from med3d_ext.errors import InputError

STAGE_CHANNELS = (64, 128, 256, 512)
CHANNELS_OF_A_BLOCK = 256

# (stride, dilation) of layer1..layer4. At 8 the numbers are those of the authors' code; the paper's text says only that
# stages 3 and 4 have stride 1 and "rate 2".
STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


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
    """Shortcut A: every ``stride``-th voxel, with zeros as the new channels (He et al. 2016a, option A).

    The authors' code builds it from ``.data``, which cuts the gradient; here the gradient passes.
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


@dataclass(frozen=True)
class Architecture:
    """One row of the table of depths: block, blocks per stage, and the shortcut of the published weights."""

    block: type[BasicBlock] | type[Bottleneck] | type[PreActivationBottleneck]
    layers: tuple[int, int, int, int]
    shortcut: str

    def stage(self, in_channels: int, width: int, depth: int, stride: int, dilation: int, shortcut: str) -> nn.Module:
        """``depth`` blocks: the first one strides and changes the channels, all of them are dilated."""
        out_channels = width * self.block.expansion
        downsample: nn.Module = nn.Identity()
        if (stride > 1 or in_channels != out_channels) and shortcut == "A":
            downsample = ZeroPadShortcut(out_channels - in_channels, stride)
        elif stride > 1 or in_channels != out_channels:
            projection = nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False)
            downsample = nn.Sequential(projection, nn.BatchNorm3d(out_channels))
        first = self.block(in_channels, width, stride, dilation, downsample)
        return nn.Sequential(
            first, *(self.block(out_channels, width, 1, dilation, nn.Identity()) for _ in range(depth - 1))
        )


ARCHITECTURES = {
    "resnet10": Architecture(BasicBlock, (1, 1, 1, 1), "B"),
    "resnet18": Architecture(BasicBlock, (2, 2, 2, 2), "A"),
    "resnet34": Architecture(BasicBlock, (3, 4, 6, 3), "A"),
    "resnet50": Architecture(Bottleneck, (3, 4, 6, 3), "B"),
    "resnet101": Architecture(Bottleneck, (3, 4, 23, 3), "B"),
    "resnet152": Architecture(Bottleneck, (3, 8, 36, 3), "B"),
    "resnet200": Architecture(Bottleneck, (3, 24, 36, 3), "B"),
    "preact_resnet200": Architecture(PreActivationBottleneck, (3, 24, 36, 3), "B"),
}


class ResNetEncoder(nn.Module):
    """3D residual encoder (section 3.2): a list of five features, fine to coarse.

    The features are the stem after its ReLU (stride 2) and ``layer1`` to ``layer4``, with ``channels`` and ``strides``.
    An axis of ``n`` voxels becomes ``ceil(n / stride)``. The state dict has the names, shapes and order of the
    published weights (`conv1 bn1 layer1..4`, no head). Pre-activation features are the residual sums, as in the
    released Kinetics weights: no last normalization.

    Args:
        name: one of ``ARCHITECTURES``, `resnet10` to `resnet200` or `preact_resnet200`.
        in_channels: channels of the input. Defaults to 1.
        output_stride: stride of the last feature: 8 (the authors' code: dilation 2 and 4 in stages 3 and 4), 16 or 32
            (no dilation). Defaults to 8.
        shortcut: `A` (zero padding, no parameters) or `B` (1x1x1 convolution and normalization) where a stage changes
            the shape. Defaults to that of the published weights: A for 18 and 34, B else.
        checkpointing: recompute each stage in the backward pass, which trades time for memory; outputs, gradients and
            running statistics stay the same. Ignored in TorchScript. Defaults to False.

    Raises:
        InputError: ``name``, ``output_stride`` or ``shortcut`` is none of the choices.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 1,
        output_stride: int = 8,
        shortcut: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if name not in ARCHITECTURES:
            (near,) = difflib.get_close_matches(str(name), ARCHITECTURES, n=1, cutoff=0.0)
            choices = ", ".join(ARCHITECTURES)
            raise InputError(f"network_name must be one of {choices}, got {name!r}; the nearest is {near}.")
        if output_stride not in STAGES:
            raise InputError(f"output_stride must be one of {', '.join(map(str, STAGES))}, got {output_stride!r}.")
        architecture = ARCHITECTURES[name]
        shortcut = shortcut or architecture.shortcut
        if shortcut not in ("A", "B"):
            raise InputError(f"shortcut must be A, B or null (that of the published weights), got {shortcut!r}.")
        self.in_channels = in_channels
        self.output_stride = output_stride
        self.checkpointing = checkpointing
        self.conv1 = nn.Conv3d(in_channels, STAGE_CHANNELS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(STAGE_CHANNELS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.channels = [STAGE_CHANNELS[0]]
        self.strides = [2]
        stages, stride = [], 4
        for width, depth, (step, dilation) in zip(STAGE_CHANNELS, architecture.layers, STAGES[output_stride]):
            stages.append(architecture.stage(self.channels[-1], width, depth, step, dilation, shortcut))
            stride *= step
            self.channels.append(width * architecture.block.expansion)
            self.strides.append(stride)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():  # He initialization; BatchNorm starts at weight 1, bias 0 by itself
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five features, fine to coarse, of ``x``: N x in_channels x D x H x W.

        Raises:
            ValueError: the shape is not that, or in training a single value per channel would be left to normalize.
        """
        if not torch.jit.is_scripting():
            self._check_input(x)
        stem = self.relu(self.bn1(self.conv1(x)))
        pooled = self.maxpool(stem)
        if not torch.jit.is_scripting() and self.checkpointing and torch.is_grad_enabled():
            return [stem, *self._checkpointed_stages(pooled)]
        one = self.layer1(pooled)
        two = self.layer2(one)
        three = self.layer3(two)
        return [stem, one, two, three, self.layer4(three)]

    @torch.jit.unused
    def _checkpointed_stages(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = checkpoint(stage, x, use_reentrant=False, context_fn=partial(_contexts, stage))
            features.append(x)
        return features

    @torch.jit.unused
    def _check_input(self, x: Tensor) -> None:
        if torch.jit.is_tracing():
            return
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be N x {self.in_channels} x D x H x W, got {tuple(x.shape)}.")
        if self.training and x.shape[0] * math.prod(-(-size // self.output_stride) for size in x.shape[2:]) == 1:
            raise ValueError(
                f"x must have an axis of at least {self.output_stride + 1} voxels, or come in a batch of two, "
                f"for training at output_stride {self.output_stride}, got {tuple(x.shape)}."
            )


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _frozen_statistics(stage)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    """Without it the second forward pass of checkpointing would update the running statistics a second time."""
    norms = [module for module in stage.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved):
            norm.momentum, norm.num_batches_tracked = momentum, count

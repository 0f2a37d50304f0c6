"""The 3D residual encoders of Med3D (section 3.2), with the tensor names and shapes of the published weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from med3d_ext.errors import InputError
from med3d_ext.networks.blocks import BasicBlock, Block, Bottleneck, PreActivationBottleneck, make_stage

STAGE_CHANNELS = (64, 128, 256, 512)

# (stride, dilation) of layer1..layer4. At 8 the numbers are those of the authors' code; the paper's text says only that
# stages 3 and 4 have stride 1 and "rate 2".
STAGES = {
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


@dataclass(frozen=True)
class Architecture:
    """One row of the table of depths: block, blocks per stage, and the shortcut of the published weights."""

    block: Block
    layers: tuple[int, int, int, int]
    shortcut: str


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

    The features are the stem after its ReLU (stride 2) and ``layer1`` to ``layer4``; ``channels`` and ``strides`` tell
    of each. An axis of ``n`` voxels becomes ``ceil(n / stride)``, so odd sizes are welcome. The state dict has the
    names, shapes and order of the published weights (`conv1 bn1 layer1..4`, no head). Pre-activation features are the
    residual sums, as in the released Kinetics weights: no last normalization.

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
        architecture = _architecture(name)
        shortcut = shortcut or architecture.shortcut
        _check_choices(output_stride, shortcut)
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
            stages.append(make_stage(architecture.block, self.channels[-1], width, depth, step, dilation, shortcut))
            stride *= step
            self.channels.append(width * architecture.block.expansion)
            self.strides.append(stride)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.apply(_initialize)

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
            x = checkpoint(stage, x, use_reentrant=False, context_fn=_recompute_contexts(stage))
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


def _architecture(name: str) -> Architecture:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    nearest = difflib.get_close_matches(str(name), ARCHITECTURES, n=1, cutoff=0.0)
    raise InputError(
        f"network_name must be one of {', '.join(ARCHITECTURES)}, got {name!r}; the nearest is {', '.join(nearest)}."
    )


def _check_choices(output_stride: int, shortcut: str) -> None:
    if output_stride not in STAGES:
        raise InputError(f"output_stride must be one of {', '.join(map(str, STAGES))}, got {output_stride!r}.")
    if shortcut not in ("A", "B"):
        raise InputError(f"shortcut must be A, B or null (that of the published weights), got {shortcut!r}.")


def _initialize(module: nn.Module) -> None:
    """He initialization of the convolutions; BatchNorm starts at weight 1, bias 0 by itself."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _recompute_contexts(stage: nn.Module):
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _frozen_statistics(stage)

    return contexts


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

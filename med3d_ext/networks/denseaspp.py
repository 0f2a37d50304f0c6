"""DenseASPP in 3D: the fine network of the LiTS cascade (section 3.3), after the 2D one of Yang et al. (CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from med3d_ext.networks.resnet import ResNetEncoder

DILATIONS = (3, 6, 12, 18, 24)
"""Of the original; on features at stride 8 the widest kernel then spans 49 cells, 392 voxels of the input."""


def make_branch(
    in_channels: int, widths: Sequence[int], dilation: int, dropout: float, leading_norm: bool = True
) -> nn.Sequential:
    """One dilated branch: [norm], ReLU, 1x1x1 convolution, norm, ReLU, dilated 3x3x3 convolution, channel dropout.

    The zero padding equals the dilation, so the size stays. Along an axis of at most ``dilation`` cells the outer taps
    see only zeros and learn nothing; where that holds for all three axes the branch acts as the 1x1x1 convolution of
    its center tap. It stays finite and trainable, and a larger input brings the outer taps back.

    Args:
        in_channels: channels of the features.
        widths: channels after the 1x1x1 and after the dilated convolution.
        dilation: distance between the taps of the 3x3x3 kernel.
        dropout: share of output channels dropped in training.
        leading_norm: begin with a norm; the first branch does not, its input being the encoder's. Defaults to True.
    """
    reduced, out_channels = widths
    return nn.Sequential(
        *([nn.BatchNorm3d(in_channels)] if leading_norm else []),
        nn.ReLU(),  # not in place: the dense concatenation still needs the features
        nn.Conv3d(in_channels, reduced, 1, bias=False),  # the norm would take a bias out again
        nn.BatchNorm3d(reduced),
        nn.ReLU(inplace=True),
        nn.Conv3d(reduced, out_channels, 3, padding=dilation, dilation=dilation),
        nn.Dropout3d(dropout),
    )


class DenseASPP(nn.Module):
    """Branches of growing dilation, each fed with the features and all earlier branches (dense concatenation).

    Args:
        in_channels: channels of the features.
        widths: channels inside and out of each branch. Defaults to 128, 64; the original's large setting is 512, 128.
        dropout: share of channels dropped after each branch in training. Defaults to 0.1.
        dilations: one branch for each. Defaults to the original's 3, 6, 12, 18, 24.

    Raises:
        ValueError: ``widths`` is not two positive numbers.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (128, 64),
        dropout: float = 0.1,
        dilations: Sequence[int] = DILATIONS,
    ) -> None:
        super().__init__()
        if len(widths) != 2 or min(widths) < 1:
            raise ValueError(f"widths must be two positive numbers, got {list(widths)}.")
        self.branches = nn.ModuleList(
            make_branch(in_channels + index * widths[1], widths, dilation, dropout, leading_norm=index > 0)
            for index, dilation in enumerate(dilations)
        )
        self.out_channels = in_channels + len(dilations) * widths[1]

    def forward(self, features: Tensor) -> Tensor:
        """The branches' results, last first, then the features: N x out_channels x D x H x W."""
        for branch in self.branches:
            features = torch.cat((branch(features), features), dim=1)
        return features


class DenseASPPSegmenter(nn.Module):
    """Encoder, DenseASPP, 1x1x1 convolution, trilinear up-sampling to the input grid (section 3.3, LiTS fine network).

    Args:
        network_name: depth of the encoder, see :class:`~med3d_ext.networks.resnet.ResNetEncoder`. Defaults to
            `resnet10`; the paper's is `resnet152`.
        in_channels: channels of the input. Defaults to 1.
        num_classes: channels of the logits, background counted. Defaults to 2.
        output_stride: 8, 16 or 32. Defaults to 8.
        widths: see :class:`DenseASPP`. Defaults to 128, 64.
        dropout: share of channels dropped after each branch and before the head in training. Defaults to 0.1.
        shortcut: `A`, `B` or None for that of the published weights. Defaults to None.
        checkpointing: trade time for memory in training. Defaults to False.
    """

    def __init__(
        self,
        network_name: str = "resnet10",
        in_channels: int = 1,
        num_classes: int = 2,
        output_stride: int = 8,
        widths: Sequence[int] = (128, 64),
        dropout: float = 0.1,
        shortcut: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(network_name, in_channels, output_stride, shortcut, checkpointing)
        self.decoder = DenseASPP(self.encoder.channels[-1], widths, dropout)
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(self.decoder.out_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N x num_classes x D x H x W of ``x``: N x in_channels x D x H x W."""
        logits = self.head(self.dropout(self.decoder(self.encoder(x)[-1])))
        return F.interpolate(logits, size=x.shape[2:], mode="trilinear", align_corners=False)

"""Decoders: the lung network's groups on doubled grids, DenseASPP in 3D (section 3.3), and finer features for it.

A decoder takes the last feature and has ``out_channels``; see :class:`~med3d_ext.networks.SegmentationNetwork`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_WIDTH = 256


def make_group(in_channels: int, width: int) -> nn.Sequential:
    """One group: a transposed convolution to ``width`` on the doubled grid, a convolution to half of ``width``.

    A norm and a ReLU follow each, as in the authors' demo head. Padding and output padding make ``n`` cells ``2 n`` and
    keep cell ``i`` at ``2 i``, which is where the encoder's strides have taken it from.
    """
    return nn.Sequential(
        nn.ConvTranspose3d(in_channels, width, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
        nn.Conv3d(width, width // 2, 3, padding=1, bias=False),
        nn.BatchNorm3d(width // 2),
        nn.ReLU(inplace=True),
    )


class LungDecoder(nn.Sequential):
    """Groups of 256/128, 128/64, 64/32 channels, each on a grid twice as fine (see :func:`make_group`).

    The paper has the channels "doubling" from group to group; towards the output, where a group's grid has eight times
    the cells, that can only mean halving.

    Args:
        in_channels: channels of the features.
        groups: number of groups. Defaults to the paper's 3, for features at stride 8.
    """

    def __init__(self, in_channels: int, groups: int = 3) -> None:
        widths = [FIRST_WIDTH >> number for number in range(groups)]
        inputs = [in_channels, *(width // 2 for width in widths)]
        super().__init__(*(make_group(*each) for each in zip(inputs, widths)))
        self.out_channels = inputs[-1]


DILATIONS = (3, 6, 12, 18, 24)
"""Of the original; on features at stride 8 the widest kernel then spans 49 cells, 392 voxels of the input."""


def make_branch(
    in_channels: int, widths: Sequence[int], dilation: int, dropout: float, leading_norm: bool = True
) -> nn.Sequential:
    """One dilated branch: [norm], ReLU, 1x1x1 convolution, norm, ReLU, dilated 3x3x3 convolution, channel dropout.

    The first branch has no leading norm, its input being the encoder's. The zero padding equals the dilation, so the
    size stays; along an axis of at most ``dilation`` cells the outer taps see only zeros and learn nothing.
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


class SkipConnections(nn.Module):
    """Decoded features taken up to finer grids of the encoder, with its features there: not the paper's.

    Logits of stride 8 are too coarse for a border. As in DeepLab v3+ (Chen et al. 2018) each step reduces the channels
    by a 1x1x1 convolution, resizes to the finer grid, joins the encoder's features and convolves. Two steps, to strides
    4 and 2, cost a fifth of a training step and stay far from the full grid, where a U-Net spends most of its time.

    Args:
        in_channels: channels of the decoded features.
        encoder_channels: channels of the encoder's features, fine to coarse.
        widths: channels after each step, to features 1 and 0 of the encoder. Defaults to 64 and 32.
    """

    def __init__(self, in_channels: int, encoder_channels: Sequence[int], widths: Sequence[int] = (64, 32)) -> None:
        super().__init__()
        self.reductions, self.joints = nn.ModuleList(), nn.ModuleList()
        for number, width in enumerate(widths):
            joined = width + encoder_channels[len(widths) - 1 - number]
            self.reductions.append(_normalized(nn.Conv3d(in_channels, width, 1, bias=False)))
            self.joints.append(_normalized(nn.Conv3d(joined, width, 3, padding=1, bias=False)))
            in_channels = width
        self.out_channels = in_channels

    def forward(self, decoded: Tensor, features: list[Tensor]) -> Tensor:
        """N x out_channels on the grid of the first of ``features``.

        Args:
            decoded: N x in_channels on a coarse grid.
            features: the encoder's, fine to coarse.
        """
        finer = len(self.reductions)
        for reduction, joint in zip(self.reductions, self.joints):
            finer -= 1
            resized = F.interpolate(
                reduction(decoded), size=features[finer].shape[2:], mode="trilinear", align_corners=False
            )
            decoded = joint(torch.cat((resized, features[finer]), dim=1))
        return decoded


def _normalized(convolution: nn.Conv3d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm3d(convolution.out_channels), nn.ReLU(inplace=True))

"""The networks that the bundles compose in JSON, composed in Python."""

from __future__ import annotations

from collections.abc import Sequence

from med3d_ext.networks import DenseASPP, LungDecoder, ResNetEncoder, SegmentationNetwork


def lung_network(
    name: str = "resnet10", in_channels: int = 1, num_classes: int = 2, output_stride: int = 8, **encoder
) -> SegmentationNetwork:
    """The network of ``lung_segmentation``."""
    part = ResNetEncoder(name, in_channels, output_stride, **encoder)
    decoder = LungDecoder(part.channels[-1], groups=output_stride.bit_length() - 1)
    return SegmentationNetwork(part, decoder, num_classes)


def aspp_network(
    name: str = "resnet10",
    in_channels: int = 1,
    num_classes: int = 2,
    output_stride: int = 8,
    widths: Sequence[int] = (128, 64),
    dropout: float = 0.1,
    **encoder,
) -> SegmentationNetwork:
    """The fine network of ``lits_fine``."""
    part = ResNetEncoder(name, in_channels, output_stride, **encoder)
    return SegmentationNetwork(part, DenseASPP(part.channels[-1], widths, dropout), num_classes, dropout=dropout)

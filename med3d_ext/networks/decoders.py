"""The lung network: an encoder and a decoder that doubles the grid group by group back to the input's (section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from med3d_ext.networks.resnet import ResNetEncoder

FIRST_WIDTH = 256


def make_group(in_channels: int, width: int) -> nn.Sequential:
    """One group: a transposed convolution to ``width`` on the doubled grid, a convolution to half of ``width``.

    A norm and a ReLU follow each, as in the authors' demo head. Padding and output padding make ``n`` cells ``2 n`` and
    keep cell ``i`` at ``2 i``, which is where the encoder's strides have taken it from.

    Args:
        in_channels: channels of the features.
        width: channels after the transposed convolution.
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


class LungSegmenter(nn.Module):
    """Encoder, decoder groups, 1x1x1 convolution: logits on the input grid, of whatever size (section 3.3, lung).

    Args:
        network_name: depth of the encoder, see :class:`~med3d_ext.networks.resnet.ResNetEncoder`. Defaults to
            `resnet10`.
        in_channels: channels of the input. Defaults to 1.
        num_classes: channels of the logits, background counted. Defaults to 2.
        output_stride: 8 (the paper's three groups), 16 or 32 (a group more for each doubling). Defaults to 8.
        shortcut: `A`, `B` or None for that of the published weights. Defaults to None.
        checkpointing: trade time for memory in training, of the encoder. Defaults to False.
    """

    def __init__(
        self,
        network_name: str = "resnet10",
        in_channels: int = 1,
        num_classes: int = 2,
        output_stride: int = 8,
        shortcut: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(network_name, in_channels, output_stride, shortcut, checkpointing)
        self.decoder = LungDecoder(self.encoder.channels[-1], groups=output_stride.bit_length() - 1)
        self.head = nn.Conv3d(self.decoder.out_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N x num_classes x D x H x W of ``x``: N x in_channels x D x H x W."""
        logits = self.head(self.decoder(self.encoder(x)[-1]))
        # The encoder rounds up: what a size that is no multiple of the stride has too much lies at the far end.
        return logits[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]

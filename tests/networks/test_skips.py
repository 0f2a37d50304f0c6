"""Skip connections after a decoder: by hand, every size and output stride, script, and what they are for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from med3d_ext.networks import DenseASPP, ResNetEncoder, SegmentationNetwork, SkipConnections


def network(output_stride: int = 8, widths: tuple[int, ...] = (64, 32)) -> SegmentationNetwork:
    torch.manual_seed(0)
    encoder = ResNetEncoder("resnet10", output_stride=output_stride)
    decoder = DenseASPP(encoder.channels[-1])
    skips = SkipConnections(decoder.out_channels, encoder.channels, widths)
    return SegmentationNetwork(encoder, decoder, num_classes=3, skips=skips)


def test_two_steps_written_out_by_hand():
    torch.manual_seed(1)
    skips = SkipConnections(5, [2, 3, 4], widths=(6, 7)).eval()
    decoded, features = (
        torch.randn(1, 5, 2, 3, 2),
        [torch.randn(1, c, *s) for c, s in ((2, (8, 11, 7)), (3, (4, 6, 4)))],
    )
    state, x = skips.state_dict(), decoded
    for step, finer in enumerate((features[1], features[0])):
        for part, padding in (("reductions", 0), ("joints", 1)):
            x = F.conv3d(x, state[f"{part}.{step}.0.weight"], padding=padding) / (1 + 1e-5) ** 0.5
            x = F.relu(x)
            if part == "reductions":
                x = F.interpolate(x, size=finer.shape[2:], mode="trilinear", align_corners=False)
                x = torch.cat((x, finer), dim=1)
    torch.testing.assert_close(skips(decoded, features), x)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(32, 32, 32), (33, 40, 17)])
def test_logits_are_on_the_input_grid_and_every_parameter_learns(output_stride, size):
    net = network(output_stride)
    logits = net(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_scripted_network_gives_the_same_logits():
    net = network().eval()
    scripted = torch.jit.script(net)
    for size in ((32, 32, 32), (24, 40, 17)):
        x = torch.randn(1, 1, *size)
        torch.testing.assert_close(scripted(x), net(x))


def test_without_them_a_network_is_the_one_that_it_was():
    assert not any("skips" in name for name in SegmentationNetwork(ResNetEncoder("resnet10")).state_dict())


def test_they_draw_a_plane_that_logits_of_stride_8_cannot():
    """A checkerboard of 4 voxels, which the encoder's features at strides 2 and 4 still show."""
    axes = torch.arange(32) // 4 % 2
    label = (axes[:, None, None] + axes[None, :, None] + axes[None, None, :]) % 2
    x, losses = label.float()[None, None] - 0.5, {}
    for widths in ((64, 32), ()):
        torch.manual_seed(0)
        encoder = ResNetEncoder("resnet10")
        skips = SkipConnections(encoder.channels[-1], encoder.channels, widths) if widths else None
        net = SegmentationNetwork(encoder, num_classes=2, skips=skips)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.003)
        for _ in range(25):
            loss = F.cross_entropy(net(x), label[None])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[widths] = loss.item()
    assert losses[64, 32] < 0.5 * losses[()]

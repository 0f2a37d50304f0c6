"""The decoders: each written out by hand, the grids that they return to, gradients, export."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from composed_networks import aspp_network, lung_network
from torch import nn

from med3d_ext.networks import (
    DenseASPP,
    LungDecoder,
    ResNetEncoder,
    SegmentationNetwork,
    Segmenter,
    SkipConnections,
    TwoStageSegmenter,
)
from med3d_ext.networks.decoders import DILATIONS, make_branch, make_group
from med3d_ext.networks.resnet import ARCHITECTURES

SIZE = (17, 20, 9)


def volumes(samples: int, size: tuple[int, ...] = SIZE, channels: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(samples, channels, *size)


def randomize_norms(module: nn.Module) -> None:
    """Give every norm its own statistics, so that a misplaced norm shows in evaluation mode."""
    torch.manual_seed(2)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)


def test_three_groups_and_a_1x1x1_convolution_written_out_by_hand():
    net = lung_network(num_classes=3).eval()
    randomize_norms(net)
    state, x = net.state_dict(), volumes(2)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *[state[f"{name}.{each}"] for each in names]))

    y = net.encoder(x)[-1]
    for group in ("decoder.0", "decoder.1", "decoder.2"):
        y = F.conv_transpose3d(y, state[f"{group}.0.weight"], stride=2, padding=1, output_padding=1)
        y = norm(y, f"{group}.1")
        y = norm(F.conv3d(y, state[f"{group}.3.weight"], padding=1), f"{group}.4")
    y = F.conv3d(y, state["head.weight"], state["head.bias"])
    assert y.shape[2:] == (24, 24, 16)
    torch.testing.assert_close(net(x), y[:, :, :17, :20, :9])


def test_the_channels_are_the_papers_and_halve():
    decoder = LungDecoder(512)
    convolutions = [each for each in decoder.modules() if isinstance(each, (nn.Conv3d, nn.ConvTranspose3d))]
    assert [each.out_channels for each in convolutions] == [256, 128, 128, 64, 64, 32]
    assert [each.in_channels for each in convolutions] == [512, 256, 128, 128, 64, 64]
    assert {each.kernel_size for each in convolutions} == {(3, 3, 3)}
    assert [each.stride[0] for each in convolutions] == [2, 1] * 3
    assert decoder.out_channels == 32


def test_a_group_puts_cell_i_at_2i_where_the_encoders_stride_took_it_from():
    group = make_group(1, 2).eval()
    up, plain = group[0], group[3]
    for convolution in (up, plain):
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[:, :, 1, 1, 1] = 1.0  # the center taps alone
    x = torch.zeros(1, 1, 4, 5, 3)
    x[0, 0, 2, 3, 1] = 1.0
    assert torch.nonzero(group(x)[0, 0]).tolist() == [[4, 6, 2]]


@pytest.mark.parametrize("size", [(8, 8, 8), SIZE, (1, 16, 3), (23, 24, 25)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_any_size_comes_back_as_it_was(size, output_stride):
    net = lung_network(num_classes=3, output_stride=output_stride).eval()
    with torch.inference_mode():
        logits = net(volumes(1, size))
    assert logits.shape == (1, 3, *size) and logits.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_depth_returns_to_the_input_grid(name):
    with torch.device("meta"):
        net = lung_network(name, 2, 3)
        assert net(torch.zeros(1, 2, 40, 33, 24)).shape == (1, 3, 40, 33, 24)
    assert net.decoder[0][0].in_channels == net.encoder.channels[-1]


def test_every_parameter_gets_a_gradient():
    net = lung_network()
    net(volumes(2, (24, 17, 16))).square().mean().backward()
    assert [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_the_scripted_network_takes_other_sizes():
    net = lung_network().eval()
    scripted = torch.jit.script(net)
    for size in (SIZE, (16, 8, 8)):
        torch.testing.assert_close(scripted(volumes(1, size)), net(volumes(1, size)))


def test_onnx_runtime_gives_the_same_logits_for_other_sizes(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    net = lung_network().eval()
    axes = {"image": {2: "depth", 3: "height", 4: "width"}}
    options = {"dynamo": False, "input_names": ["image"], "opset_version": 17, "dynamic_axes": axes}
    torch.onnx.export(net, (volumes(1),), tmp_path / "net.onnx", **options)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for size in (SIZE, (10, 24, 16)):
        x = volumes(1, size)
        assert (torch.from_numpy(session.run(None, {"image": x.numpy()})[0]) - net(x)).abs().max() < 1e-3


def features(channels: int = 6, size: tuple[int, ...] = (5, 4, 3)) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, channels, *size)


def test_the_order_is_that_of_the_original_written_out_by_hand():
    net = DenseASPP(6, (4, 3)).eval()
    randomize_norms(net)
    x = features()
    state = net.state_dict()

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *[state[f"{name}.{each}"] for each in names])

    for index, dilation in enumerate(DILATIONS):
        at, shift = f"branches.{index}", 0 if index == 0 else 1
        y = norm(x, f"{at}.0") if index > 0 else x
        y = F.conv3d(F.relu(y), state[f"{at}.{shift + 1}.weight"])
        y = F.relu(norm(y, f"{at}.{shift + 2}"))
        weight, bias = state[f"{at}.{shift + 4}.weight"], state[f"{at}.{shift + 4}.bias"]
        x = torch.cat((F.conv3d(y, weight, bias, padding=dilation, dilation=dilation), x), dim=1)
    torch.testing.assert_close(net(features()), x)


@pytest.mark.parametrize(("widths", "parameters"), [((128, 64), 1_522_496), ((512, 128), 10_825_856)])
def test_the_widths_decide_the_channels_and_the_parameters(widths, parameters):
    with torch.device("meta"):
        net = DenseASPP(512, widths)
    assert net.out_channels == 512 + 5 * widths[1]
    assert [branch[-2].out_channels for branch in net.branches] == [widths[1]] * 5
    inputs = [512 + index * widths[1] for index in range(5)]
    norms = 2 * sum(inputs[1:]) + 5 * 2 * widths[0]
    convolutions = sum(inputs) * widths[0] + 5 * (27 * widths[0] + 1) * widths[1]
    assert sum(each.numel() for each in net.parameters()) == norms + convolutions == parameters


def test_channels_drop_whole_and_only_in_training():
    net = make_branch(6, (4, 1000), 1, dropout=0.1)
    torch.manual_seed(0)
    dropped = (net(features()) == 0).flatten(2)
    assert (dropped.all(dim=2) == dropped.any(dim=2)).all()
    assert 0.05 < dropped.all(dim=2).float().mean() < 0.15
    assert not (net.eval()(features()) == 0).flatten(2).all(dim=2).any()


def test_a_dilation_of_at_least_the_map_acts_as_the_1x1x1_convolution_of_the_center_tap():
    branch = make_branch(6, (4, 3), 5, dropout=0.1).eval()
    reduced = branch[:-2](features())
    center = F.conv3d(reduced, branch[-2].weight[..., 1:2, 1:2, 1:2], branch[-2].bias)
    torch.testing.assert_close(branch(features()), center)


@pytest.mark.parametrize("size", [(8, 8, 8), (17, 20, 9), (3, 16, 1)])
def test_small_volumes_in_denseaspp_give_finite_logits_of_their_own_shape(size):
    net = aspp_network(num_classes=3, widths=(8, 4)).eval()
    with torch.no_grad():
        logits = net(features(1, size))
    assert logits.shape == (1, 3, *size) and logits.isfinite().all()


def test_every_parameter_of_denseaspp_gets_a_gradient():
    net = aspp_network(widths=(8, 4), dropout=0.0)
    torch.manual_seed(0)
    net(torch.randn(2, 1, 32, 32, 16)).square().mean().backward()
    without = [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []


def test_a_network_with_denseaspp_scripts():
    net = aspp_network(widths=(8, 4)).eval()
    x = features(1, (16, 16, 9))
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


def test_widths_must_be_two():
    with pytest.raises(ValueError, match=r"widths must be two positive numbers, got \[128\]"):
        DenseASPP(512, [128])


def test_the_two_stages_share_one_state_dict_and_the_fine_one_answers():
    coarse, fine = Segmenter(output_stride=32), aspp_network(widths=(8, 4))
    net = TwoStageSegmenter(coarse, fine).eval()
    prefixes = [key.split(".")[0] for key in net.state_dict()]
    assert prefixes.count("coarse") == len(coarse.state_dict())
    assert prefixes.count("fine") == len(fine.state_dict())
    assert len(prefixes) == len(coarse.state_dict()) + len(fine.state_dict())
    x = features(1, (16, 16, 16))
    assert torch.equal(net(x), fine(x))


def skip_network(output_stride: int = 8, widths: tuple[int, ...] = (64, 32)) -> SegmentationNetwork:
    torch.manual_seed(0)
    encoder = ResNetEncoder("resnet10", output_stride=output_stride)
    decoder = DenseASPP(encoder.channels[-1])
    skips = SkipConnections(decoder.out_channels, encoder.channels, widths)
    return SegmentationNetwork(encoder, decoder, num_classes=3, skips=skips)


def test_two_steps_of_skip_connections_written_out_by_hand():
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
def test_with_skip_connections_logits_are_on_the_input_grid_and_every_parameter_learns(output_stride, size):
    net = skip_network(output_stride)
    logits = net(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_network_with_skip_connections_scripts():
    net = skip_network().eval()
    scripted = torch.jit.script(net)
    for size in ((32, 32, 32), (24, 40, 17)):
        x = torch.randn(1, 1, *size)
        torch.testing.assert_close(scripted(x), net(x))

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from composed_networks import aspp_network
from torch import nn

from med3d_ext.networks import DenseASPP, Segmenter, TwoStageSegmenter
from med3d_ext.networks.decoders import DILATIONS, make_branch


def features(channels: int = 6, size: tuple[int, ...] = (5, 4, 3)) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, channels, *size)


def randomize_norms(module: nn.Module) -> None:
    """Give every norm its own statistics, so that a misplaced norm shows in evaluation mode."""
    torch.manual_seed(2)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)


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


def test_the_first_branch_has_no_leading_norm_and_the_others_have_one():
    net = DenseASPP(6, (4, 3))
    assert [isinstance(branch[0], nn.BatchNorm3d) for branch in net.branches] == [False, True, True, True, True]


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


def test_one_cell_more_than_the_dilation_brings_an_outer_tap_back():
    branch = make_branch(6, (4, 3), 5, dropout=0.0).eval()
    for size, outer in (((5, 5, 5), 0), ((6, 5, 5), 2)):
        branch.zero_grad()
        branch(features(size=size)).sum().backward()
        reached = branch[-2].weight.grad.abs().sum(dim=(0, 1)) > 0
        assert int(reached.sum()) == 1 + outer


@pytest.mark.parametrize("size", [(8, 8, 8), (17, 20, 9), (3, 16, 1)])
def test_small_volumes_give_finite_logits_of_their_own_shape(size):
    net = aspp_network(num_classes=3, widths=(8, 4)).eval()
    with torch.no_grad():
        logits = net(features(1, size))
    assert logits.shape == (1, 3, *size) and logits.isfinite().all()


def test_every_parameter_gets_a_gradient():
    net = aspp_network(widths=(8, 4), dropout=0.0)
    torch.manual_seed(0)
    net(torch.randn(2, 1, 32, 32, 16)).square().mean().backward()
    without = [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []


def test_the_segmenter_scripts():
    net = aspp_network(widths=(8, 4)).eval()
    x = features(1, (16, 16, 9))
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


def test_options_reach_the_encoder_and_the_decoder():
    with torch.device("meta"):
        net = aspp_network("resnet50", 4, 5, 16, (512, 128), 0.3, shortcut="A", checkpointing=True)
    assert (net.encoder.in_channels, net.encoder.output_stride, net.encoder.checkpointing) == (4, 16, True)
    assert "encoder.layer2.0.downsample.0.weight" not in net.state_dict()
    assert net.decoder.out_channels == net.head.in_channels == 2048 + 5 * 128
    assert {each.p for each in net.modules() if isinstance(each, nn.Dropout3d)} == {0.3}
    assert net(torch.zeros(1, 4, 32, 32, 32, device="meta")).shape == (1, 5, 32, 32, 32)


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

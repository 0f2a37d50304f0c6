"""The lung network: groups by hand, the grid that it returns to, every depth and size, export."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from composed_networks import lung_network
from monai.data import MetaTensor
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.networks import LungDecoder, Segmenter, encoder_state_dict
from med3d_ext.networks.decoders import make_group
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


def test_the_decoder_shifts_nothing():
    """With symmetric kernels the answer to one cell is symmetric about the voxel that the cell stands on."""
    torch.manual_seed(0)
    decoder = LungDecoder(2).eval()
    for convolution in (each for each in decoder.modules() if isinstance(each, (nn.Conv3d, nn.ConvTranspose3d))):
        convolution.weight.data += convolution.weight.data.flip(2)
    x = torch.zeros(1, 2, 9, 1, 1)
    x[:, :, 4] = 1.0
    with torch.inference_mode():
        answer = decoder(x)[0, :, :, 4, 4]
    before, after = answer[:, 20:32].flip(1), answer[:, 33:45]
    torch.testing.assert_close(before, after)
    assert answer[:, 32].any() and not torch.allclose(answer[:, 19:31].flip(1), answer[:, 32:44])


@pytest.mark.parametrize("size", [(8, 8, 8), SIZE, (1, 16, 3), (23, 24, 25)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_any_size_comes_back_as_it_was(size, output_stride):
    net = lung_network(num_classes=3, output_stride=output_stride).eval()
    with torch.inference_mode():
        logits = net(volumes(1, size))
    assert logits.shape == (1, 3, *size) and logits.isfinite().all()


@pytest.mark.parametrize(("output_stride", "groups"), [(8, 3), (16, 4), (32, 5)])
def test_there_is_a_group_for_each_doubling(output_stride, groups):
    with torch.device("meta"):
        assert len(lung_network(output_stride=output_stride).decoder) == groups


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_depth_returns_to_the_input_grid(name):
    with torch.device("meta"):
        net = lung_network(name, 2, 3)
        assert net(torch.zeros(1, 2, 40, 33, 24)).shape == (1, 3, 40, 33, 24)
    assert net.decoder[0][0].in_channels == net.encoder.channels[-1]


def test_options_reach_the_encoder_and_a_wrong_one_is_named():
    with torch.device("meta"):
        net = lung_network("resnet34", 4, 5, 16, shortcut="B", checkpointing=True)
    assert (net.encoder.in_channels, net.encoder.output_stride, net.encoder.checkpointing) == (4, 16, True)
    assert "encoder.layer2.0.downsample.0.weight" in net.state_dict()
    with pytest.raises(InputError, match="output_stride must be one of 8, 16, 32, got 4"):
        lung_network(output_stride=4)


def test_every_parameter_gets_a_gradient():
    net = lung_network()
    net(volumes(2, (24, 17, 16))).square().mean().backward()
    assert [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_a_pretrained_encoder_fits_as_it_is():
    pretrained, net = Segmenter(), lung_network()
    net.encoder.load_state_dict(encoder_state_dict(pretrained), strict=True)
    x = volumes(1)
    assert torch.equal(net.eval().encoder(x)[-1], pretrained.eval().encoder(x)[-1])


def test_it_learns_a_small_shape_from_a_few_steps():
    torch.manual_seed(0)
    net = lung_network()
    x = volumes(2, (16, 16, 8)) * 0.1
    target = torch.zeros(2, 16, 16, 8, dtype=torch.long)
    target[:, 4:11, 3:13, 2:6] = 1
    x[:, 0][target == 1] -= 2
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_meta_tensors_stay_meta_tensors():
    net = lung_network().eval()
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    logits = net(MetaTensor(volumes(2), affine=affine))
    assert isinstance(logits, MetaTensor) and torch.equal(logits.affine, affine)
    assert torch.equal(logits.as_tensor(), net(volumes(2)))


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

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.resnet import ResNet, get_inplanes
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.networks import ResNetEncoder
from med3d_ext.networks.resnet import (
    ARCHITECTURES,
    CHANNELS_OF_A_BLOCK,
    DilatedConv3d,
    PreActivationBottleneck,
    ZeroPadShortcut,
)

LAYOUT = json.loads((Path(__file__).parents[1] / "golden" / "medicalnet_layout.json").read_text())
PUBLISHED = [name for name in LAYOUT if name.startswith("resnet")]


def on_meta(name: str, **options) -> ResNetEncoder:
    with torch.device("meta"):
        return ResNetEncoder(name, **options)


def digest(state: dict[str, torch.Tensor]) -> str:
    layout = [[key, list(value.shape)] for key, value in state.items()]
    return hashlib.sha256(json.dumps(layout, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_state_dict_has_the_published_names_shapes_and_order(name):
    encoder, golden = on_meta(name), LAYOUT[name]
    state = encoder.state_dict()
    assert len(state) == golden["tensors"]
    assert sum(value.numel() for value in state.values()) == golden["stored"]
    assert sum(value.numel() for value in encoder.parameters() if value.requires_grad) == golden["parameters"]
    assert ARCHITECTURES[name].shortcut == golden["shortcut"]
    assert digest(state) == golden["sha256"]


def test_all_seven_published_depths_and_the_pre_activation_one_exist():
    assert sorted(ARCHITECTURES) == sorted([*PUBLISHED, "preact_resnet200"]) and len(PUBLISHED) == 7


def test_the_pre_activation_encoder_has_the_names_of_the_released_kinetics_weights():
    state = on_meta("preact_resnet200").state_dict()
    plain = on_meta("resnet200").state_dict()
    assert set(state) == set(plain)  # the same names: no last normalization beyond them
    assert all(state[key].shape == plain[key].shape for key in state if "conv" in key or "downsample" in key)
    # each block normalizes what comes in, so bn1 is as wide as the block before and bn3 as the middle
    assert [len(state[f"layer2.{block}.bn1.weight"]) for block in (0, 1)] == [256, 512]
    assert len(state["layer2.0.bn3.weight"]) == 128


@pytest.mark.parametrize("stride", [1, 2])
def test_the_pre_activation_block_is_the_formula_of_he_et_al(stride):
    torch.manual_seed(0)
    projection = nn.Conv3d(8, 16, 1, stride=stride, bias=False)
    block = PreActivationBottleneck(8, 4, stride, 2, projection)
    x = torch.randn(2, 8, 5, 6, 7)

    def convolved(conv: nn.Conv3d, value: torch.Tensor) -> torch.Tensor:
        value = F.batch_norm(value, None, None, training=True).relu()
        return F.conv3d(value, conv.weight, stride=conv.stride, padding=conv.padding, dilation=conv.dilation)

    expected = x
    for conv in (block.conv1, block.conv2, block.conv3):
        expected = convolved(conv, expected)
    torch.testing.assert_close(block(x), expected + projection(x))


def monai_features(network: ResNet, x: torch.Tensor) -> list[torch.Tensor]:
    stem = network.act(network.bn1(network.conv1(x)))
    features = [stem, network.layer1(network.maxpool(stem))]
    for stage in (network.layer2, network.layer3, network.layer4):
        features.append(stage(features[-1]))
    return features


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnet50"])
def test_the_strided_encoder_equals_that_of_monai_bit_for_bit(name, shortcut):
    torch.manual_seed(0)
    ours = ResNetEncoder(name, output_stride=32, shortcut=shortcut)
    block = "bottleneck" if name == "resnet50" else "basic"
    theirs = ResNet(
        block,
        list(ARCHITECTURES[name].layers),
        get_inplanes(),
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type=shortcut,
        feed_forward=False,
        bias_downsample=False,
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, 33, 36, 40)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        for own, reference in zip(ours(x), monai_features(theirs, x), strict=True):
            assert torch.equal(own, reference)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_shortcut_a_takes_each_second_voxel_and_appends_zeros():
    x = torch.randn(1, 3, 5, 6, 7)
    taken = F.avg_pool3d(x, 1, stride=2)
    assert torch.equal(ZeroPadShortcut(2, 2)(x), torch.cat([taken, torch.zeros(1, 2, 3, 3, 4)], 1))
    assert torch.equal(ZeroPadShortcut(0, 2)(x), taken)


def test_the_gradient_passes_through_shortcut_a():
    encoder = ResNetEncoder("resnet10", shortcut="A")
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        nn.init.zeros_(stage[0].bn2.weight)  # silences the convolutions: the shortcut is the only way
    encoder(torch.randn(1, 1, 16, 16, 16))[-1].square().sum().backward()
    assert encoder.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name, shortcut", [("resnet10", "A"), ("resnet18", None), ("resnet50", None)])
def test_every_parameter_gets_a_gradient(name, shortcut):
    encoder = ResNetEncoder(name, shortcut=shortcut)
    encoder(torch.randn(2, 1, 17, 16, 16))[-1].square().sum().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None or not value.grad.any()] == []


def steps(encoder: ResNetEncoder) -> list[set[tuple[int, int, int]]]:
    """(stride, dilation, padding) of the 3x3x3 convolutions of each stage."""
    stages = (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4)
    wide = [[m for m in stage.modules() if getattr(m, "kernel_size", 0) == (3, 3, 3)] for stage in stages]
    return [{(conv.stride[0], conv.dilation[0], conv.padding[0]) for conv in stage} for stage in wide]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "preact_resnet200"])
def test_the_output_stride_sets_stride_and_dilation_of_all_blocks(name):
    plain, strided = {(1, 1, 1)}, {(2, 1, 1), (1, 1, 1)}
    assert steps(on_meta(name)) == [plain, strided, {(1, 2, 2)}, {(1, 4, 4)}]
    assert steps(on_meta(name, output_stride=16)) == [plain, strided, strided, {(1, 2, 2)}]
    assert steps(on_meta(name, output_stride=32)) == [plain, strided, strided, strided]


@pytest.mark.parametrize(
    "output_stride, strides", [(8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16]), (32, [2, 4, 8, 16, 32])]
)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_features_have_the_promised_channels_and_the_size_over_the_stride_rounded_up(name, output_stride, strides):
    encoder = on_meta(name, in_channels=3, output_stride=output_stride)
    size = (33, 40, 7)
    assert encoder.strides == strides
    for feature, channels, stride in zip(
        encoder(torch.zeros(2, 3, *size, device="meta")), encoder.channels, strides, strict=True
    ):
        assert list(feature.shape) == [2, channels, *(-(-axis // stride) for axis in size)]


def test_a_single_voxel_passes_in_evaluation_and_says_what_training_needs():
    encoder = ResNetEncoder("resnet10").eval()
    x = torch.randn(1, 1, 8, 8, 8)
    assert encoder(x[..., :1, :1, :1])[-1].shape == (1, 512, 1, 1, 1)
    encoder.train()
    with pytest.raises(ValueError, match=r"at least 9 voxels.*\(1, 1, 8, 8, 8\)"):
        encoder(x)
    assert encoder(F.pad(x, (0, 1)))[-1].shape == (1, 512, 1, 1, 2)
    assert encoder(x.expand(2, -1, -1, -1, -1))[-1].shape == (2, 512, 1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16, 16), (1, 16, 16, 16)])
def test_an_input_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match="x must be N x 1 x D x H x W, got"):
        on_meta("resnet10")(torch.zeros(shape, device="meta"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "resnet51"}, "one of resnet10, .*got 'resnet51'; the nearest is resnet50"),
        ({"name": "resnet10", "output_stride": 4}, "output_stride must be one of 8, 16, 32, got 4"),
        ({"name": "resnet10", "shortcut": "C"}, "shortcut must be A, B or null .*got 'C'"),
    ],
)
def test_a_wrong_option_is_answered_with_the_choices(options, message):
    with pytest.raises(InputError, match=message):
        ResNetEncoder(**options)


def test_convolutions_start_with_he_initialization_over_the_outputs():
    torch.manual_seed(0)
    weight = ResNetEncoder("resnet10").layer4[0].conv1.weight  # 256 to 512 channels
    assert weight.std().item() == pytest.approx((2 / (512 * 27)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet200"])
def test_checkpointing_changes_neither_features_nor_gradients_nor_running_statistics(name, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, name, type(ARCHITECTURES[name])(ARCHITECTURES[name].block, (1, 2, 1, 1), "B"))
    torch.manual_seed(0)
    plain, saving = ResNetEncoder(name), ResNetEncoder(name, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 16, 16, 16)
    outputs = [encoder(x) for encoder in (plain, saving)]
    for features in outputs:
        sum(feature.square().mean() for feature in features).backward()
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), saving.parameters(), strict=True))
    assert all(torch.equal(value, saving.state_dict()[key]) for key, value in plain.state_dict().items())
    assert saving.layer1[0].bn1.momentum == 0.1


def test_checkpointing_recomputes_each_stage_in_the_backward_pass_only():
    encoder = ResNetEncoder("resnet10", checkpointing=True)
    calls: list[int] = []
    encoder.layer3.register_forward_pre_hook(lambda *_: calls.append(1))
    features = encoder(torch.randn(2, 1, 16, 16, 16))
    assert len(calls) == 1
    features[-1].sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_depth_scripts(name):
    scripted = torch.jit.script(on_meta(name, checkpointing=True))
    features = scripted(torch.zeros(2, 1, 17, 16, 9, device="meta"))
    assert [list(feature.shape[2:]) for feature in features[-2:]] == [[3, 2, 2]] * 2


def onnx_features(encoder: ResNetEncoder, x: torch.Tensor, folder: Path) -> list[torch.Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    file = folder / "encoder.onnx"
    torch.onnx.export(encoder, (x,), file, dynamo=False, input_names=["image"], opset_version=17)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(feature) for feature in session.run(None, {"image": x.numpy()})]


def agrees_with_onnx(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    encoder = ResNetEncoder(name).eval()
    x = torch.randn(1, 1, 17, 16, 9)
    encoder.train()(x), encoder.eval()  # running statistics that keep the features of deep encoders near 1
    with torch.no_grad():
        for own, exported in zip(encoder(x), onnx_features(encoder, x, folder), strict=True):
            assert (own - exported).abs().max() < 1e-3 * max(1.0, own.abs().max().item())


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_onnx_runtime_gives_the_same_features(name, tmp_path):
    agrees_with_onnx(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("resnet10", "resnet50")])
def test_onnx_runtime_gives_the_same_features_for_the_other_depths(name, tmp_path):
    agrees_with_onnx(name, tmp_path)


def twins(in_channels: int, out_channels: int, **options) -> tuple[nn.Conv3d, DilatedConv3d]:
    plain = nn.Conv3d(in_channels, out_channels, 3, padding=2, dilation=2, bias=False, **options)
    ours = DilatedConv3d(in_channels, out_channels, 3, padding=2, dilation=2, bias=False, **options)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


@pytest.mark.parametrize(("in_channels", "out_channels"), [(300, 270), (520, 8), (8, 520), (16, 16)])
@pytest.mark.parametrize("stride", [1, 2])
def test_in_bfloat16_results_and_gradients_are_those_of_one_convolution(in_channels, out_channels, stride):
    torch.manual_seed(0)
    plain, ours = twins(in_channels, out_channels, stride=stride)
    x = torch.randn(1, in_channels, 5, 4, 3)
    expected, results = plain(x), []
    cotangent = torch.randn_like(expected)
    for convolution in (plain, ours):
        convolution.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = convolution(inputs)
        y.float().backward(cotangent)
        results.append((y.float(), inputs.grad, convolution.weight.grad))
    # Each block's part is rounded (to 2^-8), and the sum of all; without blocks it is two roundings that may differ.
    blocks = -(-max(in_channels, out_channels) // CHANNELS_OF_A_BLOCK)
    tolerance = (blocks + 1) * 2**-8
    for one, other in zip(*results):
        assert (one - other).abs().max() <= tolerance * one.abs().max()
    assert (expected - results[1][0]).abs().max() <= tolerance * expected.abs().max()


def test_in_float32_and_in_torchscript_it_is_the_convolution_to_the_bit():
    plain, ours = twins(300, 270)
    x = torch.randn(1, 300, 5, 4, 3)
    assert torch.equal(plain(x), ours(x)) and torch.equal(plain(x), torch.jit.script(ours)(x))

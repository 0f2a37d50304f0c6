from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet as monai_resnet
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.networks.med3d import Classifier, Med3DNet, Segmenter
from med3d_ext.networks.resnet import ARCHITECTURES, ResNetEncoder
from med3d_ext.weights.initial import (
    InitialWeights,
    adapt_stem,
    describe_weights,
    encoder_of,
    find_weights,
    load_encoder,
    read_weights,
    write_state,
)
from med3d_ext.weights.loading import fit_weights

MEDICALNET_DEPTHS = [name for name in ARCHITECTURES if not name.startswith("preact")]


def _trained(network: nn.Module) -> nn.Module:
    """Values as after a training: BatchNorm at its start would hide statistics that were not loaded."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.5, 0.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return network.eval()


@pytest.fixture(scope="module")
def encoder() -> ResNetEncoder:
    torch.manual_seed(0)
    return _trained(ResNetEncoder("resnet10"))


@pytest.fixture(scope="module")
def rgb() -> ResNetEncoder:
    torch.manual_seed(1)
    return _trained(ResNetEncoder("resnet10", in_channels=3))


def _prefixed(prefix: str, encoder: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in encoder.state_dict().items()}


def _sgd(network: nn.Module) -> dict:
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9).state_dict()


def _medicalnet(encoder: nn.Module) -> dict:
    return {"ecpoch": 3, "batch_id": 0, "state_dict": _prefixed("module.", encoder), "optimizer": _sgd(encoder)}


def _medicalnet_finetuned(encoder: nn.Module) -> dict:
    head = {"module.conv_seg.0.weight": torch.ones(2, 2), "module.conv_seg.0.bias": torch.ones(2)}
    return {"state_dict": _prefixed("module.", encoder) | head}


def _kinetics_2018(encoder: nn.Module) -> dict:
    state = _prefixed("module.", encoder) | {
        "module.fc.weight": torch.ones(400, 512),
        "module.fc.bias": torch.ones(400),
    }
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return {"epoch": 66, "arch": "resnet-10", "state_dict": state, "optimizer": _sgd(encoder)}


def _kinetics_2020(encoder: nn.Module) -> dict:
    state = _prefixed("", encoder) | {"fc.weight": torch.ones(700, 512), "fc.bias": torch.ones(700)}
    scheduler = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD(encoder.parameters(), lr=0.1), [50, 100])
    return {
        "epoch": 200,
        "arch": "resnet-10",
        "state_dict": state,
        "optimizer": _sgd(encoder),
        "scheduler": scheduler.state_dict(),
    }


def _whole_network(encoder: nn.Module) -> dict:
    network = Med3DNet("resnet10", encoder.in_channels, {"liver": 2, "heart": 3})
    network.encoder.load_state_dict(encoder.state_dict())
    return network.state_dict()


def _training_state(encoder: nn.Module) -> dict:
    return {"model": _whole_network(encoder), "optimizer": _sgd(encoder), "trainer": {"epoch": 4}}


def _cascade(encoder: nn.Module) -> dict:
    coarse = {name: torch.zeros_like(tensor) for name, tensor in _prefixed("network.coarse.encoder.", encoder).items()}
    return coarse | _prefixed("network.fine.encoder.", encoder) | {"network.fine.aspp.weight": torch.ones(3)}


LAYOUTS = {
    "medicalnet": (_medicalnet, "medicalnet"),
    "medicalnet_finetuned": (_medicalnet_finetuned, "medicalnet"),
    "kinetics_2018": (_kinetics_2018, "kinetics"),
    "kinetics_2020": (_kinetics_2020, "kinetics"),
    "whole_network": (_whole_network, "network"),
    "training_state": (_training_state, "network"),
    "cascade": (_cascade, "network"),
    "coarse_alone": (lambda encoder: _prefixed("coarse.encoder.", encoder), "network"),
    "distributed_network": (lambda encoder: _prefixed("module.encoder.", encoder), "network"),
    "flat": (lambda encoder: encoder.state_dict(), "encoder"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_each_layout_gives_its_features_bit_for_bit(layout, encoder, tmp_path):
    write, source = LAYOUTS[layout]
    torch.save(write(encoder), tmp_path / "weights.pth")
    segmenter = Segmenter("resnet10").eval()
    head = segmenter.head.weight.clone()

    report = load_encoder(segmenter, tmp_path / "weights.pth")

    assert (report.share, report.source, report.missing, report.unexpected) == (1.0, source, [], [])
    x = torch.randn(1, 1, 20, 17, 18)
    for feature, theirs in zip(segmenter.encoder(x), encoder(x)):
        assert torch.equal(feature, theirs)
    assert torch.equal(segmenter.head.weight, head)


@pytest.mark.parametrize("layout", ["kinetics_2018", "kinetics_2020"])
def test_an_rgb_stem_becomes_the_sum_of_its_channels(layout, rgb, tmp_path):
    torch.save(LAYOUTS[layout][0](rgb), tmp_path / "weights.pth")
    target = ResNetEncoder("resnet10").eval()
    report = load_encoder(target, tmp_path / "weights.pth")
    assert report.share == 1.0
    assert report.adapted == {"conv1.weight": "from 3 to 1 input channels"}
    assert len(report.dropped) == 2
    x = torch.randn(1, 1, 17, 17, 17)
    torch.testing.assert_close(target(x)[-1], rgb(x.expand(-1, 3, -1, -1, -1))[-1], rtol=1e-4, atol=1e-4)


def test_a_stem_for_equal_channels_answers_as_the_old_one():
    weight = torch.randn(4, 1, 7, 7, 7)
    assert adapt_stem(weight, 1) is weight
    wide = adapt_stem(weight, 4)
    assert wide.shape == (4, 4, 7, 7, 7)
    torch.testing.assert_close(wide.sum(1, keepdim=True), weight)
    assert adapt_stem(torch.randn(4, 3, 7, 7, 7).half(), 2).dtype == torch.float16


@pytest.mark.parametrize("bias", [True, False])
def test_monai_weights_give_monais_features_with_or_without_a_bias_in_the_shortcut(bias, tmp_path):
    torch.manual_seed(2)
    options = {"spatial_dims": 3, "n_input_channels": 1, "conv1_t_stride": 2, "num_classes": 2}
    theirs = _trained(monai_resnet.resnet10(**options, bias_downsample=bias))
    torch.save(theirs.state_dict(), tmp_path / "monai.pt")
    target = ResNetEncoder("resnet10", output_stride=32).eval()
    report = load_encoder(target, tmp_path / "monai.pt")
    assert (report.share, report.source, report.unexpected) == (1.0, "monai", [])
    assert len(report.adapted) == (3 if bias else 0)
    x = torch.randn(1, 1, 33, 33, 33)
    y = theirs.maxpool(theirs.act(theirs.bn1(theirs.conv1(x))))
    y = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
    torch.testing.assert_close(target(x)[-1], y, rtol=1e-4, atol=1e-4)


def _meta(name: str, **arguments) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return ResNetEncoder(name, **arguments).state_dict()


def _constants(expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A value of its own for each tensor, of any size in one number's memory."""
    return {
        name: torch.tensor(number, dtype=tensor.dtype).expand(tensor.shape)
        for number, (name, tensor) in enumerate(expected.items())
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_medicalnet_file_of_every_depth_comes_back_whole(name, tmp_path):
    expected = _meta(name)
    values = _constants(expected)
    state = {f"module.{key}": tensor for key, tensor in values.items()}
    torch.save({"ecpoch": 1, "batch_id": 2, "state_dict": state, "optimizer": {}}, tmp_path / "weights.pth")

    state, source = read_weights(tmp_path / "weights.pth")
    tensors, report = fit_weights(expected, state, source, "weights.pth")

    assert report.share == 1.0
    assert len(report.renamed) == len(expected)
    assert all(torch.equal(tensors[key], value) for key, value in values.items())
    description = describe_weights(state, source)
    assert (description.network_name, description.shortcut) == (name, ARCHITECTURES[name].shortcut)
    assert (description.in_channels, description.source, description.stored) == (1, "medicalnet", "float32")


@pytest.mark.parametrize("name", [name for name in MEDICALNET_DEPTHS if name in ("resnet18", "resnet50")])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_shortcut_is_found_from_the_tensors(name, shortcut):
    description = describe_weights(_meta(name, shortcut=shortcut, in_channels=2))
    assert (description.network_name, description.shortcut, description.in_channels) == (name, shortcut, 2)


def test_other_networks_are_not_taken_for_one_of_ours(tmp_path):
    wide = {name: tensor for name, tensor in _meta("resnet10").items() if not name.startswith("layer4")}
    assert describe_weights(wide).network_name is None
    assert "no known encoder" in str(describe_weights({"fc.weight": torch.ones(1)}))
    flat = {name: tensor[..., 0] if tensor.dim() == 5 else tensor for name, tensor in _meta("resnet50").items()}
    assert describe_weights(flat).network_name is None
    basic = _meta("resnet18") | {"layer4.0.bn1.weight": torch.ones(256)}
    assert describe_weights(basic).block is None


def _changed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return ResNetEncoder("resnet10").state_dict() | {name: tensor}


@pytest.mark.parametrize(
    ("weights", "pattern"),
    [
        (lambda: _constants(_meta("resnet18", shortcut="B")), "holds resnet18 with shortcut B .* is resnet10 .*"),
        (lambda: _constants(_meta("resnet50")), "holds resnet50 .*; set network_name to resnet50"),
        (
            lambda: _constants(_meta("resnet10", shortcut="A")),
            "holds resnet10 with shortcut A .* with shortcut B",
        ),
        (
            lambda: _changed("layer2.0.conv1.weight", torch.ones(128, 64, 1, 1, 1)),
            r"layer2\.0\.conv1\.weight is \(128, 64, 1, 1, 1\), the network's is \(128, 64, 3, 3, 3\)",
        ),
        (lambda: _changed("conv1.weight", torch.ones(64, 3, 7, 7)), r"conv1\.weight is \(64, 3, 7, 7\)"),
        (lambda: _changed("layer4.0.bn2.bias", torch.full((512,), torch.nan)), r"not finite in layer4\.0\.bn2\.bias"),
    ],
)
def test_what_is_not_of_this_encoder_is_refused_whatever_its_share_and_nothing_is_loaded(weights, pattern):
    network = ResNetEncoder("resnet10")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=pattern):
        load_encoder(network, weights(), minimum_share=0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_file_that_covers_too_little_is_refused_unless_asked_for(encoder):
    part = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("layer4")}
    part["extra.weight"] = torch.ones(1)
    target = ResNetEncoder("resnet10")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for weights, share in (({"fc.weight": torch.ones(1)}, "0.0%"), (part, r".* layer4\.0\.conv1\.weight first")):
        with pytest.raises(InputError, match=f"covers {share}.* minimum_share"):
            load_encoder(target, weights)
    report = load_encoder(target, part, minimum_share=0.2)
    sizes = {name: tensor.numel() for name, tensor in before.items() if tensor.is_floating_point()}
    assert report.share == sum(size for name, size in sizes.items() if name in part) / sum(sizes.values())
    assert len(report.missing) == 15 and report.unexpected == ["extra.weight"]
    assert torch.equal(target.layer1[0].conv1.weight, encoder.layer1[0].conv1.weight)
    assert torch.equal(target.layer4[0].conv1.weight, before["layer4.0.conv1.weight"])


def test_half_precision_weights_become_float32(encoder, tmp_path):
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in encoder.state_dict().items()
    }
    write_state(half, tmp_path / "model.pt")
    target = ResNetEncoder("resnet10")
    assert load_encoder(target, tmp_path / "model.pt").share == 1.0
    assert target.conv1.weight.dtype == torch.float32
    assert torch.equal(target.conv1.weight, encoder.conv1.weight.half().float())
    assert describe_weights(half).stored == "float16"


def test_the_report_tells_the_fate_of_each_tensor(rgb, tmp_path):
    torch.save(_kinetics_2018(rgb), tmp_path / "weights.pth")
    report = load_encoder(ResNetEncoder("resnet10"), tmp_path / "weights.pth")
    content = json.loads(report.to_json())
    assert content["renamed"]["module.bn1.weight"] == "bn1.weight"
    assert content["share"] == 1.0
    table = report.table()
    assert "100.0% of the encoder loaded" in table
    assert "adapted        1  conv1.weight: from 3 to 1 input channels" in table
    assert "renamed       59  module.bn1.weight -> bn1.weight, ..." in table


def test_the_encoder_is_found_in_networks_and_wrappers():
    segmenter = Segmenter("resnet10")
    assert encoder_of(segmenter.encoder) is segmenter.encoder
    assert encoder_of(nn.ModuleDict({"module": segmenter})) is segmenter.encoder
    cascade = nn.ModuleDict({"coarse": Segmenter("resnet10"), "fine": segmenter})
    assert encoder_of(cascade) is segmenter.encoder
    for wrong in (nn.Identity(), nn.ModuleList([segmenter, Segmenter("resnet10")])):
        with pytest.raises(ValueError, match="must hold one encoder"):
            encoder_of(wrong)


def test_init_decides_the_papers_learning_rate(encoder, tmp_path):
    write_state(encoder.state_dict(), tmp_path / "model.pt")
    scratch = InitialWeights(Segmenter("resnet10"), "scratch", report_path=tmp_path / "none.json")
    assert (scratch.learning_rate, scratch.report) == (0.01, None)
    assert not (tmp_path / "none.json").exists()
    loaded = InitialWeights(Segmenter("resnet10"), str(tmp_path / "model.pt"))
    assert loaded.learning_rate == 0.001
    assert InitialWeights(loaded.network, "scratch", learning_rate=0.5).learning_rate == 0.5


def test_with_head_all_of_a_network_is_loaded_and_without_it_the_encoder_alone(tmp_path, caplog):
    trained = Segmenter("resnet10", num_classes=3)
    write_state(trained.state_dict(), tmp_path / "model.pt")
    path = str(tmp_path / "model.pt")
    alone, whole = Segmenter("resnet10", num_classes=3), Segmenter("resnet10", num_classes=3)
    InitialWeights(alone, path, with_head="false")  # as a command line gives it
    with caplog.at_level("INFO"):
        assert InitialWeights(whole, path, with_head=True).learning_rate == 0.001
    assert f"those of '{path}', including its head" in caplog.text
    differing = [
        name for name, value in trained.state_dict().items() if not torch.equal(value, alone.state_dict()[name])
    ]
    assert differing and not any(name.startswith("encoder") for name in differing)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in trained.state_dict().items())
    with pytest.raises(InputError, match="is of another network"):
        InitialWeights(Segmenter("resnet10"), path, with_head=True)
    with pytest.raises(InputError, match="init_head takes the head of a weights file, and init is scratch"):
        InitialWeights(whole, "scratch", with_head=True)


def test_init_med3d_takes_the_released_encoder_beside_the_bundle(encoder, tmp_path, caplog):
    bundle, weights = tmp_path / "lung_segmentation", tmp_path / "pretrain_3dseg8" / "weights"
    bundle.mkdir()
    weights.mkdir(parents=True)
    write_state(_whole_network(encoder), weights / "model.pt")
    with caplog.at_level(logging.INFO):
        start = InitialWeights(Classifier("resnet10"), "med3d", bundle, report_path=tmp_path / "run" / "weights.json")
    assert not (tmp_path / "run").exists()  # a training that is refused must not change the record of the one before
    start.write_report()
    assert torch.equal(start.network.encoder.conv1.weight, encoder.conv1.weight)
    assert json.loads((tmp_path / "run" / "weights.json").read_text())["share"] == 1.0
    assert "100.0% of the encoder loaded" in caplog.text


def test_init_without_weights_is_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("med3d_ext.__file__", str(tmp_path / "packed" / "med3d_ext" / "__init__.py"))
    network, bundle = nn.Identity(), tmp_path / "lung_segmentation"
    with pytest.raises(InputError, match="no released encoder at .*packed bundle use --init PATH"):
        InitialWeights(network, "med3d", bundle)
    with pytest.raises(InputError, match="init 'kinetics' needs a file.*--init PATH"):
        InitialWeights(network, "kinetics")
    with pytest.raises(InputError, match="init must be scratch, med3d, kinetics or the path .*'2024' is not a file"):
        InitialWeights(network, 2024)
    trained = tmp_path / "pretrain_3dseg8" / "models" / "model.pt"
    trained.parent.mkdir(parents=True)
    trained.touch()
    with pytest.raises(InputError, match=f"--init '{trained}' takes those pretrained here"):
        InitialWeights(network, "med3d", bundle)


def test_the_cases_that_the_weights_have_seen_go_with_them(tmp_path):
    """A leakage check of fine-tuned weights must know what their encoder was pretrained on."""
    torch.save(Segmenter("resnet10").state_dict(), tmp_path / "model.pt")
    assert InitialWeights(Segmenter("resnet10"), str(tmp_path / "model.pt")).seen == {}
    one, two = ({"image": f"{name}.nii.gz", "domain": "liver", "sha256": name * 64} for name in "ab")
    card = {"cases": {"training": [one], "validation": [two], "coarse_training": [one]}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert InitialWeights(Segmenter("resnet10"), str(tmp_path / "model.pt")).seen == {"initial_weights": [one, two]}
    assert InitialWeights(Segmenter("resnet10"), "scratch").seen == {}


def test_parameter_groups_hold_every_parameter_once():
    start = InitialWeights(Segmenter("resnet10"), "scratch")
    encoder, head = start.parameter_groups(head_lr_multiplier=100)
    assert (encoder["lr"], head["lr"]) == (0.01, 1.0)
    assert [*map(id, head["params"])] == [*map(id, start.network.head.parameters())]
    assert len(encoder["params"]) + len(head["params"]) == len(list(start.network.parameters()))
    assert start.parameter_groups(0.2)[0]["lr"] == 0.2
    assert len(InitialWeights(start.network.encoder, "scratch").parameter_groups()) == 1
    torch.optim.Adam(start.parameter_groups())


def test_a_bundles_weights_are_the_trained_ones_else_the_released_ones(tmp_path, caplog):
    with pytest.raises(InputError, match=r"neither '.*models/model\.pt' nor '.*weights/model\.pt'"):
        find_weights(tmp_path)
    for folder, kind in (("weights", "released"), ("models", "they came with the bundle"), ("models", "trained here")):
        path = tmp_path / folder / "model.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save({"a": torch.zeros(1)}, path)
        path.with_name("training_state.pt").touch() if kind == "trained here" else None
        with caplog.at_level(logging.INFO):
            assert find_weights(str(tmp_path)) == Path(path)
        assert f"({kind})" in caplog.messages[-1]
    elsewhere = tmp_path / "elsewhere" / "model.pt"
    elsewhere.parent.mkdir()
    assert find_weights(tmp_path, elsewhere.parent) == tmp_path / "weights" / "model.pt"
    torch.save({"a": torch.zeros(1)}, elsewhere)
    assert find_weights(tmp_path, str(elsewhere.parent)) == elsewhere
    for content, fault in (({"a": torch.tensor(torch.nan)}, "not finite in a"), ({"a": object()}, "code")):
        torch.save(content, elsewhere)
        with pytest.raises(InputError, match=f"elsewhere/model.pt.*{fault}"):
            find_weights(tmp_path, elsewhere.parent)

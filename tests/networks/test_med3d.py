from __future__ import annotations

import io
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from med3d_ext.errors import InputError
from med3d_ext.losses import MultiHeadLoss
from med3d_ext.networks import Classifier, Med3DNet, Segmenter, encoder_state_dict
from med3d_ext.networks.med3d import PADDING_LOGIT

CLASSES = {"liver": 2, "brain": 4, "hippocampus": 3}
SIZE = (17, 20, 9)


def network(**options) -> Med3DNet:
    torch.manual_seed(0)
    return Med3DNet("resnet10", 1, CLASSES, **options)


def volumes(samples: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(samples, 1, *SIZE)


def test_the_segmenter_is_encoder_then_head_then_trilinear_resize():
    net = Segmenter(num_classes=3).eval()
    x = volumes(2)
    logits = F.conv3d(net.encoder(x)[-1], net.head.weight, net.head.bias)
    assert torch.equal(net(x), F.interpolate(logits, SIZE, mode="trilinear", align_corners=False))
    assert net(x).shape == (2, 3, *SIZE)


def test_the_classifier_pools_the_last_features_into_one_row_of_logits():
    net = Classifier("resnet10", 1, 3).eval()
    x = volumes(2)
    pooled = net.encoder(x)[-1].mean((2, 3, 4))
    torch.testing.assert_close(net(x), pooled @ net.head.weight.flatten(1).T + net.head.bias)


@pytest.mark.parametrize("build", [Segmenter, Classifier])
def test_options_reach_the_encoder(build):
    with torch.device("meta"):
        net = build("resnet34", 4, 5, output_stride=16, shortcut="B", checkpointing=True)
    assert (net.encoder.in_channels, net.encoder.output_stride, net.encoder.checkpointing) == (4, 16, True)
    assert "encoder.layer2.0.downsample.0.weight" in net.state_dict()
    assert net(torch.zeros(1, 4, 32, 32, 32, device="meta")).shape[1] == 5


@pytest.mark.parametrize("build", [Segmenter, Classifier])
def test_single_head_networks_script(build):
    net = build().eval()
    x = volumes(1)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


def test_a_mixed_batch_equals_one_batch_per_domain():
    net = network().eval()
    x, domain = volumes(5), torch.tensor([2, 0, 1, 0, 2])
    mixed = net(x, domain)
    assert mixed.shape == (5, 4, *SIZE)
    for index, name in enumerate(CLASSES):
        rows = domain == index
        torch.testing.assert_close(mixed[rows], net(x[rows], name), atol=1e-5, rtol=1e-5)


def test_each_branch_is_a_1x1x1_convolution_on_the_shared_features():
    net = network().eval()
    x = volumes(2)
    own = net.branches["hippocampus"](net.encoder(x)[-1])
    expected = F.interpolate(own, SIZE, mode="trilinear", align_corners=False)
    assert torch.equal(net(x, "hippocampus")[:, :3], expected)
    assert net.branches["hippocampus"].kernel_size == (1, 1, 1)


def test_channels_that_a_domain_lacks_never_win():
    net = network().eval()
    logits = net(volumes(3), ["liver", "brain", "hippocampus"])
    torch.testing.assert_close(logits[0, 2:], torch.full_like(logits[0, 2:], PADDING_LOGIT))
    assert [int(sample.argmax(0).max()) < count for sample, count in zip(logits, CLASSES.values())] == [True] * 3
    torch.testing.assert_close(logits.softmax(1)[0, :2], logits[0, :2].softmax(0))
    assert not logits.softmax(1)[0, 2:].any()
    assert torch.isfinite(logits.half()).all()


@pytest.mark.parametrize("default, index", [(None, 0), ("hippocampus", 2)])
def test_without_a_domain_the_default_branch_answers_in_the_same_shape(default, index):
    net = network(default_domain=default).eval()
    x = volumes(2)
    torch.testing.assert_close(net(x), net(x, [index, index]))
    assert net(x).shape[1] == 4


def test_names_indices_and_columns_say_the_same():
    net = network().eval()
    x = volumes(2)
    expected = net(x, torch.tensor([1, 2]))
    for domain in (["brain", "hippocampus"], (1, 2), torch.tensor([[1], [2]]), torch.tensor([1, 2], dtype=torch.int32)):
        assert torch.equal(net(x, domain), expected)


def test_meta_tensors_stay_meta_tensors():
    net = network().eval()
    x = volumes(2)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    for domain in (None, torch.tensor([1, 0])):
        logits = net(MetaTensor(x, affine=affine), domain)
        assert isinstance(logits, MetaTensor) and torch.equal(logits.affine, affine)
        assert torch.equal(logits.as_tensor(), net(x, domain))


def test_an_idle_branch_is_bit_equal_after_steps_with_momentum_and_weight_decay():
    net = network()
    loss = MultiHeadLoss(nn.CrossEntropyLoss(), net.num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.001)
    target = torch.randint(2, (2, 1, *SIZE))

    def step(domain: list[int]) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(net(volumes(2), torch.tensor(domain)), target, domain).backward()
        optimizer.step()

    step([0, 1])  # gives the branch that idles next a momentum
    before = {key: value.clone() for key, value in net.state_dict().items()}
    step([0, 2])
    after = net.state_dict()
    assert all(value.grad is None for value in net.branches["brain"].parameters())
    assert all(torch.equal(before[key], after[key]) for key in before if "brain" in key)
    assert not any(torch.equal(before[key], after[key]) for key in before if "liver" in key or "hippocampus" in key)


def test_every_parameter_of_a_batch_with_all_domains_gets_a_gradient():
    net = network()
    target = torch.randint(2, (3, 1, *SIZE))
    MultiHeadLoss(nn.CrossEntropyLoss(), CLASSES)(net(volumes(3), [0, 1, 2]), target, [0, 1, 2]).backward()
    assert [key for key, value in net.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("domain", [[0, 3], [0], [0, -1]])
def test_indices_that_do_not_fit_the_batch_are_named(domain):
    with pytest.raises(ValueError, match="domain must be 2 indices from 0 to 2, got"):
        network().eval()(volumes(2), domain)


def test_an_unknown_name_is_answered_with_the_domains():
    with pytest.raises(InputError, match="one of liver, brain, hippocampus, got 'spleen'"):
        network().eval()(volumes(1), "spleen")
    with pytest.raises(InputError, match="got 'spleen'"):
        network(default_domain="spleen")


@pytest.mark.parametrize(
    "classes, message",
    [({}, "at least one domain"), ({"left.atrium": 2}, "without a dot"), ({"liver": 1}, "liver must be at least 2")],
)
def test_classes_that_make_no_network_are_named(classes, message):
    with pytest.raises(InputError, match=message):
        Med3DNet("resnet10", 1, classes)


def test_the_scripted_network_takes_a_domain_or_none_after_a_round_trip():
    net = network(default_domain="brain").eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    file.seek(0)
    loaded, x, domain = torch.jit.load(file), volumes(2), torch.tensor([2, 0])
    torch.testing.assert_close(loaded(x), net(x))
    torch.testing.assert_close(loaded(x, domain), net(x, domain))


def test_onnx_runtime_gives_the_logits_of_the_default_branch(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    net = network(default_domain="hippocampus").eval()
    x = volumes(1)
    torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=False, input_names=["image"], opset_version=17)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert (torch.from_numpy(session.run(None, {"image": x.numpy()})[0]) - net(x)).abs().max() < 1e-3


def test_the_encoder_alone_loads_into_another_network():
    net = network()
    other = Classifier()
    other.encoder.load_state_dict(encoder_state_dict(net))
    assert torch.equal(other.encoder.layer4[0].conv1.weight, net.encoder.layer4[0].conv1.weight)
    wrapped = nn.Module()
    wrapped.module = net  # as DistributedDataParallel holds it
    assert list(encoder_state_dict(wrapped)) == list(net.encoder.state_dict())
    with pytest.raises(ValueError, match="network must have an encoder, got Linear"):
        encoder_state_dict(nn.Linear(1, 1))


def two_steps_in_one_process(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    net = network()
    parallel = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.001)
    loss = MultiHeadLoss(nn.CrossEntropyLoss(), CLASSES)
    target = torch.randint(2, (2, 1, *SIZE))
    plan = [[[0, 1], [0, 0]], [[0, 0], [2, 0]]]  # in the second step brain idles on both ranks
    for domain in plan[rank]:
        torch.save(net.branches["brain"].state_dict(), f"{folder}/before{rank}.pt")
        optimizer.zero_grad(set_to_none=True)
        loss(parallel(volumes(2), torch.tensor(domain)), target, domain).backward()
        optimizer.step()
    torch.save(net.branches.state_dict(), f"{folder}/after{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_different_domains_and_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_steps_in_one_process, (port, str(tmp_path)), nprocs=2)
    after = [torch.load(tmp_path / f"after{rank}.pt", weights_only=True) for rank in (0, 1)]
    start = network().branches.state_dict()
    before = torch.load(tmp_path / "before0.pt", weights_only=True)
    for key in start:
        assert torch.equal(after[0][key], after[1][key]), key
        assert not torch.equal(after[0][key], start[key]), key
    assert all(torch.equal(before[key], after[0][f"brain.{key}"]) for key in before)

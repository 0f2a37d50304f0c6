"""The training step against MONAI's own, and what it adds."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import IterationEvents, SupervisedTrainer
from torch import nn

from med3d_ext import engines
from med3d_ext.engines import DomainBatch, TrainingIteration, computes_bfloat16


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv3d(4, 2, 1))


def make_items(count: int = 6) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    shape = (1, 6, 6, 6)
    return [
        {
            "image": torch.randn(shape, generator=generator),
            "label": torch.rand((6, 6, 6), generator=generator).gt(0.5).long(),
        }
        for _ in range(count)
    ]


def train(network: nn.Module, batch_size: int = 2, epochs: int = 2, count: int = 6, **options) -> SupervisedTrainer:
    options.setdefault("loss_function", nn.CrossEntropyLoss())
    options.setdefault("optimizer", torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.01))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        network=network,
        **{
            "optim_set_to_none": True,
            "train_data_loader": DataLoader(make_items(count), batch_size=batch_size),
            **options,
        },
    )
    torch.manual_seed(5)
    trainer.run()
    return trainer


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in network.state_dict().values()]


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(ours), weights(theirs)))


@pytest.mark.parametrize("options", [{}, {"count": 10, "accumulation_steps": 2}, {"optim_set_to_none": False}])
def test_the_step_is_monais_bit_for_bit_also_with_a_batch_left_over(options):
    ours, theirs = make_network(), make_network()
    before = weights(ours)
    train(ours, iteration_update=TrainingIteration(), **options)
    train(theirs, **options)
    assert_equal(ours, theirs)
    assert not torch.equal(before[0], weights(ours)[0])
    assert all((one.grad is None) == options.get("optim_set_to_none", True) for one in ours.parameters())


def test_two_accumulated_batches_are_one_of_double_size():
    ours, theirs = (nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    train(ours, 2, count=8, iteration_update=TrainingIteration(), accumulation_steps=2)
    train(theirs, 4, count=8, iteration_update=TrainingIteration())
    for a, b in zip(weights(ours), weights(theirs)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_clipped_before_the_step():
    free, clipped = make_network(), make_network()
    norms = {}
    for name, network, limit in (("free", free, None), ("clipped", clipped, 0.01)):
        before = weights(network)
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        step = TrainingIteration(max_gradient_norm=limit)
        train(network, 6, 1, optimizer=optimizer, iteration_update=step)
        norms[name] = float(sum(((a - b) ** 2).sum() for a, b in zip(before, weights(network))) ** 0.5)
    assert norms["free"] > 0.05
    assert norms["clipped"] == pytest.approx(0.01, rel=1e-3)


class Branches(nn.Module):
    """Two branches; notes the domains that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList([nn.Conv3d(1, 2, 1), nn.Conv3d(1, 2, 1)])
        self.seen: list = []

    def forward(self, image, scale=1.0, domain=None):
        self.seen.append((scale, domain))
        return self.branches[domain](image) * scale


def with_domain(domains):
    def prepare(batch, device, non_blocking, **kwargs):
        return batch["image"], batch["label"], (2.0,), {"domain": next(domains)}

    return prepare


def test_arguments_of_a_batch_reach_the_network_and_the_loss():
    network, heard = Branches(), []

    def loss(prediction, target, domain):
        heard.append(domain)
        return nn.functional.cross_entropy(prediction, target)

    domains = with_domain(iter([0, 1, 0]))
    step = TrainingIteration()
    train(network, 2, 1, loss_function=loss, prepare_batch=domains, iteration_update=step)
    assert network.seen == [(2.0, 0), (2.0, 1), (2.0, 0)] and heard == [0, 1, 0]


def test_momentum_and_decay_do_not_move_an_idle_branch():
    network = Branches()
    moved = []
    domains = iter([0, 1, 1])

    def loss(prediction, target, domain):
        moved.append(network.branches[0].weight.detach().clone())
        return nn.functional.cross_entropy(prediction, target)

    step = TrainingIteration()
    train(network, 2, 1, loss_function=loss, prepare_batch=with_domain(domains), iteration_update=step)
    assert not torch.equal(moved[0], moved[1])  # its own batch moved it
    assert torch.equal(moved[1], moved[2]) and torch.equal(moved[2], network.branches[0].weight)


@pytest.mark.parametrize(
    ("bfloat16", "amx", "name", "faster"),
    [(True, True, "Intel Xeon", True), (True, False, "Intel Xeon", False), (True, False, "AMD EPYC", True)]
    + [(False, False, "AMD EPYC", False)],
)
def test_a_cpu_takes_bfloat16_only_if_it_is_faster(bfloat16, amx, name, faster, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    assert computes_bfloat16(torch.device("cpu")) is faster


def test_amp_computes_the_forward_pass_in_bfloat16_and_the_loss_in_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(engines, "computes_bfloat16", lambda device: True)
    network, types = make_network(), []
    network[0].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))

    def loss(prediction, target):
        types.append(prediction.dtype)
        return nn.functional.cross_entropy(prediction, target)

    reference = copy.deepcopy(network)
    train(network, 6, 1, loss_function=loss, iteration_update=TrainingIteration(), amp=True)
    assert types == [torch.bfloat16, torch.float32]
    assert all(value.dtype == torch.float32 for value in weights(network))
    types.clear()
    train(reference, 6, 1, loss_function=loss, iteration_update=TrainingIteration(), amp=False)
    assert types == [torch.float32, torch.float32]


def test_amp_stays_in_float32_where_the_device_would_only_emulate_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    ours, theirs = make_network(), make_network()
    train(ours, iteration_update=TrainingIteration(), amp=True)
    train(theirs, iteration_update=TrainingIteration())
    assert_equal(ours, theirs)
    assert not computes_bfloat16(torch.device("cuda")) and not computes_bfloat16(torch.device("mps"))


def test_the_events_of_a_step_are_fired_in_monais_order():
    def order(**options) -> list[str]:
        fired: list[str] = []
        events = [
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.LOSS_COMPLETED,
            IterationEvents.BACKWARD_COMPLETED,
            IterationEvents.MODEL_COMPLETED,
        ]

        class Note:
            def attach(self, engine):
                for event in events:
                    engine.add_event_handler(event, lambda _, name=event.name: fired.append(name))

        train(make_network(), 6, 1, train_handlers=[Note()], **options)
        return fired

    assert order(iteration_update=TrainingIteration()) == order()


def test_the_domains_of_a_batch_become_indices_for_the_network_and_the_loss():
    batch = {"image": torch.zeros(2, 1, 4, 4, 4), "label": torch.ones(2, 1, 4, 4, 4), "domain": ["heart", "liver"]}
    image, label, args, kwargs = DomainBatch(["liver", "heart"])(batch, torch.device("cpu"))
    assert image is batch["image"] and label is batch["label"] and args == ()
    assert kwargs["domain"].tolist() == [1, 0]
    del batch["domain"]  # items of a labelling server belong to the first
    assert DomainBatch(["liver", "heart"])(batch)[3]["domain"].tolist() == [0, 0]


def test_a_compiled_network_gets_plain_tensors_and_learns_the_same():
    seen = []

    class Note(nn.Module):
        def forward(self, x):
            seen.append(type(x))
            return x

    def network():
        return nn.Sequential(Note(), *make_network())

    items = [{**item, "image": MetaTensor(item["image"])} for item in make_items()]
    ours, theirs = network(), network()
    for each, options in (
        (ours, {"compile": True, "compile_kwargs": {"backend": "eager"}}),
        (theirs, {"compile": False}),
    ):
        train(each, iteration_update=TrainingIteration(), train_data_loader=DataLoader(items, batch_size=2), **options)
    assert_equal(ours, theirs)
    assert seen.count(torch.Tensor) == seen.count(MetaTensor) == 6

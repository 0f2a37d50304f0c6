from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from med3d_ext.handlers.freeze import FreezeEncoder
from med3d_ext.networks.med3d import Segmenter


def _train(
    network: Segmenter, epochs: int, max_epochs: int, start: int = 0, **options
) -> list[tuple[bool, bool, bool]]:
    """What moved in each epoch: encoder weights, encoder statistics, head."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    moved = []

    def step(engine, batch):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.train()  # as MONAI's trainer does before each iteration
        optimizer.zero_grad()
        network(batch).mean().backward()
        optimizer.step()
        now = network.state_dict()
        changed = {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}
        buffers = {name for name in changed if "running" in name or "tracked" in name}
        encoder = {name for name in changed - buffers if name.startswith("encoder")}
        moved.append((bool(encoder), bool(buffers), "head.bias" in changed))

    engine = Engine(step)
    FreezeEncoder(network, epochs, **options).attach(engine)
    if start:
        engine.load_state_dict({"epoch": start, "max_epochs": max_epochs, "epoch_length": 1})
    engine.run([torch.randn(2, 1, 9, 9, 9)], max_epochs=max_epochs)
    return moved


FROZEN, FREE, KEPT = (False, False, True), (True, True, True), (True, False, True)


@pytest.mark.parametrize(
    ("epochs", "kept", "expected"),
    [
        *((0, False, [FREE, FREE]), (1, False, [FROZEN, FREE]), (2, False, [FROZEN, FROZEN])),
        *((-1, False, [FROZEN, FROZEN]), (0, True, [KEPT, KEPT]), (1, True, [FROZEN, KEPT])),
    ],
)
def test_encoder_and_kept_statistics_stay_bit_equal_for_their_epochs_while_the_head_learns(epochs, kept, expected):
    torch.manual_seed(0)
    assert _train(Segmenter("resnet10"), epochs, 2, keep_statistics=kept) == expected


def test_a_resumed_run_has_its_epochs_frozen_and_a_number_below_minus_one_is_refused():
    torch.manual_seed(0)
    assert _train(Segmenter("resnet10"), 2, 3, start=1) == [FROZEN, FREE]
    with pytest.raises(ValueError, match="epochs must be -1"):
        FreezeEncoder(Segmenter("resnet10"), -2)

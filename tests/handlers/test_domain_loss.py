from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from med3d_ext.handlers.domain_loss import DomainLoss, EncoderExport
from med3d_ext.losses import MultiHeadLoss
from med3d_ext.networks import Med3DNet, ResNetEncoder


def test_each_domain_has_the_mean_of_its_own_losses_of_this_epoch():
    loss = MultiHeadLoss(torch.nn.CrossEntropyLoss(), [2, 2])
    seen = {0: [], 1: []}

    def step(engine: Engine, domains: list[int]) -> None:
        torch.manual_seed(engine.state.iteration)
        loss(torch.randn(len(domains), 2, 4, 4, 4), torch.ones(len(domains), 1, 4, 4, 4), torch.tensor(domains))
        for index, value in loss.per_domain.items():
            seen[index].append(float(value))

    engine = Engine(step)
    DomainLoss(loss, ["heart", "liver"]).attach(engine)
    engine.run([[0, 0], [0, 1], [1, 1]], max_epochs=2)
    assert engine.state.metrics["loss/heart"] == pytest.approx(sum(seen[0][2:]) / 2)
    assert engine.state.metrics["loss/liver"] == pytest.approx(sum(seen[1][2:]) / 2)


@pytest.mark.parametrize("best_there", [True, False])
def test_the_encoder_alone_is_written_from_the_best_weights(tmp_path: Path, best_there: bool):
    network, best = (Med3DNet("resnet10", 1, {"heart": 2}) for _ in range(2))
    if best_there:
        torch.save(best.state_dict(), tmp_path / "model.pt")
    engine = Engine(lambda *_: None)
    EncoderExport(str(tmp_path), network).attach(engine)
    engine.run([0], max_epochs=1)
    encoder = ResNetEncoder("resnet10")
    encoder.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    expected = (best if best_there else network).encoder.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in encoder.state_dict().items())

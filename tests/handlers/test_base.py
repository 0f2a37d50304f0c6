from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from med3d_ext.handlers import base
from med3d_ext.handlers.base import Handler, iteration_loss, key_metric, scalar_metrics


class Note(Handler):
    """Notes what it is called at."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def epoch_started(self, engine):
        self.seen.append("begin")

    def epoch_completed(self, engine):
        self.seen.append("end")


class Last(Note):
    every_rank = after_others = True


@pytest.mark.parametrize("rank", [0, 1])
def test_methods_are_called_at_their_events_on_their_ranks_the_last_ones_last(monkeypatch, rank):
    monkeypatch.setattr(base, "rank", lambda: rank)
    seen = []
    engine = Engine(lambda *_: None)
    Last(seen).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append("another"))
    Note(seen).attach(engine)
    engine.run([0], max_epochs=1)
    first = ["begin"] * (2 - rank) + ["another"] + ["end"] * (2 - rank)
    assert seen == first
    engine.run([0], max_epochs=1)
    assert seen == first * 2


def engine(**state):
    return SimpleNamespace(state=SimpleNamespace(**state))


def test_the_loss_is_found_in_decollated_and_plain_outputs_and_missing_in_others():
    loss = torch.tensor(0.5)
    assert iteration_loss(engine(output=[{"loss": loss}, {"loss": loss}])) == 0.5
    assert iteration_loss(engine(output={"loss": loss})) == 0.5
    for output in ({"pred": 1}, [], None, 3):
        assert iteration_loss(engine(output=output)) is None


def test_metrics_of_several_values_get_one_name_each():
    metrics = {
        "dice": {"liver": 0.9, "spleen": torch.tensor(0.75)},
        "vector": torch.tensor([1.0, 2.0]),
        "one": np.float32(0.5),
        "plain": 1,
        "text": "none",
    }
    expected = {"dice_liver": 0.9, "dice_spleen": 0.75, "vector_0": 1.0, "vector_1": 2.0, "one": 0.5, "plain": 1.0}
    assert scalar_metrics(metrics) == expected


def test_the_key_metric_is_none_before_the_first_validation():
    assert key_metric(None) is None
    assert key_metric(engine(key_metric_name=None, metrics={})) is None
    assert key_metric(engine(key_metric_name="dice", metrics={})) is None
    assert key_metric(engine(key_metric_name="dice", metrics={"dice": 0.5})) == ("dice", 0.5)

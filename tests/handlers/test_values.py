from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from med3d_ext.handlers.values import iteration_loss, key_metric, scalar_metrics


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
    assert scalar_metrics(metrics) == {
        "dice_liver": 0.9,
        "dice_spleen": 0.75,
        "vector_0": 1.0,
        "vector_1": 2.0,
        "one": 0.5,
        "plain": 1.0,
    }


def test_the_key_metric_is_none_before_the_first_validation():
    assert key_metric(None) is None
    assert key_metric(engine(key_metric_name=None, metrics={})) is None
    assert key_metric(engine(key_metric_name="dice", metrics={})) is None
    assert key_metric(engine(key_metric_name="dice", metrics={"dice": 0.5})) == ("dice", 0.5)

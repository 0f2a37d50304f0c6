from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from med3d_ext.metrics import ClassificationScore
from med3d_ext.metrics.classification import auc


def state_after(cases: list[tuple[float, int]], batch: int = 2) -> SimpleNamespace:
    """The engine's state after cases (probability of class 1, label) that came in batches."""
    engine = SimpleNamespace(state=SimpleNamespace(output=[], metrics={}, device=torch.device("cpu")))
    metric = ClassificationScore()
    for first in range(0, len(cases), batch):
        engine.state.output = [
            {"pred": torch.tensor([1 - p, p]), "label": torch.tensor(label)}
            for p, label in cases[first : first + batch]
        ]
        metric.iteration_completed(engine)
    metric.completed(engine, "val_auc")
    assert metric.compute() == pytest.approx(engine.state.metrics["val_auc"])
    return engine.state


def test_auc_accuracy_and_loss_are_over_all_batches():
    cases = [(0.2, 0), (0.6, 0), (0.7, 1), (0.4, 1), (0.9, 1)]
    metrics = state_after(cases).metrics
    labels, probabilities = np.array([y for _, y in cases]), np.array([p for p, _ in cases])
    assert metrics["val_auc"] == pytest.approx(float(auc(labels, probabilities)))
    assert metrics["val_accuracy"] == pytest.approx(3 / 5)
    expected = torch.nn.functional.binary_cross_entropy(torch.tensor(probabilities), torch.tensor(labels).double())
    assert metrics["val_loss"] == pytest.approx(float(expected))


def test_one_class_is_judged_by_its_likelihood_and_said_so(caplog):
    with caplog.at_level(logging.WARNING):
        better, worse = (state_after([(p, 1), (0.5, 1)]).metrics["val_auc"] for p in (0.9, 0.6))
    assert better == pytest.approx(np.sqrt(0.9 * 0.5)) and better > worse
    assert any("of one class" in record.message for record in caplog.records)


def test_a_certain_mistake_keeps_the_loss_finite():
    assert np.isfinite(state_after([(1.0, 0), (0.5, 1)]).metrics["val_loss"])

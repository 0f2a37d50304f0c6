from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from med3d_ext.metrics import DomainDice

CLASSES = {"brain": 4, "liver": 2}


def cube(first: int, last: int, value: int = 1) -> torch.Tensor:
    volume = torch.zeros(1, 8, 8, 8)
    volume[:, first:last, :, :] = value
    return volume


def engine_of(cases: list[tuple[str | None, torch.Tensor, torch.Tensor]]) -> SimpleNamespace:
    batch = [{} if domain is None else {"domain": domain} for domain, _, _ in cases]
    output = [{"pred": prediction, "label": label} for _, prediction, label in cases]
    return SimpleNamespace(state=SimpleNamespace(batch=batch, output=output, metrics={}, metric_details={}))


def measured(metric: DomainDice, cases: list[tuple[str | None, torch.Tensor, torch.Tensor]]) -> SimpleNamespace:
    engine = engine_of(cases)
    metric.iteration_completed(engine)
    metric.completed(engine, "dice")
    return engine.state


def test_domains_count_alike_however_many_cases_they_have():
    right, half = cube(0, 4), cube(0, 2)  # Dice 1, and 2 * 2 / (2 + 4) = 2 / 3
    state = measured(DomainDice(CLASSES), [("liver", right, right)] * 3 + [("brain", half, right)])
    assert state.metrics["dice/liver"] == pytest.approx(1)
    assert state.metrics["dice/brain"] == pytest.approx(2 / 3)
    assert state.metrics["dice"] == pytest.approx((1 + 2 / 3) / 2)
    assert state.metric_details["dice"].flatten().tolist() == pytest.approx([1, 1, 1, 2 / 3])


def test_a_class_that_the_label_lacks_does_not_count_and_a_missed_one_is_zero():
    label = cube(0, 4) + cube(4, 6, 2)  # classes 1 and 2, no class 3
    state = measured(DomainDice(CLASSES), [("brain", cube(0, 4), label)])
    assert state.metrics["dice/brain"] == pytest.approx(0.5)


def test_the_whole_target_ignores_which_class_it_is():
    label = cube(0, 2) + cube(2, 4, 2)
    state = measured(DomainDice(CLASSES, whole=True), [("brain", cube(0, 4, 3), label)])
    assert state.metrics["dice"] == pytest.approx(1)


def test_an_item_without_a_domain_is_of_the_first():
    state = measured(DomainDice(CLASSES), [(None, cube(0, 4), cube(0, 4))])
    assert state.metrics == {"dice/brain": pytest.approx(1), "dice": pytest.approx(1)}


def test_without_cases_the_metric_is_zero_and_a_reset_forgets():
    metric = DomainDice(CLASSES)
    measured(metric, [("liver", cube(0, 4), cube(0, 4))])
    assert metric.compute() == pytest.approx(1)
    metric.reset()
    assert measured(metric, []).metrics == {"dice": 0.0}

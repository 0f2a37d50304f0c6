"""Metrics of label maps in MONAI's engines: Dice by domain, and each measure of the verb ``evaluate``."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler

from med3d_ext.metrics import DomainDice, LabelMapMetric
from med3d_ext.metrics.segmentation import measure_class

CLASSES = {"brain": 4, "liver": 2}
AFFINE = torch.diag(torch.tensor([1.0, 2.0, 5.0, 1.0]))


def slab(first: int, last: int, value: int = 1) -> torch.Tensor:
    volume = torch.zeros(1, 8, 8, 8)
    volume[:, first:last, :, :] = value
    return volume


def measured(metric: DomainDice, cases: list[tuple[str | None, torch.Tensor, torch.Tensor]]) -> SimpleNamespace:
    batch = [{} if domain is None else {"domain": domain} for domain, _, _ in cases]
    output = [{"pred": prediction, "label": label} for _, prediction, label in cases]
    state = SimpleNamespace(batch=batch, output=output, metrics={}, metric_details={})
    metric.iteration_completed(SimpleNamespace(state=state))
    metric.completed(SimpleNamespace(state=state), "dice")
    return state


def test_domains_count_alike_however_many_cases_they_have():
    right, half = slab(0, 4), slab(0, 2)  # Dice 1, and 2 * 2 / (2 + 4) = 2 / 3
    state = measured(DomainDice(CLASSES), [("liver", right, right)] * 3 + [("brain", half, right)])
    expected = {"dice/liver": 1, "dice/brain": 2 / 3, "dice": (1 + 2 / 3) / 2}
    assert state.metrics == pytest.approx(expected)
    assert state.metric_details["dice"].flatten().tolist() == pytest.approx([1, 1, 1, 2 / 3])


def test_a_class_that_the_label_lacks_does_not_count_and_a_missed_one_is_zero():
    label = slab(0, 4) + slab(4, 6, 2)  # classes 1 and 2, no class 3
    assert measured(DomainDice(CLASSES), [("brain", slab(0, 4), label)]).metrics["dice"] == pytest.approx(0.5)
    whole = DomainDice(CLASSES, whole=True)  # ignores which class it is
    assert measured(whole, [("brain", slab(0, 6, 3), label)]).metrics["dice"] == pytest.approx(1)


def test_an_item_without_a_domain_is_of_the_first_and_a_reset_forgets_all():
    metric = DomainDice(CLASSES)
    state = measured(metric, [(None, slab(0, 4), slab(0, 4))])
    assert state.metrics == {"dice/brain": pytest.approx(1), "dice": pytest.approx(1)}
    assert metric.compute() == pytest.approx(1)
    metric.reset()
    assert measured(metric, []).metrics == {"dice": 0.0}


def maps(shift: int = 1):
    """A slab of liver (1) with a tumor (2), and the same one layer on along the last axis."""
    label = torch.zeros(1, 12, 10, 8)
    label[0, 2:10, 2:8, 2:5] = 1
    label[0, 4:6, 4:6, 3] = 2
    return MetaTensor(label.roll(shift, -1), affine=AFFINE), MetaTensor(label, affine=AFFINE)


@pytest.mark.parametrize("measure", ["dice", "assd_mm", "hd95_mm", "surface_dice", "volume_error_ml"])
def test_every_measure_is_that_of_each_class_in_mm(measure):
    pred, label = maps()
    values = LabelMapMetric(measure, num_classes=3)([pred], [label])
    expected = [
        getattr(measure_class(np.asarray(pred[0]) == each, np.asarray(label[0]) == each, (1, 2, 5)), measure)
        for each in (1, 2)
    ]
    np.testing.assert_allclose(values.numpy(), [expected], rtol=1e-6)


def test_a_missed_structure_counts_with_the_diagonal_and_an_absent_one_not():
    pred, label = maps()
    metric = LabelMapMetric("assd_mm", num_classes=4)
    values = metric([pred * 0], [label])[0]
    diagonal = float(np.linalg.norm([12, 20, 40]))
    assert values[:2].tolist() == pytest.approx([diagonal, diagonal]) and values[2].isnan()
    assert float(metric.aggregate()) == pytest.approx(diagonal)


def test_it_works_as_a_handler_of_monai_and_keeps_each_case():
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {}
    handler = IgniteMetricHandler(LabelMapMetric("dice"), output_transform=lambda output: output)
    handler.attach(engine, "dice")
    engine.run([tuple([each > 0] for each in maps(shift)) for shift in (0, 1)])
    assert engine.state.metric_details["dice"].shape == (2, 1)
    assert 0.5 < engine.state.metrics["dice"] < 1


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="measure must be one of dice, .*, got 'jaccard'"):
        LabelMapMetric("jaccard")

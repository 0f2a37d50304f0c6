"""The metric against masks by hand, and against the measures that the verb ``evaluate`` writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler

from med3d_ext.metrics import LabelMapMetric
from med3d_ext.metrics.segmentation import measure_class

AFFINE = torch.diag(torch.tensor([1.0, 2.0, 5.0, 1.0]))


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


def test_a_slab_moved_by_a_layer_of_5_mm_has_hd95_of_5_mm():
    pred, label = maps()
    assert float(LabelMapMetric("hd95_mm")([pred > 0], [label > 0])[0]) == 5.0


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
    pairs = [tuple([each > 0] for each in maps(shift)) for shift in (0, 1)]
    engine.run(pairs)
    assert engine.state.metric_details["dice"].shape == (2, 1)
    assert 0.5 < engine.state.metrics["dice"] < 1


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="measure must be one of dice, .*, got 'jaccard'"):
        LabelMapMetric("jaccard")

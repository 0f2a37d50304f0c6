"""Bootstrap intervals of a mean over cases."""

from __future__ import annotations

import numpy as np
import pytest

from med3d_ext.metrics.intervals import bootstrap_interval, describe_metric


def test_the_interval_is_that_of_theory_for_many_cases():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.001)
    assert high == pytest.approx(values.mean() + half, abs=0.001)


def test_more_confidence_is_wider():
    values = [0.1, 0.5, 0.6, 0.9]
    narrow, wide = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_single_value_is_its_own_interval():
    assert bootstrap_interval([0.7]) == (0.7, 0.7)


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [float("inf")]])
def test_values_that_have_no_mean_are_refused(values):
    with pytest.raises(ValueError, match="values must be finite and at least one"):
        bootstrap_interval(values)


def test_a_description_counts_the_cases_without_a_value():
    facts = describe_metric([0.5, float("nan"), 0.9, float("inf")])
    assert (facts["n"], facts["mean"], facts["minimum"], facts["undefined"]) == (2, 0.7, 0.5, 2)
    assert facts["interval_95"][0] <= 0.7 <= facts["interval_95"][1]

    expected = {"n": 0, "mean": None, "interval_95": None, "minimum": None, "undefined": 2}
    assert describe_metric([float("nan")] * 2) == expected


def test_the_interval_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    values = np.random.default_rng(1).uniform(size=30)
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1]) != bootstrap_interval(values, seed=1)

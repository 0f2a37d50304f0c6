"""Figures on test cases: seeds are averaged within a case, the reference is the better arm from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from experiment_stubs import arm_result

from med3d_ext.errors import InputError
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.tools.evaluate import paired_test
from med3d_ext.tools.experiments.engine import ArmResult
from med3d_ext.tools.experiments.figures import arm_figures, is_small_good

GENERATOR = np.random.default_rng(0)
CASES = [("liver", f"case_{number}.nii") for number in range(8)]
HASHES = [f"hash of {name}" for _, name in CASES]
VALUES = {
    (arm, seed): (base + GENERATOR.normal(0, 0.05, 8)).tolist()
    for arm, base in (("scratch_0.01", 0.5), ("scratch_0.001", 0.6), ("med3d", 0.7))
    for seed in (0, 1)
}


def result(arm: str, seed: int, cases: dict[tuple[str, str], dict[str, float]], **facts) -> ArmResult:
    rows = [
        {"domain": domain, "case": name, "sha256": f"hash of {name}", **numbers}
        for (domain, name), numbers in cases.items()
    ]
    return arm_result(arm, cases=rows, seed=seed, **facts)


def segmentation(cases=CASES) -> list[ArmResult]:
    return [
        result(arm, seed, {case: {"val_mean_dice": value} for case, value in zip(cases, values)})
        for (arm, seed), values in VALUES.items()
    ]


def test_n_is_the_number_of_cases_and_each_is_the_mean_of_its_seeds() -> None:
    (entry,) = arm_figures(segmentation(), "val_mean_dice")
    means = {arm: np.mean([VALUES[arm, 0], VALUES[arm, 1]], axis=0) for arm in entry["arms"]}
    for arm, figures in entry["arms"].items():
        described = describe_metric(means[arm])
        assert described == {key: figures[key] for key in described}
        assert figures["n"] == 8
        assert figures["per_seed"] == {str(seed): round(float(np.mean(VALUES[arm, seed])), 4) for seed in (0, 1)}
        assert figures["cases"]["case_3.nii"] == round(means[arm][3], 4)
    test = entry["arms"]["med3d"]["against_reference"]
    assert test == {"test": "Wilcoxon signed-rank", **paired_test(means["med3d"], means["scratch_0.001"])}


def test_the_reference_is_the_better_arm_from_scratch_and_is_not_tested_against_itself() -> None:
    (entry,) = arm_figures(segmentation(), "val_mean_dice")
    assert entry["reference"] == "scratch_0.001"
    tested = {arm for arm, figures in entry["arms"].items() if "against_reference" in figures}
    assert tested == {"scratch_0.01", "med3d"}


def test_of_a_metric_whose_small_values_are_good_the_smaller_is_the_better() -> None:
    results = [
        result(arm, 0, {case: {"val_brier": value} for case in CASES})
        for arm, value in (("scratch_0.01", 0.1), ("scratch_0.001", 0.2))
    ]
    assert arm_figures(results, "val_brier")[0]["reference"] == "scratch_0.01"
    assert not is_small_good("val_mean_dice")
    assert is_small_good("val_hd95_mm")


def test_each_domain_has_its_figures_and_all_together_too() -> None:
    entries = arm_figures(segmentation([("CT" if n < 5 else "MR", name) for n, (_, name) in enumerate(CASES)]), "x")
    assert {entry["domain"]: entry["arms"]["med3d"]["n"] for entry in entries} == {"CT": 5, "MR": 3, "all": 8}
    assert {entry["reference"] for entry in entries} == {"scratch_0.001"}


def test_excluded_cases_count_in_no_arm() -> None:
    (entry,) = arm_figures(segmentation(), "val_mean_dice", frozenset(HASHES[:3]))
    assert {figures["n"] for figures in entry["arms"].values()} == {5}
    assert arm_figures(segmentation(), "val_mean_dice", frozenset(HASHES)) == []


def test_a_case_without_a_value_in_one_seed_has_that_of_the_other() -> None:
    results = segmentation()
    results[0].cases.loc[0, "val_mean_dice"] = float("nan")
    arm = arm_figures(results, "val_mean_dice")[0]["arms"]["scratch_0.01"]
    assert arm["n"] == 8
    assert arm["cases"]["case_0.nii"] == round(VALUES["scratch_0.01", 1][0], 4)


def test_two_images_of_one_name_are_two_cases() -> None:
    results = [
        arm_result(arm, cases=[{"domain": "CT", "case": "ct.nii", "sha256": sha, "val_dice": value}], fold=fold)
        for arm in ("scratch_0.01", "med3d")
        for fold, (sha, value) in enumerate((("abcdefgh1", 0.2), ("12345678x", 0.4)))
    ]
    figures = arm_figures(results, "val_dice")[0]["arms"]["med3d"]
    assert (figures["n"], figures["mean"]) == (2, 0.3)
    assert figures["cases"] == {"ct.nii (12345678)": 0.4, "ct.nii (abcdefgh)": 0.2}


def classification() -> list[ArmResult]:
    labels = [0, 1, 0, 1, 1, 0]
    scores = {"scratch_0.01": [0.4, 0.5, 0.6, 0.4, 0.3, 0.2], "scratch_0.001": [0.5] * 6, "med3d": [0, 1, 0, 1, 1, 0]}
    return [
        result(
            arm,
            seed,
            {
                ("CT", f"{n}.nii"): {"label": label, "probability": p, "val_accuracy": float((p >= 0.5) == label)}
                for n, (label, p) in enumerate(zip(labels, probabilities))
                if n % 2 == fold
            },
            fold=fold,
        )
        for arm, probabilities in scores.items()
        for seed in (0, 1)
        for fold in (0, 1)
    ]


def test_the_auc_is_that_of_the_cases_of_all_folds_together() -> None:
    entries = {entry["metric"]: entry for entry in arm_figures(classification(), "val_auc")}
    assert set(entries) == {"val_accuracy", "auc"}
    auc = entries["auc"]["arms"]
    assert {figures["n"] for figures in auc.values()} == {6}
    # positives 0.5, 0.4, 0.3 against negatives 0.4, 0.6, 0.2: 2 + 1.5 + 1 of 9
    assert auc["scratch_0.01"]["mean"] == 0.5
    assert auc["med3d"]["mean"] == 1.0
    assert auc["med3d"]["per_seed"] == {"0": 1.0, "1": 1.0}
    assert auc["med3d"]["against_reference"]["test"] == "DeLong"


def test_without_a_metric_nothing_is_compared() -> None:
    with pytest.raises(InputError, match="no column that begins with val_"):
        arm_figures([result("scratch_0.01", 0, {CASES[0]: {"other": 1.0}})], "val_mean_dice")

"""The split puts every scan on one side, serves every stratum, and its folds cover every subject once."""

from __future__ import annotations

import pytest

from med3d_ext.data import splits as splits_module
from med3d_ext.data.splits import split_cases
from med3d_ext.errors import InputError
from med3d_ext.tools.layouts.table import read_source


def cases_of(*hashes: object) -> list[dict]:
    return [{"sha256": str(value)} for value in hashes]


def splits(cases: list[dict]) -> dict[str, str]:
    return {case["sha256"]: case["split"] for case in cases}


def count(cases: list[dict], split: str) -> int:
    return sum(case["split"] == split for case in cases)


@pytest.mark.parametrize(("n", "test"), [(1, 0), (2, 1), (5, 1), (14, 1), (16, 2), (30, 3), (100, 10)])
def test_a_tenth_is_test_and_tiny_domains_spare_one(n, test):
    cases = cases_of(*range(n))
    split_cases({"a": cases})
    assert count(cases, "test") == test
    assert count(cases, "validation") == (max(1, round(0.1 * (n - test))) if n - test >= 10 else 0)
    assert count(cases, "training") >= 1


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    cases = {seed: cases_of(*range(40)) for seed in (0, 1)}
    for seed, members in cases.items():
        split_cases({"a": members}, seed)
    backwards = cases_of(*reversed(range(40)))
    split_cases({"a": backwards})
    assert splits(backwards) == splits(cases[0]) != splits(cases[1])


def overlapping() -> dict[str, list[dict]]:
    return {"a": cases_of(*range(40)), "b": cases_of(*range(30, 70)), "c": cases_of(*range(5, 20)), "d": cases_of(0)}


@pytest.mark.parametrize("seed", range(10))
def test_a_scan_is_on_one_side_in_all_domains_whatever_their_order(seed):
    domains, reordered = overlapping(), dict(reversed(overlapping().items()))
    split_cases(domains, seed)
    split_cases(reordered, seed)
    sides: dict[str, str] = {}
    for name, cases in domains.items():
        for case in cases:
            assert sides.setdefault(case["sha256"], case["split"]) == case["split"], name
        assert splits(cases) == splits(reordered[name])
        if len(cases) > 1:
            assert count(cases, "test") >= max(1, round(0.1 * len(cases)))


def test_domains_of_the_same_scans_have_the_same_split():
    domains = {name: cases_of(*range(30)) for name in "abc"}
    split_cases(domains)
    assert splits(domains["a"]) == splits(domains["b"]) == splits(domains["c"])
    assert count(domains["c"], "test") == 3


def test_the_scans_of_a_subject_stay_together():
    cases = [{"sha256": str(number), "subject": number // 4} for number in range(80)]
    split_cases({"a": cases})
    assert count(cases, "test") == 8
    for first in range(0, 80, 4):
        assert len({case["split"] for case in cases[first : first + 4]}) == 1


def test_held_out_images_are_test_wherever_they_occur(monkeypatch):
    monkeypatch.setattr(splits_module, "held_out", lambda: frozenset({"3", "4"}))
    domains = {
        "a": [{"sha256": "x", "subject": "s"}, *cases_of(*range(10, 31))],
        "b": cases_of(*range(20)),
        "c": [{"sha256": "3", "subject": "s"}, {"sha256": "other"}],
    }
    split_cases(domains)
    assert [case["sha256"] for case in domains["b"] if case["split"] == "test" and int(case["sha256"]) < 10] == [
        "3",
        "4",
    ]
    assert count(domains["c"], "test") == 1 and domains["c"][0]["split"] == "test"
    assert domains["a"][0]["split"] == "test"  # the same subject as a held-out image


def test_the_held_out_list_names_the_four_abdominal_cts(real_data):
    from med3d_ext.data.fingerprint import sha256

    held = {sha256(case["image"]) for case in read_source(real_data / "msd" / "Task03_Liver").cases[-4:]}
    assert held == splits_module.held_out()


# Strata and folds


def chests(ct: int, mr: int) -> list[dict]:
    return [{"sha256": f"{m}{n}", "stratum": m} for m, count in (("CT", ct), ("MR", mr)) for n in range(count)]


def subjects_of_test(cases: list[dict]) -> set[str]:
    return {case["sha256"] for case in cases if case["split"] == "test"}


def test_each_stratum_gives_its_share_of_test_and_validation():
    cases = chests(40, 20)
    split_cases({"lung": cases})
    for stratum, test, validation in (("CT", 4, 4), ("MR", 2, 2)):
        members = [case for case in cases if case["stratum"] == stratum]
        assert (count(members, "test"), count(members, "validation")) == (test, validation)


def test_a_stratum_with_one_subject_only_trains():
    cases = chests(4, 1)
    split_cases({"lung": cases})
    assert cases[-1]["split"] == "training"
    assert count(cases, "test") == 1


@pytest.mark.parametrize("folds", [2, 5, 8])
def test_folds_test_every_subject_once_and_share_the_strata(folds):
    parts = []
    for fold in range(folds):
        cases = chests(4, 4)
        split_cases({"lung": cases}, folds=folds, fold=fold)
        parts.append(subjects_of_test(cases))
    assert sorted(name for part in parts for name in part) == sorted(case["sha256"] for case in chests(4, 4))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if folds == 2:
        assert all(sum(name.startswith("CT") for name in part) == 2 for part in parts)


@pytest.mark.parametrize(("folds", "fold", "word"), [(1, 0, "folds"), (9, 0, "folds"), (4, 4, "fold"), (4, -1, "fold")])
def test_impossible_folds_are_refused(folds, fold, word):
    with pytest.raises(InputError, match=f"^{word} must be"):
        split_cases({"lung": chests(4, 4)}, folds=folds, fold=fold)

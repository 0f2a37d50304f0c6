"""The split puts every scan on one side, serves every stratum, and its folds cover every subject once; shares nest."""

from __future__ import annotations

import pytest

from med3d_ext.data import splits as splits_module
from med3d_ext.data.splits import SPLITS, nested_share, split_cases
from med3d_ext.errors import InputError
from med3d_ext.io.files import sha256
from med3d_ext.tools.layouts.table import read_source


def cases_of(*hashes: object, **more: object) -> list[dict]:
    return [{"sha256": str(value), "image": str(value), **more} for value in hashes]


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


def test_domains_of_the_same_scans_have_the_same_split_and_subjects_stay_together():
    domains = {name: cases_of(*range(30)) for name in "abc"}
    split_cases(domains)
    assert splits(domains["a"]) == splits(domains["b"]) == splits(domains["c"])
    assert count(domains["c"], "test") == 3
    cases = [{"sha256": str(number), "subject": number // 4} for number in range(80)]
    split_cases({"a": cases})
    assert count(cases, "test") == 8
    assert all(len({case["split"] for case in cases[first : first + 4]}) == 1 for first in range(0, 80, 4))


def test_held_out_images_are_test_wherever_they_occur(monkeypatch):
    monkeypatch.setattr(splits_module, "held_out", lambda: frozenset({"3", "4"}))
    domains = {
        "a": [{"sha256": "x", "subject": "s"}, *cases_of(*range(10, 31))],
        "b": cases_of(*range(20)),
        "c": [{"sha256": "3", "subject": "s"}, {"sha256": "other"}],
    }
    split_cases(domains)
    tested = [case["sha256"] for case in domains["b"] if case["split"] == "test" and int(case["sha256"]) < 10]
    assert tested == ["3", "4"]
    assert count(domains["c"], "test") == 1 and domains["c"][0]["split"] == "test"
    assert domains["a"][0]["split"] == "test"  # the same subject as a held-out image
    for side in ("training", "validation"):
        with pytest.raises(InputError, match=f"'3' is given as {side}, and it is a test case of every bundle"):
            split_cases({"a": cases_of(3, given=side)})


def test_the_held_out_list_names_the_four_abdominal_cts_which_are_test_in_all_ct_domains(real_data):
    domains = {}
    for task in ("Task03_Liver", "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen"):
        cases = read_source(real_data / "msd" / task).cases
        domains[task] = [{**case, "sha256": sha256(case["image"])} for case in cases]
    split_cases(domains)
    for cases in domains.values():
        assert [number for number, case in enumerate(cases) if case["split"] == "test"] == [20, 21, 22, 23]
    assert {case["sha256"] for case in domains["Task03_Liver"][-4:]} == splits_module.held_out()


# Strata and folds


def chests(ct: int, mr: int) -> list[dict]:
    return [{"sha256": f"{m}{n}", "stratum": m} for m, count in (("CT", ct), ("MR", mr)) for n in range(count)]


def test_each_stratum_gives_its_share_of_test_and_validation_and_a_single_subject_only_trains():
    cases = chests(40, 20)
    split_cases({"lung": cases})
    for stratum, test, validation in (("CT", 4, 4), ("MR", 2, 2)):
        members = [case for case in cases if case["stratum"] == stratum]
        assert (count(members, "test"), count(members, "validation")) == (test, validation)
    cases = chests(4, 1)
    split_cases({"lung": cases})
    assert (cases[-1]["split"], count(cases, "test")) == ("training", 1)


@pytest.mark.parametrize("folds", [2, 5, 8])
def test_folds_test_every_subject_once_and_share_the_strata(folds):
    parts = []
    for fold in range(folds):
        cases = chests(4, 4)
        split_cases({"lung": cases}, folds=folds, fold=fold)
        parts.append({case["sha256"] for case in cases if case["split"] == "test"})
    assert sorted(name for part in parts for name in part) == sorted(case["sha256"] for case in chests(4, 4))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if folds == 2:
        assert all(sum(name.startswith("CT") for name in part) == 2 for part in parts)


@pytest.mark.parametrize(("folds", "fold", "word"), [(1, 0, "folds"), (9, 0, "folds"), (4, 4, "fold"), (4, -1, "fold")])
def test_impossible_folds_are_refused(folds, fold, word):
    with pytest.raises(InputError, match=f"^{word} must be"):
        split_cases({"lung": chests(4, 4)}, folds=folds, fold=fold)


# A given split


def test_a_scan_of_two_domains_is_on_its_given_side_in_both():
    for seed in range(5):
        given = {"training": range(20), "validation": range(20, 24), "test": range(24, 30)}
        own = [case for side, numbers in given.items() for case in cases_of(*numbers, given=side)]
        domains = {"own": own, "other": cases_of(*range(200))}
        split_cases(domains, seed)
        assert [case["split"] for case in own] == [case["given"] for case in own]
        sides = splits(own)
        assert all(case["split"] == sides[case["sha256"]] for case in domains["other"] if case["sha256"] in sides)
        assert {case["split"] for case in domains["other"][30:]} == set(SPLITS)
    other = cases_of(1, given="test")
    with pytest.raises(InputError, match="gives an image as test that another gives as training"):
        split_cases({"a": cases_of(1, 2, given="training") + cases_of(3, given="test"), "b": other})
    with pytest.raises(InputError, match="'1' of 'a' is given as training and as test"):
        split_cases({"a": cases_of(1, given="training") + other})


# Shares


def items() -> list[dict]:
    sizes = {"brain": 50, "liver": 10, "tiny": 2}
    return [{"domain": name, "sha256": f"{case:03d}"} for name, size in sizes.items() for case in range(size)]


def names_of(part: list[dict]) -> set[tuple[str, str]]:
    return {(item["domain"], item["sha256"]) for item in part}


def test_a_larger_share_holds_every_smaller_one_whatever_the_order():
    shares = [names_of(nested_share(items(), share)) for share in (0.1, 0.2, 0.4, 0.8, 1.0)]
    assert all(small < large for small, large in zip(shares, shares[1:]))
    assert shares[-1] == names_of(items())
    assert shares[1] == names_of(nested_share(items()[::-1], 0.2)) != names_of(nested_share(items(), 0.2, seed=1))


@pytest.mark.parametrize(("share", "counts"), [(0.1, [5, 1, 1]), (0.4, [20, 4, 1]), (1.0, [50, 10, 2])])
def test_each_domain_gives_its_share_and_at_least_one_case(share, counts):
    part = nested_share(items(), share)
    assert [sum(item["domain"] == name for item in part) for name in ("brain", "liver", "tiny")] == counts


@pytest.mark.parametrize("share", [0, -0.1, 10])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="share must be above 0 and at most 1"):
        nested_share(items(), share)

"""Facts apart from cases: small, the same whichever file holds them, and no case is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prepared_folders import domains_of

from med3d_ext.data import PreparedData, target_spacing, weights_domain
from med3d_ext.data.leakage import leakage, seen_cases
from med3d_ext.errors import InputError
from med3d_ext.io.facts import read_facts, size_facts, write_facts
from med3d_ext.io.files import read_json, write_json
from med3d_ext.tools.layouts.prepare import PREPARE
from med3d_ext.tools.phantoms.dataset import phantom_dataset

RELEASED = sorted(path.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/weights/model.pt"))
CASES = {"lits": 4, "lung": 4, "nodules": 12, "3dseg8": 2}


def as_version_0_1(prepared: Path, folder: Path) -> Path:
    """A prepared folder as version 0.1 wrote it: all cases in ``fingerprint.json``, the list without them."""
    seed = read_json(prepared / "facts.json")["seed"]
    added = size_facts([]).keys() | {"spacing_mm", "extent_mm", "target_mm", "target_share"}
    domains = {
        name: {fact: value for fact, value in facts.items() if fact not in added}
        for name, facts in domains_of(prepared).items()
    }
    write_json(folder / "fingerprint.json", {"seed": seed, "domains": domains})
    lists = read_json(prepared / "datalist.json")
    write_json(folder / "datalist.json", {key: value for key, value in lists.items() if key != "scan"})
    return folder


@pytest.fixture(params=CASES)
def prepared(request, tmp_path):
    """The phantoms of a kind, prepared."""
    source = phantom_dataset(request.param, tmp_path / "phantoms" / request.param, CASES[request.param])
    return request.param, PREPARE[request.param](source, tmp_path / "prepared")


def test_a_folder_of_version_0_1_gives_the_same_facts_cases_and_items(prepared, tmp_path):
    kind, folder = prepared
    old = as_version_0_1(folder, tmp_path / "old")
    one, other = (PreparedData(kind, str(each), str(tmp_path / "run")) for each in (folder, old))
    assert (one.folder, other.folder) == (folder, old)
    assert one.domains == other.domains and one.domains
    assert one.digests(one.training, one.validation) == other.digests(other.training, other.validation)
    for name, cases in one.cases.items():
        assert cases and len(cases) == len(other.cases[name])
        for case, same in zip(cases, other.cases[name]):
            assert {key: same[key] for key in case} == case
    assert one.fingerprint == {
        "domains": {name: {**facts, "cases": one.cases[name]} for name, facts in one.domains.items()}
    }


def test_preparing_a_folder_of_version_0_1_again_reads_no_voxel_and_leaves_one_file(prepared, tmp_path, monkeypatch):
    kind, folder = prepared
    source = tmp_path / "phantoms" / kind
    old = as_version_0_1(folder, tmp_path / "old")
    monkeypatch.setattr("med3d_ext.data.fingerprint.read_voxels", None)
    PREPARE[kind](source, old)
    assert sorted(path.name for path in old.iterdir() if path.suffix == ".json") == ["datalist.json", "facts.json"]
    assert (old / "facts.json").read_bytes() == (folder / "facts.json").read_bytes()


def test_a_prepared_folder_that_moved_is_prepared_again_without_reading_a_voxel(prepared, tmp_path, monkeypatch):
    kind, folder = prepared
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.setattr("med3d_ext.data.fingerprint.read_voxels", None)
    before = (moved / "facts.json").read_bytes()
    PREPARE[kind](tmp_path / "phantoms" / kind, moved)
    assert (moved / "facts.json").read_bytes() == before


def test_the_facts_are_small_and_no_entry_of_the_list_lacks_its_scan(prepared):
    _, folder = prepared
    assert (folder / "facts.json").stat().st_size < 8000
    lists = read_json(folder / "datalist.json")
    items = [item for split in ("training", "validation", "test") for item in lists[split]]
    assert {(item["domain"], item["sha256"]) for item in items} == {
        (name, digest) for name, scanned in lists["scan"].items() for digest in scanned
    }


CASE = {"shape": [200, 150, 40], "spacing": [1.0, 2.0, 5.0], "orientation": "LPS", "split": "training"}
SIZED = [
    {**CASE, "target_box": [[10, 10, 2], [110, 60, 22]]},  # 100 x 100 x 100 mm
    {**CASE, "spacing": [5.0, 1.0, 2.0], "orientation": "SLP", "target_box": [[0, 0, 0], [24, 140, 80]]},
    {**CASE, "spacing": [1.0, 1.0, 1.0], "orientation": "RAS", "target_box": [[0, 0, 0], [120, 130, 110]]},
    {**CASE, "spacing": [1.0, 1.0, 1.0], "target_box": [[0, 0, 0], [900, 900, 900]], "split": "test"},
    {**CASE, "spacing": [1.0, 1.0, 1.0], "target_box": None, "split": "validation"},
]


def test_sizes_are_of_the_cases_that_are_not_test_in_ras_order():
    facts = size_facts(SIZED)
    assert facts["training_cases"] == 3
    assert facts["target_mm"]["median"] == [120, 130, 110]  # of 100 x 100 x 100, 140 x 160 x 120 and 120 x 130 x 110
    assert facts["target_mm"]["p90"] == [136, 154, 118]
    assert facts["spacing_mm"] == {"median": [1.0, 1.5, 3.0], "p90": [1.0, 2.0, 5.0]}
    assert facts["extent_mm"]["median"] == [200, 150, 120]
    assert facts["target_share"] == pytest.approx(24 * 140 * 80 / (200 * 150 * 40))


def test_the_targets_spacing_is_that_of_a_grid_over_the_typical_box():
    assert target_spacing(size_facts(SIZED), [80, 85, 50], 20.0) == [2.0, 2.0, 3.0]
    assert target_spacing(size_facts(SIZED[1:2]), [90, 100, 80], 20.0) == [2.0, 2.0, 2.0]  # 140 x 160 x 120 mm in RAS
    assert target_spacing({**size_facts(SIZED[-1:]), "spacing_mean": [1, 2, 3]}, [8, 8, 8], 20.0) == [1, 2, 3]


def test_weights_read_the_facts_next_to_them_also_from_a_file_of_version_0_1(tmp_path):
    weights = tmp_path / "model.pt"
    with pytest.raises(InputError, match=r"facts.json.*missing"):
        weights_domain(weights)
    write_json(tmp_path / "fingerprint.json", {"domains": {"a": {"x": 1, "cases": SIZED}, "b": {"x": 2}}})
    assert weights_domain(weights) == {"x": 1, **size_facts(SIZED)} and weights_domain(weights, "b") == {"x": 2}
    before = read_facts(tmp_path)
    write_facts(tmp_path, before)
    assert not (tmp_path / "fingerprint.json").exists() and read_facts(tmp_path) == before
    with pytest.raises(InputError, match="'c'; choose one of a, b"):
        weights_domain(weights, "c")


@pytest.mark.parametrize("content", [{}, {"domains": {}}, {"domains": [1]}, {"domains": {"a": 1}}])
@pytest.mark.parametrize("name", ["facts.json", "fingerprint.json"])
def test_a_file_without_facts_is_refused_by_name(content, name, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name}' holds no facts of domains"):
        read_facts(tmp_path)


@pytest.mark.parametrize("weights", RELEASED, ids=lambda folder: folder.parent.name)
def test_the_released_facts_are_small_and_the_card_finds_each_case_that_was_seen(weights, tmp_path, capsys):
    assert not (weights / "fingerprint.json").exists()
    assert (weights / "facts.json").stat().st_size < 8000
    card = weights / "card.json"
    trained = sum(facts["training_cases"] for facts in read_facts(weights)["domains"].values())
    cases = read_json(card)["cases"]
    assert len(cases["training"]) >= trained > 0
    images = {case["sha256"] for split in cases.values() for case in split}
    assert seen_cases(card).keys() == images
    case = cases["training"][-1]
    write_json(tmp_path / "list.json", {"test": [{"image": "new.nii.gz", "sha256": case["sha256"]}]})
    with pytest.raises(SystemExit):
        leakage(str(card), str(tmp_path / "list.json"))
    assert f"LEAK  test: new.nii.gz is {case['image']}" in capsys.readouterr().out

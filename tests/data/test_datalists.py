"""Source folders become one list of cases, and the split puts every scan on one side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from med3d_ext.data import datalists
from med3d_ext.data.datalists import existing_file, list_images, read_source, split_cases
from med3d_ext.errors import InputError
from med3d_ext.files import read_json, write_json


def names(cases: list[dict], key: str) -> list[str]:
    return [case[key].rsplit("/", 1)[-1] for case in cases]


def as_lits(decathlon, folder):
    """The same files under the names and in the folders of LiTS."""
    for number, case in enumerate(read_source(decathlon).cases):
        batch = folder / f"batch{number % 2}"
        batch.mkdir(parents=True, exist_ok=True)
        shutil.copy(case["image"], batch / f"volume-{number}.nii.gz")
        shutil.copy(case["label"], batch / f"segmentation-{number}.nii.gz")
    return folder


def test_both_layouts_give_the_same_cases(liver_folder, tmp_path):
    decathlon = read_source(liver_folder(cases=11))
    lits = read_source(as_lits(liver_folder(cases=11), tmp_path / "LiTS"))
    contents = [
        sorted((Path(case["image"]).read_bytes(), Path(case["label"]).read_bytes()) for case in source.cases)
        for source in (decathlon, lits)
    ]
    assert contents[0] == contents[1]
    assert list(lits.classes) == list(decathlon.classes) == [0, 1, 2]
    assert names(lits.cases, "image") == [f"volume-{number}.nii.gz" for number in range(11)]  # 10 after 9
    assert names(lits.cases, "label") == [f"segmentation-{number}.nii.gz" for number in range(11)]
    assert (decathlon.name, lits.name) == ("Task03_Liver", "LiTS")
    assert decathlon.modality == {0: "CT"}


def test_further_facts_of_an_entry_are_kept(liver_folder):
    folder = liver_folder(cases=1)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["subject"] = "p1"
    (folder / "dataset.json").write_text(json.dumps(content))
    assert read_source(folder).cases[0]["subject"] == "p1"


def test_a_link_that_was_checked_out_as_text_is_the_file_it_names(liver_folder):
    folder = liver_folder(cases=1)
    image = folder / "imagesTr" / "liver_0.nii.gz"
    real = folder / "elsewhere" / "scan.nii.gz"
    real.parent.mkdir()
    image.rename(real)
    image.write_text("../elsewhere/scan.nii.gz\n")
    assert read_source(folder).cases[0]["image"] == str(real.resolve())


@pytest.mark.parametrize("content", ["not a link", "x" * 600, "a\0b", ""])
def test_other_small_files_are_left_for_the_reader_to_refuse(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    path.write_text(content)
    assert existing_file(path) == path


def broken(folder, **changes):
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": []}, ["dataset.json", "no cases"]),
        ({"training": [{"image": "./imagesTr/liver_0.nii.gz"}]}, ["dataset.json", "entry 0", "label"]),
        ({"training": ["./imagesTr/liver_0.nii.gz"]}, ["dataset.json", "entry 0"]),
        ({"training": [{"image": "gone.nii.gz", "label": "x"}]}, ["gone.nii.gz", "dataset.json", "does not exist"]),
        ({"labels": {}}, ["dataset.json", "labels"]),
        ({"labels": {"liver": 1}}, ["dataset.json", "labels"]),
        ({"modality": ["CT"]}, ["dataset.json", "modality"]),
    ],
)
def test_a_dataset_json_at_fault_is_named_with_its_fault(liver_folder, changes, words):
    with pytest.raises(InputError) as error:
        read_source(broken(liver_folder(cases=1), **changes))
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message


def test_missing_empty_and_foreign_folders_are_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("x")
    for folder, word in (("nowhere", "not a folder"), ("empty", "is empty"), ("foreign", "neither dataset.json nor")):
        with pytest.raises(InputError, match=word) as error:
            read_source(tmp_path / folder)
        assert str(tmp_path / folder) in str(error.value)


def test_a_lits_volume_without_segmentation_is_named(liver_folder, tmp_path):
    folder = as_lits(liver_folder(cases=2), tmp_path / "LiTS")
    (folder / "batch1" / "segmentation-1.nii.gz").unlink()
    with pytest.raises(InputError, match="volume-1.nii.gz.*segmentation-1"):
        read_source(folder)


def test_json_files_at_fault_are_named(tmp_path):
    (tmp_path / "torn.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[1]")
    for name, word in (("torn", "not valid JSON"), ("list", "no JSON object"), ("gone", "cannot be read")):
        with pytest.raises(InputError, match=f"{name}.json.*{word}"):
            read_json(tmp_path / f"{name}.json")


def test_a_json_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "sub" / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "sub" / "a.json", {"a": object()})
    assert read_json(tmp_path / "sub" / "a.json") == {"a": 1}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.json"]


# The split


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
    monkeypatch.setattr(datalists, "held_out", lambda: frozenset({"3", "4"}))
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
    assert held == datalists.held_out()


# Images of an inference run


def test_images_to_segment_come_from_a_file_a_folder_or_a_decathlon_folder(liver_folder):
    folder = liver_folder(cases=3)
    image = folder / "imagesTr" / "liver_0.nii.gz"
    assert list_images(image) == [{"image": str(image)}]
    (folder / "imagesTr" / "._liver_0.nii.gz").write_text("a file manager's leftover")
    assert names(list_images(folder / "imagesTr"), "image") == [f"liver_{number}.nii.gz" for number in range(3)]
    assert list_images(folder) == list_images(folder / "imagesTr")
    test = folder / "imagesTs" / "liver_9.nii"
    test.parent.mkdir()
    shutil.copy(image, test)
    assert list_images(folder) == [{"image": str(test)}]


def test_folders_without_images_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="nowhere.*does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no image"):
        list_images(tmp_path)

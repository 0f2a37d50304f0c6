from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from prepared_folders import domains_of
from tiny_domains import SPACING, change_dataset, write_domain

from med3d_ext.data import PreparedData
from med3d_ext.data.fingerprint import read_header, sha256
from med3d_ext.data.splits import split_cases
from med3d_ext.errors import InputError
from med3d_ext.tools.cli import main
from med3d_ext.tools.layouts.prepare import prepare_3dseg8
from med3d_ext.tools.layouts.table import read_source
from med3d_ext.transforms import LoadVolumed, MergeLabelsd


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Brain with two channels, liver with a tumor class, spleen on the liver's scans, and no domains."""
    root = tmp_path / "msd"
    write_domain(root / "Task01_BrainTumour", 4, ("edema", "core"), channels=("T1w", "FLAIR"), seed=1)
    write_domain(root / "Task03_Liver", 4, ("liver", "cancer"), channels=("CT",), seed=2)
    write_domain(root / "Task09_Spleen", 4, ("spleen",), channels=("CT",), seed=2)
    write_domain(root / "Task06_Lung", 2)
    (root / "notes").mkdir()
    return root


def prepare(src: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and cases by domain, and the list."""
    output = prepare_3dseg8(src, src.parent / "prepared", **options)
    return domains_of(output), json.loads((output / "datalist.json").read_text())


def test_domains_come_in_the_papers_order_with_channel_classes_and_range(src: Path) -> None:
    domains = prepare(src)[0]
    assert list(domains) == ["Task01_BrainTumour", "Task03_Liver", "Task09_Spleen"]
    brain, liver, spleen = domains.values()
    assert (brain["channel"], brain["modality"], brain["intensity_range"]) == (1, "MR", None)
    assert (liver["channel"], liver["modality"], liver["intensity_range"]) == (0, "CT", [-125.0, 275.0])
    assert brain["classes"] == {"0": "background", "1": "edema", "2": "core"}
    assert liver["classes"] == {"0": "background", "1": "liver"}
    assert liver["label_map"] == {"0": 0, "1": 1, "2": 1}
    assert spleen["classes"] == {"0": "background", "1": "spleen"}
    assert [each["spatial_size"] for each in domains.values()] == [[112, 112, 80], [128, 128, 96], [128, 128, 96]]


def test_intensities_are_those_of_the_chosen_channel(src: Path) -> None:
    brain = prepare(src)[0]["Task01_BrainTumour"]
    assert brain["intensity_observed"][0] > 900  # FLAIR is channel 1, at 1100


def test_the_median_spacing_is_taken_per_axis(tmp_path: Path) -> None:
    spacings = ((1.0, 2.0, 3.0), (1.0, 5.0, 2.0), (4.0, 1.0, 2.5))
    write_domain(tmp_path / "msd" / "Task02_Heart", 3, spacings=spacings)
    change_dataset(tmp_path / "msd" / "Task02_Heart", labels={"0": "background", "1": "left atrium"})
    prepare_3dseg8(tmp_path / "msd", tmp_path / "out")
    domain = domains_of(tmp_path / "out")["Task02_Heart"]
    seen = np.array([case["spacing"] for case in domain["cases"] if case["split"] != "test"])
    assert len(seen) == 2
    assert domain["spacing_median"] == pytest.approx(np.median(seen, axis=0).tolist())
    assert domain["spacing_mean"] == pytest.approx(seen.mean(axis=0).tolist())


def test_items_load_with_their_channel_and_labels_merge(src: Path) -> None:
    domains, datalist = prepare(src)
    label_map = {name: domain["label_map"] for name, domain in domains.items()}
    for item in datalist["training"]:
        loaded = MergeLabelsd("label", label_map)(LoadVolumed()(item))
        classes = domains[item["domain"]]["classes"]
        assert loaded["label"].unique().tolist() == sorted(map(int, classes))
        assert (float(loaded["image"].mean()) > 1000) == (item["domain"] == "Task01_BrainTumour")


def test_domains_that_share_scans_share_the_split(src: Path) -> None:
    domains = prepare(src)[0]
    splits = [{case["sha256"]: case["split"] for case in domains[name]["cases"]} for name in list(domains)[1:]]
    assert splits[0] == splits[1]
    assert sorted(splits[0].values()) == ["test", "training", "training", "training"]


def test_the_same_seed_gives_the_same_split_and_another_seed_another(src: Path) -> None:
    lists = [prepare(src, seed=seed)[1]["test"] for seed in (0, 0, 1, 2, 3)]
    assert lists[0] == lists[1]
    assert any(other != lists[0] for other in lists[2:])


@pytest.mark.parametrize(
    ("wanted", "names"), [("liver", ["Task03_Liver"]), (2, ["Task01_BrainTumour", "Task03_Liver"])]
)
def test_a_part_of_the_domains_is_prepared(src: Path, wanted: Any, names: list[str]) -> None:
    domains, datalist = prepare(src, domains=wanted)
    assert list(domains) == names
    assert {item["domain"] for item in datalist["training"]} == set(names)


def test_folders_are_recognized_by_title_and_others_are_domains_of_their_own(tmp_path: Path) -> None:
    write_domain(tmp_path / "msd" / "a", title="Hippocampus")
    write_domain(tmp_path / "msd" / "kidneys", channels=("CT",), seed=3)
    domains = prepare(tmp_path / "msd")[0]
    assert [(name, domain["organ"]) for name, domain in domains.items()] == [
        ("a", "hippocampus"),
        ("kidneys", "kidneys"),
    ]
    assert domains["a"]["spatial_size"] == [96, 144, 96]
    assert domains["kidneys"]["modality"] == "CT"


def test_a_single_domains_folder_may_be_given(src: Path) -> None:
    assert list(prepare(src / "Task09_Spleen")[0]) == ["Task09_Spleen"]


def test_a_line_of_json_adds_a_domain_and_takes_in_a_task_that_is_left_out(src: Path) -> None:
    write_domain(src / "kidneys", 2, ("left", "right"), channels=("a", "b"))
    lines = {
        "MyKidneys": {"folder": "kidneys", "spatial_size": [96, 96, 64], "channel": 0, "merge": {"2": 1}},
        "Task06_Lung": {},
        "Task09_Spleen": {"intensity_range": [-100, 200]},
    }
    (src / "domains.json").write_text(json.dumps(lines))
    domains = prepare(src)[0]
    expected = ["Task01_BrainTumour", "Task03_Liver", "Task09_Spleen", "MyKidneys", "Task06_Lung"]
    assert list(domains) == expected
    kidneys = domains["MyKidneys"]
    assert (kidneys["channel"], kidneys["spatial_size"], kidneys["organ"]) == (0, [96, 96, 64], "MyKidneys")
    assert kidneys["classes"] == {"0": "background", "1": "left"}
    assert domains["Task09_Spleen"]["intensity_range"] == [-100, 200]
    assert domains["Task09_Spleen"]["organ"] == "spleen"


def fail(src: Path, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        prepare(src, **options)


def test_a_domain_folder_without_dataset_json_takes_its_classes_from_the_labels(src: Path) -> None:
    (src / "Task09_Spleen" / "dataset.json").unlink()
    domain = prepare(src)[0]["Task09_Spleen"]
    assert (domain["classes"], domain["organ"]) == ({"0": "background", "1": "label 1"}, "spleen")
    (src / "Task09_Spleen" / "labelsTr").rename(src / "Task09_Spleen" / "elsewhere")
    fail(src, "Task09_Spleen' holds neither dataset.json")


def test_a_label_value_outside_the_classes_is_refused_with_the_file(src: Path) -> None:
    change_dataset(src / "Task03_Liver", labels={"0": "background", "1": "liver"})
    fail(src, r"labelsTr/case_\d.nii.gz' holds the value 2, Task03_Liver has the classes \[0, 1\]")


def test_two_domains_of_one_name_are_refused(src: Path) -> None:
    shutil.copytree(src / "Task09_Spleen", src / "Task09_Spleen_copy")
    fail(src, "Task09_Spleen_copy' and '.*Task09_Spleen' are both the domain 'spleen'")


def test_a_line_with_the_name_of_another_folder_is_refused(src: Path) -> None:
    write_domain(src / "kidneys")
    (src / "domains.json").write_text('{"task09_spleen": {"folder": "kidneys"}}')
    fail(src, "Task09_Spleen' and '.*kidneys' are two domains of the name 'task09_spleen'")


def test_mixed_channel_counts_are_refused_with_the_file(src: Path) -> None:
    shutil.copy(src / "Task03_Liver/imagesTr/case_0.nii.gz", src / "Task01_BrainTumour/imagesTr/case_2.nii.gz")
    fail(src, "Task01_BrainTumour/imagesTr/case_2.nii.gz' has 1 channels, '.*case_0.nii.gz' has 2")


def test_a_channel_name_that_is_not_found_is_refused_with_the_file(src: Path) -> None:
    change_dataset(src / "Task01_BrainTumour", modality={"0": "T1", "1": "T2"})
    fail(src, r"case_0.nii.gz' has 2 channels \(0: T1, 1: T2\) and none is 'FLAIR'")


def test_a_merge_into_no_class_is_refused_with_the_folder(src: Path) -> None:
    (src / "domains.json").write_text('{"Task09_Spleen": {"merge": {"1": 4}}}')
    fail(src, "Task09_Spleen': label 1 cannot become 4")


def test_a_line_without_its_folder_and_a_folder_without_domains_are_refused(src: Path, tmp_path: Path) -> None:
    (src / "domains.json").write_text('{"MyKidneys": {"folder": "kidneys"}}')
    fail(src, "kidneys' of domain 'MyKidneys' is not a folder")
    (tmp_path / "empty").mkdir()
    fail(tmp_path / "empty", "empty' holds no domain")
    fail(tmp_path / "none", "none' is not a folder")


def test_headers_of_300_files_are_read_in_less_than_10_seconds(tmp_path: Path) -> None:
    path = str(tmp_path / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((256, 256, 40), np.int16), np.diag([*SPACING, 1.0])), path)
    start = time.perf_counter()
    headers = [read_header(path) for _ in range(300)]
    assert time.perf_counter() - start < 10
    assert headers[0]["spacing"] == list(SPACING)


def test_prepared_data_gives_items_with_domain_of_chosen_domains_and_shares(src: Path, tmp_path: Path) -> None:
    def data(**options: Any) -> PreparedData:
        return PreparedData("3dseg8", str(src), str(tmp_path / "run"), **options)

    whole = data()
    assert {item["domain"] for item in whole.items("training")} == set(whole.domains)
    assert len(whole.training) == 9
    assert {item["domain"] for item in whole.validation} == set(whole.domains)
    assert whole.per_domain("channel") == {"Task01_BrainTumour": 1, "Task03_Liver": 0, "Task09_Spleen": 0}
    part = data(share=0.4)
    assert [item["domain"] for item in part.training] == list(whole.domains)
    assert all(item in whole.training for item in part.training)
    assert part.test == whole.test
    assert part.identity != whole.identity
    two = data(domains=2)
    assert list(two.domains) == ["Task01_BrainTumour", "Task03_Liver"]
    assert {item["domain"] for item in two.test} == set(two.domains)
    with pytest.raises(InputError, match="facts.json' has no 'hu_window' of domain 'Task01_BrainTumour'"):
        whole.per_domain("hu_window")


def test_an_unchanged_folder_is_not_read_again_unless_the_channel_changes(src: Path, monkeypatch) -> None:
    prepare(src)
    monkeypatch.setattr("med3d_ext.data.fingerprint.read_voxels", lambda *_: pytest.fail("a volume was read"))
    prepare(src)
    (src / "domains.json").write_text('{"Task01_BrainTumour": {"channel": "T1w"}}')
    with pytest.raises(pytest.fail.Exception):
        prepare(src)


def test_the_verb_writes_into_the_output_and_leaves_the_source_alone(src: Path, tmp_path: Path, capsys) -> None:
    before = sorted(src.rglob("*"))
    assert main(["prepare", "3dseg8", str(src), "--domains", "liver,brain", "--output", str(tmp_path / "out")]) == 0
    assert "out" in capsys.readouterr().out
    assert len(domains_of(tmp_path / "out")) == 2
    assert sorted(src.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["brains", "SRC"], "KIND must be one of 3dseg8, "),
        (["lits", "SRC", "--domains", "2"], "--domains is not an option of lits"),
        (["lits", "SRC", "--hu_window", "wide"], "--hu_window must be two numbers"),
        (["3dseg8", "SRC", "--hu_window=-100,200"], "--hu_window is not an option of 3dseg8"),
        (["3dseg8", "SRC", "--domains", "lung"], "domains must name some of"),
    ],
)
def test_mistakes_of_the_verb_are_one_line(src: Path, words: list[str], message: str, capsys) -> None:
    assert main(["prepare", *[str(src) if word == "SRC" else word for word in words]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_the_verb_prepares_lits_with_a_window(src: Path, tmp_path: Path) -> None:
    words = ["prepare", "lits", str(src / "Task03_Liver"), "--output", str(tmp_path / "out"), "--hu_window=-100,200"]
    assert main(words) == 0
    domain = domains_of(tmp_path / "out")["Task03_Liver"]
    assert domain["hu_window"] == [-100, 200]


def test_the_held_out_abdomen_cases_are_test_in_all_four_ct_domains(real_data: Path) -> None:
    domains = {}
    for task in ("Task03_Liver", "Task07_Pancreas", "Task08_HepaticVessel", "Task09_Spleen"):
        cases = read_source(real_data / "msd" / task).cases
        domains[task] = [{**case, "sha256": sha256(case["image"])} for case in cases]
    split_cases(domains)
    for cases in domains.values():
        test = [number for number, case in enumerate(cases) if case["split"] == "test"]
        assert test == [20, 21, 22, 23]

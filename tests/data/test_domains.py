from __future__ import annotations

from pathlib import Path

import pytest

from med3d_ext.data.domains import DOMAINS, merge_classes, read_lines, recognize, settings_of
from med3d_ext.errors import InputError


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.organ)
def test_every_task_is_recognized_by_number_by_organ_and_by_title(domain) -> None:
    assert recognize(domain.folder) is domain
    assert recognize(domain.organ.upper()) is domain
    assert recognize("data", domain.folder.partition("_")[2]) is domain
    assert recognize(domain.folder[:6] + "_mine") is domain


def test_another_organ_is_not_recognized() -> None:
    assert recognize("Task06_Lung", "Lung") is None


def test_the_tables_order_is_the_papers() -> None:
    assert [domain.organ for domain in DOMAINS] == [
        "brain", "hippocampus", "prostate", "liver", "heart", "pancreas", "vessel", "spleen",
    ]  # fmt: skip


def test_ct_domains_keep_what_every_ct_holds_and_grids_suit_the_stride() -> None:
    for domain in DOMAINS:
        assert domain.intensity_range == ((-125.0, 275.0) if domain.modality == "CT" else None)
        assert all(extent % 8 == 0 for extent in domain.spatial_size)


def test_a_users_domain_takes_what_its_line_says() -> None:
    line = {"folder": "k", "spatial_size": [64, 64, 32], "intensity_range": None, "merge": {"2": 1}}
    domain = settings_of("MyKidneys", "k", "", {0: "CT"}, line)
    assert (domain.organ, domain.modality, domain.spatial_size) == ("MyKidneys", "CT", [64, 64, 32])
    assert domain.intensity_range is None
    assert domain.merge == {2: 1}


@pytest.mark.parametrize(
    ("channel", "modality"), [("CT", "CT"), ("ct venous", "CT"), ("T2", "MR"), ("MRI vector", "MR")]
)
def test_the_modality_of_an_unknown_folder_is_that_of_its_channels(channel: str, modality: str) -> None:
    domain = settings_of("kidneys", "kidneys", "", {0: channel}, {})
    assert domain.modality == modality
    assert (domain.intensity_range is not None) == (modality == "CT")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"spatial_size": [60, 64, 64]}, "spatial_size of domain 'kidneys' must be three multiples of 8"),
        ({"spatial_size": [64, 64]}, "spatial_size of domain 'kidneys'"),
        ({"intensity_range": [5, 5]}, "intensity_range of domain 'kidneys' must be"),
    ],
)
def test_impossible_settings_are_refused(line: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of("kidneys", "kidneys", "", {0: "CT"}, line)


def test_merged_classes_are_numbered_anew() -> None:
    classes, label_map = merge_classes({0: "background", 1: "kidney", 2: "tumor", 5: "cyst"}, {2: 1})
    assert classes == {"0": "background", "1": "kidney", "2": "cyst"}
    assert label_map == {"0": 0, "1": 1, "2": 1, "5": 2}


@pytest.mark.parametrize(
    ("classes", "merge"),
    [({0: "a", 1: "b", 2: "c"}, {2: 3}), ({1: "b", 2: "c"}, {}), ({0: "a", 1: "b", 2: "c"}, {2: 1, 1: 0})],
)
def test_a_merge_into_no_class_and_a_table_without_background_are_refused(classes: dict, merge: dict) -> None:
    with pytest.raises(InputError, match="cannot become"):
        merge_classes(classes, merge)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"A": {"folder": "a"}, "A": {"folder": "b"}}', "states 'A' twice"),
        ('{"A": {"size": [8, 8, 8]}}', "unknown key 'size' under 'A'"),
        ('{"A": "a"}', "must map names to settings"),
        ("[]", "must map names to settings"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_faulty_line_is_refused_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "domains.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"domains.json.*{message}"):
        read_lines(path)


def test_a_missing_file_of_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mine.json' cannot be read"):
        read_lines(tmp_path / "mine.json")

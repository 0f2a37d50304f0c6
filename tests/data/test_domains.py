"""The table of domains, a user's own lines, which domains are chosen, and the classes of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from med3d_ext.data import branch_classes, class_count
from med3d_ext.data.domains import DOMAINS, choose_domains, merge_classes, read_lines, recognize, settings_of
from med3d_ext.errors import InputError


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.organ)
def test_every_task_is_recognized_by_number_by_organ_and_by_title(domain):
    assert recognize(domain.folder) is domain
    assert recognize(domain.organ.upper()) is domain
    assert recognize("data", domain.folder.partition("_")[2]) is domain
    assert recognize(domain.folder[:6] + "_mine") is domain
    assert recognize("Task06_Lung", "Lung") is None


def test_a_users_domain_takes_what_its_line_says():
    line = {"folder": "k", "spatial_size": [64, 64, 32], "intensity_range": None, "merge": {"2": 1}}
    domain = settings_of("MyKidneys", "k", "", {0: "CT"}, line)
    assert (domain.organ, domain.modality, domain.spatial_size) == ("MyKidneys", "CT", [64, 64, 32])
    assert (domain.intensity_range, domain.merge) == (None, {2: 1})


@pytest.mark.parametrize(
    ("channel", "modality"), [("CT", "CT"), ("ct venous", "CT"), ("T2", "MR"), ("MRI vector", "MR")]
)
def test_the_modality_of_an_unknown_folder_is_that_of_its_channels(channel, modality):
    domain = settings_of("kidneys", "kidneys", "", {0: channel}, {})
    assert (domain.modality, domain.intensity_range is not None) == (modality, modality == "CT")


@pytest.mark.parametrize(
    "line", [{"spatial_size": [60, 64, 64]}, {"spatial_size": [64, 64]}, {"intensity_range": [5, 5]}, {"merge": 3}]
)
def test_impossible_settings_are_refused(line):
    with pytest.raises(InputError, match=f"{next(iter(line))} of domain 'kidneys' must"):
        settings_of("kidneys", "kidneys", "", {0: "CT"}, line)


def test_merged_classes_are_numbered_anew():
    classes, label_map = merge_classes({0: "background", 1: "kidney", 2: "tumor", 5: "cyst"}, {2: 1})
    assert classes == {"0": "background", "1": "kidney", "2": "cyst"}
    assert label_map == {"0": 0, "1": 1, "2": 1, "5": 2}


@pytest.mark.parametrize(
    ("classes", "merge"),
    [({0: "a", 1: "b", 2: "c"}, {2: 3}), ({1: "b", 2: "c"}, {}), ({0: "a", 1: "b", 2: "c"}, {2: 1, 1: 0})],
)
def test_a_merge_into_no_class_and_a_table_without_background_are_refused(classes, merge):
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
        (None, "cannot be read"),
    ],
)
def test_a_faulty_line_is_refused_with_its_file(tmp_path, text, message):
    path = tmp_path / "domains.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"domains.json.*{message}"):
        read_lines(path)


TABLE = {
    "Task01_BrainTumour": {"organ": "brain"},
    "Task04_Hippocampus": {"organ": "hippocampus"},
    "Task03_Liver": {"organ": "liver"},
    "Mine": {"organ": "Mine"},
}


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (None, [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
        (2, [0, 1]),
        ("3", [0, 1, 2]),
        ("liver,brain", [0, 2]),
        (["Mine", "Task04"], [1, 3]),
        (" Task03_Liver ", [2]),
    ],
)
def test_domains_are_chosen_by_number_or_name_in_the_tables_order(wanted, places):
    assert choose_domains(TABLE, wanted) == [list(TABLE)[place] for place in places]


@pytest.mark.parametrize("wanted", [0, 5, "9", "lung", ["liver", "x"]])
def test_domains_that_are_not_there_are_refused(wanted):
    with pytest.raises(InputError, match="domains must (be 1 to 4|name some of Task01_BrainTumour)"):
        choose_domains(TABLE, wanted)


def write_weights(folder: Path, classes: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    (folder / "model.pt").touch()
    domains = {name: {"classes": {str(value): "c" for value in range(count)}} for name, count in classes.items()}
    (folder / "facts.json").write_text(json.dumps({"domains": domains}))


def test_branches_are_those_of_trained_weights_else_of_released_ones_else_the_decathlons(tmp_path):
    root = str(tmp_path)
    assert list(branch_classes(root).values()) == [4, 3, 3, 2, 2, 3, 3, 2]  # in the order of the paper's table 2
    assert [name[:6] for name in branch_classes(root)] == [f"Task0{number}" for number in (1, 4, 5, 3, 2, 7, 8, 9)]
    assert (class_count(root), class_count(root, default=3)) == (2, 3)
    write_weights(tmp_path / "weights", {"lung": 3})
    assert branch_classes(root) == {"lung": 3} and class_count(root) == 3
    write_weights(tmp_path / "models", {"liver": 2, "brain": 4})
    assert branch_classes(root) == {"liver": 2, "brain": 4}
    write_weights(tmp_path / "elsewhere", {"heart": 3})
    assert branch_classes(root, str(tmp_path / "elsewhere")) == {"heart": 3}

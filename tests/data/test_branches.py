from __future__ import annotations

import json
from pathlib import Path

from med3d_ext.data import branch_classes, class_count


def write_weights(folder: Path, classes: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    (folder / "model.pt").touch()
    domains = {name: {"classes": {str(value): "c" for value in range(count)}} for name, count in classes.items()}
    (folder / "facts.json").write_text(json.dumps({"domains": domains}))


def test_without_weights_the_branches_are_the_decathlons(tmp_path: Path):
    assert branch_classes(str(tmp_path)) == {
        "Task01_BrainTumour": 4,
        "Task04_Hippocampus": 3,
        "Task05_Prostate": 3,
        "Task03_Liver": 2,
        "Task02_Heart": 2,
        "Task07_Pancreas": 3,
        "Task08_HepaticVessel": 3,
        "Task09_Spleen": 2,
    }


def test_trained_weights_win_over_released_ones(tmp_path: Path):
    write_weights(tmp_path / "weights", {"liver": 2})
    assert branch_classes(str(tmp_path)) == {"liver": 2}
    write_weights(tmp_path / "models", {"liver": 2, "brain": 4})
    assert branch_classes(str(tmp_path)) == {"liver": 2, "brain": 4}


def test_another_folder_of_weights_can_be_named(tmp_path: Path):
    write_weights(tmp_path / "elsewhere", {"heart": 3})
    assert branch_classes(str(tmp_path), str(tmp_path / "elsewhere")) == {"heart": 3}


def test_a_one_domain_bundle_takes_its_number_of_classes_from_its_weights(tmp_path: Path):
    assert (class_count(str(tmp_path)), class_count(str(tmp_path), default=3)) == (2, 3)
    write_weights(tmp_path / "weights", {"Lung": 3})
    assert class_count(str(tmp_path)) == 3

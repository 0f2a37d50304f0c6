from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pytest
from prepared_folders import domains_of
from tiny_domains import write_domain

from med3d_ext.data import PreparedData
from med3d_ext.data.fingerprint import read_header
from med3d_ext.errors import InputError
from med3d_ext.tools.cli import main
from med3d_ext.tools.layouts.prepare import prepare_3dseg8
from med3d_ext.tools.layouts.table import LEFT_ATRIUM, layout_of, read_source
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


def test_items_load_with_their_channel_and_labels_merge(src: Path) -> None:
    domains, datalist = prepare(src)
    label_map = {name: domain["label_map"] for name, domain in domains.items()}
    for item in datalist["training"]:
        loaded = MergeLabelsd("label", label_map)(LoadVolumed()(item))
        classes = domains[item["domain"]]["classes"]
        assert loaded["label"].unique().tolist() == sorted(map(int, classes))
        assert (float(loaded["image"].mean()) > 1000) == (item["domain"] == "Task01_BrainTumour")


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


def lines(text: str):
    return lambda src: (src / "domains.json").write_text(text)


FAULTS = {
    "one domain twice": (
        lambda src: shutil.copytree(src / "Task09_Spleen", src / "Task09_Spleen_copy"),
        "Task09_Spleen_copy' and '.*Task09_Spleen' are both the domain 'spleen'",
    ),
    "one name twice": (
        lines('{"task09_spleen": {"folder": "notes"}}'),
        "Task09_Spleen' and '.*notes' are two domains of the name 'task09_spleen'",
    ),
    "no folder": (lines('{"MyKidneys": {"folder": "k"}}'), "k' of domain 'MyKidneys' is not a folder"),
    "merged into no class": (
        lines('{"Task09_Spleen": {"merge": {"1": 4}}}'),
        "Task09_Spleen': label 1 cannot become 4",
    ),
    "mixed channels": (
        lambda src: shutil.copy(
            src / "Task03_Liver/imagesTr/case_0.nii.gz", src / "Task01_BrainTumour/imagesTr/case_2.nii.gz"
        ),
        "Task01_BrainTumour/imagesTr/case_2.nii.gz' has 1 channels, '.*case_0.nii.gz' has 2",
    ),
    "no domain": (lambda src: [shutil.rmtree(path) for path in src.glob("Task*")], "msd' holds no domain"),
    "nothing": (shutil.rmtree, "msd' is not a folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_folder_is_refused_by_name(fault: str, src: Path) -> None:
    change, message = FAULTS[fault]
    change(src)
    fail(src, message)


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


# The 2018 left atrium


def write_nrrd(path: Path, voxels: np.ndarray, spacing: tuple[float, float, float] = (0.5, 0.75, 2.0)) -> Path:
    """Write voxels (x, y, z), with y pointing to anterior where ITK's axes point to posterior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.image_from_array(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing)
    image.SetDirection(itk.matrix_from_array(np.diag([1.0, -1.0, 1.0])))
    itk.imwrite(image, str(path))
    return path


def write_patients(folder: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    label = np.zeros((12, 10, 6), np.uint8)
    label[4:8, 4:6, 2:4] = 255
    for number in range(count):
        patient = folder / "Training Set" / f"patient{number}"
        write_nrrd(patient / "lgemri.nrrd", rng.integers(0, 200, label.shape, dtype=np.uint8))
        write_nrrd(patient / "laendo.nrrd", label)
    write_nrrd(folder / "Testing Set" / "patient9" / "lgemri.nrrd", label)
    return folder


def test_the_header_tells_what_the_loaded_volume_has(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", np.zeros((12, 10, 6), np.uint8))
    header = read_header(path)
    assert header == {"shape": [12, 10, 6], "channels": 1, "spacing": [0.5, 0.75, 2.0], "orientation": "LAS"}
    volume = LoadVolumed("image")({"image": str(path)})["image"]
    assert list(volume.shape[1:]) == header["shape"]
    assert volume.pixdim.tolist() == pytest.approx(header["spacing"])
    assert np.sign(np.diag(volume.affine.numpy())[:3]).tolist() == [-1, 1, 1]


def test_the_set_is_prepared_as_the_heart_with_255_as_the_atrium(tmp_path: Path) -> None:
    write_patients(tmp_path / "src" / "atria")
    prepare_3dseg8(tmp_path / "src", tmp_path / "out")
    domain = domains_of(tmp_path / "out")["atria"]
    assert (domain["organ"], domain["modality"]) == ("heart", "MR")
    assert domain["classes"] == {"0": "background", "1": "left atrium"}
    assert domain["spacing_median"] == [0.5, 0.75, 2.0]
    item = LoadVolumed()({key: domain["cases"][0][key] for key in ("image", "label")})
    assert MergeLabelsd("label", domain["label_map"])(item)["label"].unique().tolist() == [0, 1]


def test_the_set_takes_the_place_of_the_decathlons_hearts(tmp_path: Path) -> None:
    write_patients(tmp_path / "src" / "atria")
    write_domain(tmp_path / "src" / "Task02_Heart")
    prepare_3dseg8(tmp_path / "src", tmp_path / "out")
    assert list(domains_of(tmp_path / "out")) == ["atria"]


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "patient" / "lgemri.nrrd", np.zeros((4, 4, 4), np.uint8))
    assert layout_of(tmp_path).name == LEFT_ATRIUM
    with pytest.raises(InputError, match="no laendo file next to any of them"):
        read_source(tmp_path)

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest
from prepared_folders import domains_of
from tiny_domains import write_domain

from med3d_ext.data.fingerprint import read_header
from med3d_ext.errors import InputError
from med3d_ext.tools.layouts.prepare import prepare_3dseg8
from med3d_ext.tools.layouts.table import LEFT_ATRIUM, layout_of, read_source
from med3d_ext.transforms import LoadVolumed, MergeLabelsd


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


def test_patients_with_a_label_are_cases(tmp_path: Path) -> None:
    source = read_source(write_patients(tmp_path / "atria"))
    assert [case["subject"] for case in source.cases] == ["patient0", "patient1", "patient2"]
    assert all(Path(case["image"]).name == "lgemri.nrrd" for case in source.cases)
    assert all(Path(case["label"]).name == "laendo.nrrd" for case in source.cases)


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


def test_damaged_and_flat_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_text("no image")
    with pytest.raises(InputError, match="a.nrrd' cannot be read"):
        read_header(tmp_path / "a.nrrd")
    itk.imwrite(itk.image_from_array(np.zeros((4, 4), np.uint8)), str(tmp_path / "flat.nrrd"))
    with pytest.raises(InputError, match="flat.nrrd' is not a 3D volume"):
        read_header(tmp_path / "flat.nrrd")

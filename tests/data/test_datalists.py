"""Source folders become one list of cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import write_frames, write_series
from monai.data import list_data_collate
from monai.transforms import SaveImage

from med3d_ext.data import images_to_segment
from med3d_ext.data.datalists import existing_file, list_images, named_images, scans_without_target
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, sha256
from med3d_ext.io.label_maps import label_map_name, write_label_map
from med3d_ext.tools.layouts.table import read_source
from med3d_ext.transforms import LoadVolumed


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


def test_a_lits_volume_without_segmentation_is_named(liver_folder, tmp_path):
    folder = as_lits(liver_folder(cases=2), tmp_path / "LiTS")
    (folder / "batch1" / "segmentation-1.nii.gz").unlink()
    with pytest.raises(InputError, match="volume-1.nii.gz.*segmentation-1"):
        read_source(folder)


def test_a_folder_with_the_name_of_an_image_stands_for_the_image_in_it(liver_folder, tmp_path):
    decathlon, lits = liver_folder(cases=2), as_lits(liver_folder(cases=2), tmp_path / "LiTS")
    plain = {"decathlon": read_source(decathlon), "lits": read_source(lits)}
    for file in [*decathlon.rglob("*.nii.gz"), *lits.rglob("*.nii.gz")]:
        content = file.read_bytes()
        file.unlink()
        file.mkdir()
        (file / file.name).write_bytes(content)
    for folder, before in ((decathlon, plain["decathlon"]), (lits, plain["lits"])):
        expected = [{key: f"{case[key]}/{Path(case[key]).name}" for key in ("image", "label")} for case in before.cases]
        assert read_source(folder).cases == expected


def test_parts_that_count_from_0_each_keep_their_own_labels(liver_folder, tmp_path):
    lits = as_lits(liver_folder(cases=2), tmp_path / "LiTS")
    for kind in ("volume", "segmentation"):
        (lits / "batch1" / f"{kind}-1.nii.gz").rename(lits / "batch1" / f"{kind}-0.nii.gz")
    cases = read_source(lits).cases
    assert sorted(Path(case["image"]).parent.name for case in cases) == ["batch0", "batch1"]
    assert all(Path(case["image"]).parent == Path(case["label"]).parent for case in cases)

    (lits / "batch0" / "segmentation-0.nii.gz").rename(lits / "segmentation-0.nii.gz")
    (lits / "labels").mkdir()
    (lits / "batch1" / "segmentation-0.nii.gz").rename(lits / "labels" / "segmentation-0.nii.gz")
    with pytest.raises(InputError, match="several labels"):
        read_source(lits)


def test_json_files_at_fault_are_named(tmp_path):
    (tmp_path / "torn.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[1]")
    for name, word in (("torn", "not valid JSON"), ("list", "no JSON object"), ("gone", "cannot be read")):
        with pytest.raises(InputError, match=f"{name}.json.*{word}"):
            read_json(tmp_path / f"{name}.json")


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


def test_every_format_and_every_folder_of_a_dicom_series_is_an_image(tmp_path):
    for name in ("a.nii.gz", "b.nii", "c.nrrd", "d.mha", "e.mhd", "e.raw", ".hidden.nii", "notes.txt"):
        (tmp_path / name).write_bytes(b"x" * 200)
    files = {
        "patient/ct/1.dcm": b"",
        "patient/mr/IM0001": b"\0" * 128 + b"DICM",  # the standard asks for no ending
        "patient/report/DICOMDIR": b"\0" * 128 + b"DICM",
        "patient/report/short": b"x",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    series = [str(tmp_path / "patient" / name) for name in ("ct", "mr")]
    assert [item["image"] for item in list_images(tmp_path / "patient")] == series
    assert [item["image"] for item in list_images(tmp_path / "patient" / "ct")] == series[:1]
    assert names(list_images(tmp_path), "image") == ["a.nii.gz", "b.nii", "c.nrrd", "d.mha", "e.mhd", "ct", "mr"]


def test_folders_without_images_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="nowhere.*does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no image"):
        list_images(tmp_path)


# Their names

PARTS = ("a", "b", "a_b", "CT", "ct", "1.2.840.1", "1.2.840.2", "Müller, Änne (2)", "x:y", "p", "1")
FILES = ("ct.nii.gz", "ct.nii", "ct.mha", "CT.NII.GZ", "b_ct.nii.gz", "1.2.nrrd", "b.nhdr", "a b.mhd")


def random_tree(root: Path, seed: int) -> list[Path]:
    generator = np.random.default_rng(seed)
    images = set()
    for _ in range(30):
        folder = root.joinpath(*generator.choice(PARTS, generator.integers(0, 4)))
        path = folder / generator.choice(FILES)
        if generator.random() < 0.3:  # a DICOM series
            path = folder / "series" / generator.choice(PARTS) / "IM1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 128 + b"DICM")
        images.add(path if path.name != "IM1" else path.parent)
    return sorted(images)


@pytest.mark.parametrize("seed", range(12))
def test_every_image_of_a_random_tree_has_a_name_of_its_own_that_is_safe_and_does_not_depend_on_order(seed, tmp_path):
    images = random_tree(tmp_path / "in", seed)
    items, without = named_images([tmp_path / "in"])
    assert {item["image"] for item in items} == set(map(str, images)) and not without
    found = [item["case"] for item in items]
    assert len({name.casefold() for name in found}) == len(images)
    assert all(
        name and name[0] != "." and not set(name) & set('/\\:*?"<>|') and len(name.encode()) < 200 for name in found
    )
    by_parts = named_images([item["image"] for item in items][::-1] + [tmp_path / "in"])[0]
    assert len({item["case"].casefold() for item in by_parts}) == len(images)
    assert named_images([tmp_path / "in"]) == (items, {})
    # What MONAI's writer makes of the names is as many files.
    save = SaveImage(tmp_path / "out", "seg", separate_folder=False, output_name_formatter=label_map_name)
    names = [save.folder_layout.filename(**label_map_name({"case": name}, save)) for name in found]
    assert names == [str(tmp_path / "out" / f"{name}_seg.nii.gz") for name in found]


@pytest.mark.parametrize("seed", range(4))
def test_a_further_patient_changes_no_name(seed, tmp_path):
    for patient in range(4):
        random_tree(tmp_path / "in" / f"patient_{patient}" / "study", 10 * seed + patient)
    before = {item["image"]: item["case"] for item in named_images([tmp_path / "in"])[0]}
    random_tree(tmp_path / "in" / "patient_4" / "study", seed)
    after = {item["image"]: item["case"] for item in named_images([tmp_path / "in"])[0]}
    assert before.items() <= after.items()


def test_images_of_patients_are_called_after_their_folders_and_files(nifti, tmp_path):
    for path in ("p1/ct.nii.gz", "p2/ct.nii.gz", "top.nii", "p3/deep/mr.nii.gz"):
        nifti(tmp_path / path, np.zeros((4, 4, 4), np.int16))
    assert [item["case"] for item in named_images([tmp_path])[0]] == ["top", "p1_ct", "p2_ct", "p3_deep_mr"]
    assert [item["case"] for item in images_to_segment(str(tmp_path), "lits")] == [
        "top",
        "p1_ct",
        "p2_ct",
        "p3_deep_mr",
    ]
    assert [item["case"] for item in named_images([tmp_path / "p1", tmp_path / "p2"])[0]] == ["p1_ct", "p2_ct"]


def test_own_results_label_maps_and_hidden_files_below_a_folder_are_no_images(nifti, tmp_path, caplog):
    voxels = np.zeros((4, 4, 4), np.uint8)
    image = nifti(tmp_path / "p1" / "ct_seg.nii.gz", voxels)  # an image may be called so
    (tmp_path / "results").mkdir()
    write_label_map(tmp_path / "results" / "p1_ct_seg.nii.gz", voxels, np.eye(4), {1: "liver"})
    for path in (
        "labelsTr/a.nii.gz",
        "p1/segmentations/lung.nii.gz",
        "p1/segmentation-0.nii",
        ".p/ct.nii",
        "p1/._a.nii",
    ):
        nifti(tmp_path / path, voxels)
    (tmp_path / "folder.nii").mkdir()
    inner = nifti(tmp_path / "folder.nii" / "inner.nii", voxels)
    assert [item["image"] for item in list_images(tmp_path)] == [str(inner), str(image)]
    assert "label maps" in caplog.text and "3, " in caplog.text


def test_a_folder_of_files_of_frames_holds_as_many_images_and_a_segmentation_is_none(tmp_path):
    voxels = np.zeros((4, 5, 6), np.int16)
    for number in (1, 2):
        tags = {"SeriesInstanceUID": f"1.2.{number}"}
        write_frames(tmp_path / "mr" / f"{number}.dcm", voxels, range(6), tags=tags)
    write_frames(tmp_path / "out" / "1_seg.dcm", voxels, range(6), tags={"Modality": "SEG"})
    assert [item["case"] for item in named_images([tmp_path])[0]] == ["mr_1", "mr_2"]
    write_frames(tmp_path / "mr" / "3.dcm", voxels, range(6), tags={"SeriesInstanceUID": "1.2.2"})
    assert [item["case"] for item in named_images([tmp_path])[0]] == ["mr"]  # parts of one series: its reader decides


# Scans without a target


def test_scans_without_a_target_have_empty_labels_and_the_keys_of_prepared_items(liver_folder, nifti, tmp_path):
    head = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    paths = [nifti(tmp_path / "in" / f"{name}.nii.gz", head, np.diag([1.0, -2, 3, 1])) for name in ("head", "pelvis")]
    assert scans_without_target(None, "liver") == []
    items = scans_without_target(str(tmp_path / "in"), "Task03_Liver")
    assert [(item["image"], item["sha256"]) for item in items] == [(str(path), sha256(path)) for path in paths]
    both = [*PreparedData("lits", str(liver_folder()), str(tmp_path / "run")).training, *items]
    assert len({tuple(sorted(item)) for item in both}) == 1
    list_data_collate([{**item, "image": torch.zeros(1), "label": torch.zeros(1)} for item in both])
    loaded = LoadVolumed(require_foreground=True)(items[0])
    assert torch.equal(loaded["label"].as_tensor(), torch.zeros(1, *head.shape))
    torch.testing.assert_close(loaded["label"].affine, loaded["image"].affine)


def test_negatives_that_are_no_image_files_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"negatives '{tmp_path}' holds no image"):
        scans_without_target(str(tmp_path), "liver")
    write_series(tmp_path / "scan", np.zeros((4, 4, 3), np.int16))
    with pytest.raises(InputError, match=f"'{tmp_path / 'scan'}' is a DICOM series; convert it"):
        scans_without_target(str(tmp_path), "liver")

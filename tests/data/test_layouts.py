"""One set of cases gives the same data in every layout; what does not fit is one sentence that names the file."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tiny_domains import change_dataset, write_domain

from med3d_ext.data.datalists import named_images
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.data.splits import SPLITS
from med3d_ext.errors import InputError
from med3d_ext.io.files import stem
from med3d_ext.tools.label_files import pair_cases
from med3d_ext.tools.layouts.prepare import PREPARE
from med3d_ext.tools.layouts.table import one_channel, read_source
from med3d_ext.transforms import LoadVolumed

LABELS = {"background": 0, "liver": 1, "cancer": 2}


def copy(cases: list[dict], images: Path, labels: Path, image: str = "{}", label: str = "{}", suffix: str = ".nii.gz"):
    """The files of cases under other names."""
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases):
        name = stem(case["image"])
        shutil.copy(case["image"], images / f"{image.format(name, n=number)}{suffix}")
        shutil.copy(case["label"], labels / f"{label.format(name, n=number)}{suffix}")


def nnunet(root: Path, cases: list[dict], labels: dict | None = None, **more: object) -> Path:
    copy(cases, root / "imagesTr", root / "labelsTr", "{}_0000")
    content = {"channel_names": {"0": "CT"}, "labels": labels or LABELS, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**content, "numTraining": len(cases), **more}))
    return root


def decathlon_of(root: Path, cases: list[dict]) -> Path:
    return Path(cases[0]["image"]).parents[1]


def pairs(*names: str, **patterns: str) -> Callable[[Path, list[dict]], Path]:
    def write(root: Path, cases: list[dict]) -> Path:
        copy(cases, root / names[0], root / names[1], **patterns)
        return root

    return write


def lits(root: Path, cases: list[dict]) -> Path:
    copy(cases, root / "a", root / "b", "volume-{n}", "segmentation-{n}")
    return root


def first_version(root: Path, cases: list[dict]) -> Path:
    """nnU-Net's first version: the Decathlon's list, and files with channels in their names."""
    shutil.copytree(decathlon_of(root, cases), root)
    for path in (root / "imagesTr").iterdir():
        path.rename(path.with_name(f"{stem(path)}_0000.nii.gz"))
    return root


WRITERS = {
    "Decathlon": decathlon_of,
    "nnU-Net": nnunet,
    "nnU-Net, first version": first_version,
    "LiTS": lits,
    "images and labels": pairs("images", "labels"),
    "imagesTr and labelsTr": pairs("imagesTr", "labelsTr"),
    "label names": pairs("images", "labels", label="{}_seg"),
    "both names": pairs("images", "labels", image="{}_image", label="{}.label"),
    "channel names": pairs("imagesTr", "labelsTr", image="{}_0000"),
}


@pytest.fixture
def cases(liver_folder) -> list[dict]:
    return read_source(liver_folder(cases=12)).cases


@pytest.mark.parametrize("kind", ["lits", "3dseg8"])
@pytest.mark.parametrize("layout", WRITERS)
def test_one_set_of_cases_is_the_same_data_in_every_layout(kind, layout, cases, tmp_path):
    def facts(write: Callable, name: str) -> tuple:
        root = write(tmp_path / name / "Task03_Liver", cases)
        data = PreparedData(kind, str(root), str(tmp_path / name / "run"))
        keys = ("spacing_median", "label_map", "intensity_observed", "spatial_size", "hu_window", "intensity_range")
        domain = {key: data.domain.get(key) for key in (*keys, "channel")}
        hashes = {split: sorted((i["sha256"], i["label_sha256"]) for i in data.items(split)) for split in SPLITS}
        return domain, hashes, list(data.domain["classes"])

    assert facts(WRITERS[layout], "one") == facts(decathlon_of, "other")


def test_nnunets_classes_are_names_of_numbers_and_gaps_stay(cases, tmp_path):
    labels = {"cancer": 2, "background": 0, "liver": 1, "spleen": 7}
    source = read_source(nnunet(tmp_path / "Dataset500_Mine", cases, labels, name="Mine"))
    assert source.classes == {0: "background", 1: "liver", 2: "cancer", 7: "spleen"}
    assert (source.modality, source.title, len(source.cases)) == ({0: "CT"}, "Mine", 12)
    PREPARE["3dseg8"](tmp_path / "Dataset500_Mine", tmp_path / "out")
    domain = json.loads((tmp_path / "out" / "facts.json").read_text())["domains"]["Dataset500_Mine"]
    assert domain["label_map"] == {"0": 0, "1": 1, "2": 2, "7": 3}
    assert domain["intensity_range"] == [-125.0, 275.0]


def test_nnunets_own_table_of_files_is_read(cases, tmp_path):
    entries = {f"c{number}": {"images": [case["image"]], "label": case["label"]} for number, case in enumerate(cases)}
    (tmp_path / "x").mkdir()
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", "dataset": entries}
    (tmp_path / "x" / "dataset.json").write_text(json.dumps(content))
    assert read_source(tmp_path / "x").cases == [{key: case[key] for key in ("image", "label")} for case in cases]


# A given split


@pytest.mark.parametrize("write", [nnunet, pairs("imagesTr", "labelsTr")])
def test_test_labels_next_to_test_images_are_the_test_cases(write, cases, tmp_path):
    root = write(tmp_path / "x", cases[:9])
    copy(cases[9:], root / "imagesTs", root / "labelsTs", "{}_0000")
    data = PreparedData("lits", str(root), str(tmp_path / "run"))
    assert sorted(Path(item["image"]).parent.name for item in data.test) == ["imagesTs"] * 3
    assert {Path(item["image"]).parent.name for item in data.training + data.validation} == {"imagesTr"}
    shutil.rmtree(root / "labelsTs")  # images to segment are no split
    assert len(read_source(root).cases) == 9 and "given" not in read_source(root).cases[0]


def test_the_split_of_each_entry_wins_whatever_its_word(cases, liver_folder, tmp_path):
    root = liver_folder(cases=12)
    words = ["train"] * 6 + ["training", "val", "valid", "validation", "test", "Test"]
    entries = json.loads((root / "dataset.json").read_text())["training"]
    change_dataset(root, training=[{**entry, "split": word} for entry, word in zip(entries, words)])
    data = PreparedData("lits", str(root), str(tmp_path / "run"))
    assert [len(data.items(split)) for split in SPLITS] == [7, 3, 2]
    assert {Path(item["image"]).name for item in data.test} == {"liver_10.nii.gz", "liver_11.nii.gz"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entries: {"training": [{**entries[0], "split": "left out"}]}, ["entry 0", "'left out'", "must be one"]),
        (lambda entries: {"training": [{**entries[0], "split": "test"}, entries[1]]}, ["entry 1", "no split"]),
        (
            lambda entries: {
                "training": [{**entries[0], "split": "train"}],
                "test": [{**entries[1], "split": "validation"}],
            },
            ["entry 0 under 'test'", "list it under 'validation'"],
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_its_entry(change, words, liver_folder):
    root = liver_folder(cases=2)
    change_dataset(root, **change(json.loads((root / "dataset.json").read_text())["training"]))
    with pytest.raises(InputError) as error:
        read_source(root)
    assert all(word in str(error.value) for word in [*words, "dataset.json"]) and "\n" not in str(error.value)


# What does not fit


def gone(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def renamed(name: str, other: str) -> Callable[[Path], None]:
    return lambda root: shutil.move(root / name, root / other)


def stated(**changes: object) -> Callable[[Path], None]:
    return lambda root: change_dataset(root, **changes)


NNUNET_FAULTS = {
    "a missing label": (gone("labelsTr/liver_1.nii.gz"), ["imagesTr/liver_1_0000.nii.gz", "labelsTr/liver_1.nii.gz"]),
    "a missing image": (gone("imagesTr/liver_1_0000.nii.gz"), ["labelsTr/liver_1.nii.gz", "liver_1_0000.nii.gz"]),
    "no channel in a name": (
        renamed("imagesTr/liver_1_0000.nii.gz", "imagesTr/liver_1.nii.gz"),
        ["imagesTr/liver_1.nii.gz", "CASE_0000.nii.gz"],
    ),
    "a channel too many": (
        lambda root: shutil.copy(root / "imagesTr/liver_1_0000.nii.gz", root / "imagesTr/liver_1_0001.nii.gz"),
        ["imagesTr/liver_1_0001.nii.gz", "channel_names"],
    ),
    "another ending": (
        renamed("imagesTr/liver_1_0000.nii.gz", "imagesTr/liver_1_0000.nrrd"),
        ["imagesTr/liver_1_0000.nrrd", "file_ending"],
    ),
    "an ending that no file has": (stated(file_ending=".nrrd"), ["dataset.json", "'.nrrd'", "no file of"]),
    "an ending that is not read": (stated(file_ending=".tif"), ["dataset.json", "'.tif'"]),
    "a wrong number of cases": (stated(numTraining=7), ["dataset.json", "numTraining 7", "3 cases"]),
    "regions": (stated(labels={**LABELS, "whole": [1, 2]}), ["dataset.json", "'whole'", "[1, 2]", "merge"]),
    "an ignored label": (stated(labels={**LABELS, "ignore": 3}), ["dataset.json", "'ignore'"]),
    "two names of a number": (stated(labels={**LABELS, "tumor": 2}), ["dataset.json", "'cancer' and 'tumor'"]),
    "a label without number": (stated(labels={**LABELS, "tumor": "x"}), ["dataset.json", "'tumor'", "'x'"]),
    "no labels": (stated(labels={}), ["dataset.json", "'labels'"]),
    "channels without numbers": (stated(channel_names=["CT"]), ["dataset.json", "channel_names"]),
    "a value that is no class": (stated(labels={"background": 0, "liver": 1}), ["labelsTr/liver_", "value 2"]),
}


def emptied(root: Path) -> None:
    for path in (root / "labels").iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)


PAIR_FAULTS = {
    "a label less": (gone("labels/liver_1_seg.nii.gz"), ["images/liver_1.nii.gz"]),
    "an image less": (gone("images/liver_1.nii.gz"), ["labels/liver_1_seg.nii.gz"]),
    "two labels": (
        lambda root: shutil.copy(root / "labels/liver_1_seg.nii.gz", root / "labels/liver_1.nii.gz"),
        ["labels/liver_1.nii.gz", "labels/liver_1_seg.nii.gz"],
    ),
    "a channel that others lack": (
        lambda root: [
            shutil.copy(root / "images/liver_1.nii.gz", root / f"images/liver_1_000{number}.nii.gz")
            for number in range(2)
        ],
        ["labels/liver_", "images"],
    ),
    "a damaged label": (
        lambda root: (root / "labels/liver_1_seg.nii.gz").write_bytes(b"\0" * 500),
        ["labels/liver_1_seg.nii.gz"],
    ),
    "no images": (lambda root: [path.unlink() for path in (root / "images").iterdir()], ["/images' holds no image"]),
    "labels of background": (
        emptied,
        ["labels' hold nothing but 0"],
    ),
}
SEVERAL = ("a value that is no class", "no channel in a name", "another ending", "a channel that others lack")


@pytest.mark.parametrize("fault", [*NNUNET_FAULTS, *PAIR_FAULTS])
def test_a_fault_of_a_folder_is_sentences_that_name_the_file(fault, cases, tmp_path):
    write = nnunet if fault in NNUNET_FAULTS else pairs("images", "labels", label="{}_seg")
    root = write(tmp_path / "Dataset003_Liver", cases[:3])
    change, words = (NNUNET_FAULTS | PAIR_FAULTS)[fault]
    change(root)
    with pytest.raises(InputError) as error:
        PREPARE["lits"](root, tmp_path / "out")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value).splitlines()) == 1 or fault in SEVERAL
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("low", "expected"), [(-1000, "CT"), (0, "MR")])
def test_a_modality_that_nothing_names_is_known_by_its_intensities_with_a_warning(low, expected, tmp_path, caplog):
    root = write_domain(tmp_path / "x")
    (root / "dataset.json").unlink()
    for path in (root / "imagesTr").iterdir():
        image = nibabel.load(path)
        voxels = np.asarray(image.dataobj).clip(0)
        voxels[0] = low
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    with caplog.at_level(logging.WARNING):
        PREPARE["3dseg8"](root, tmp_path / "out")
    domain = json.loads((tmp_path / "out" / "facts.json").read_text())["domains"]["x"]
    assert domain["modality"] == expected and f"{expected} by the intensities" in caplog.text
    other = {"CT": "MR", "MR": "CT"}[expected]
    (root / "domains.json").write_text(json.dumps({"x": {"folder": ".", "modality": other}}))
    PREPARE["3dseg8"](root, tmp_path / "out")
    domain = json.loads((tmp_path / "out" / "facts.json").read_text())["domains"]["x"]
    assert domain["modality"] == other
    assert domain["intensity_range"] == ([-125.0, 275.0] if other == "CT" else None)


# Channels


def channels_in_files(root: Path, folder: Path) -> Path:
    """The channels of a Decathlon folder as nnU-Net's files."""
    content = json.loads((folder / "dataset.json").read_text())
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for entry in content["training"]:
        name, image = stem(entry["image"]), nibabel.load(folder / entry["image"])
        for number in content["modality"]:
            voxels = np.asarray(image.dataobj)[..., int(number)]
            path = root / "imagesTr" / f"{name}_{int(number):04d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
        shutil.copy(folder / entry["label"], root / "labelsTr" / f"{name}.nii.gz")
    labels = {name: int(value) for value, name in content["labels"].items()}
    content = {"channel_names": content["modality"], "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(params=["one file", "a file each"])
def two_channels(request, tmp_path) -> Path:
    folder = write_domain(tmp_path / "kidneys", channels=("T1", "T2"))
    return folder if request.param == "one file" else channels_in_files(tmp_path / "Dataset100_Kidneys", folder)


@pytest.mark.parametrize("kind", ["lits", "3dseg8"])
@pytest.mark.parametrize(("channel", "mean"), [("T1", 100), ("t2", 1100), (1, 1100), ("0", 100)])
def test_a_channel_is_chosen_by_name_or_number(two_channels, kind, channel, mean, tmp_path):
    data = PreparedData(kind, str(two_channels), str(tmp_path / "run"), options={"channel": channel})
    assert next(iter(data.cases.values()))[0]["intensity"]["mean"] == pytest.approx(mean, abs=10)
    assert float(LoadVolumed()(data.training[0])["image"].mean()) == pytest.approx(mean, abs=10)


def test_without_a_choice_the_choices_are_named(two_channels, tmp_path):
    for kind in ("lits", "3dseg8"):
        for options in ({}, {"channel": "FLAIR"}, {"channel": 2}):
            with pytest.raises(InputError) as error:
                PREPARE[kind](two_channels, tmp_path / "out", **options)
            message = str(error.value)
            assert "0: T1, 1: T2" in message and "--channel" in message and "\n" not in message
            assert str(two_channels) in message


def test_a_channel_of_several_domains_is_refused(tmp_path):
    for name in ("a", "b"):
        write_domain(tmp_path / "src" / name, channels=("T1", "T2"), seed=len(name))
    with pytest.raises(InputError, match="channel 'T1' is for one domain, and .* has a, b; name the channel of each"):
        PREPARE["3dseg8"](tmp_path / "src", tmp_path / "out", channel="T1")


@pytest.mark.parametrize(
    ("chosen", "usual", "names"),
    [
        ("FLAIR", None, ("a", "b")),
        (None, None, ("a", "b")),
        (2, None, ("a", "b")),
        (None, 1, ("a",)),
        ("T2", None, "a"),
    ],
)
def test_a_channel_that_is_not_there_is_refused_with_the_file(chosen, usual, names, tmp_path):
    root = write_domain(tmp_path / "x", channels=tuple(names))
    with pytest.raises(InputError, match=r"case_0.nii.gz' has (one channel|2 channels) \(0: a"):
        one_channel(read_source(root), chosen, usual)


def test_a_channel_that_one_case_lacks_is_refused_by_its_file(tmp_path):
    root = channels_in_files(tmp_path / "a", write_domain(tmp_path / "b", channels=("T1", "T2")))
    (root / "imagesTr" / "case_1_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="imagesTr/case_1_0001.nii.gz' does not exist, a channel of 'case_1'"):
        read_source(root)
    (root / "dataset.json").unlink()
    with pytest.raises(InputError, match="labelsTr/case_1.nii.gz' is the label of 1 images"):
        read_source(root)


def test_inference_on_a_file_for_each_channel_wants_the_channels_files(tmp_path):
    root = channels_in_files(tmp_path / "a", write_domain(tmp_path / "b", channels=("T1", "T2")))
    for folder in (root, root / "imagesTr"):
        with pytest.raises(InputError, match="a file for each channel .0000: T1, 0001: T2."):
            named_images([folder])
    files = sorted((root / "imagesTr").glob("*_0001.nii.gz"))
    assert [item["image"] for item in named_images(files)[0]] == list(map(str, files))


def test_predictions_of_nnunets_images_belong_to_its_labels(cases, tmp_path):
    root = nnunet(tmp_path / "x", cases[:3])
    copy(cases[:3], tmp_path / "images", tmp_path / "out", label="{}_0000_seg")
    assert sorted(pair_cases(tmp_path / "out", root).files) == ["liver_0", "liver_1", "liver_2"]
    shutil.copy(root / "labelsTr" / "liver_0.nii.gz", tmp_path / "out" / "liver_0_0001_seg.nii.gz")
    with pytest.raises(InputError, match="two label maps of case liver_0"):
        pair_cases(tmp_path / "out", root)

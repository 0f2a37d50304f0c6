"""``prepare`` and the run that prepares itself: right lists, one sentence for bad input, nothing half-written."""

from __future__ import annotations

import logging
import os

import nibabel
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import Compose, ScaleIntensityRanged
from prepared_folders import domain_of

from med3d_ext.data.prepared_data import PreparedData, images_to_segment
from med3d_ext.errors import FaultyCases, InputError
from med3d_ext.io.files import read_json
from med3d_ext.tools import cli
from med3d_ext.tools.layouts.prepare import prepare_3dseg8, prepare_lits
from med3d_ext.tools.phantoms.dataset import phantom_dataset
from med3d_ext.transforms import LoadVolumed, ResampleToGridd

NAN = float("nan")


def files_in(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_prepare_writes_a_decathlon_datalist_and_its_facts(liver_folder, tmp_path):
    source = liver_folder(cases=12)
    before = files_in(source)
    prepare_lits(source, tmp_path / "out")
    assert files_in(source) == before  # nothing goes into the data
    sizes = {}
    for split in ("training", "validation", "test"):
        items = load_decathlon_datalist(str(tmp_path / "out" / "datalist.json"), True, split)
        assert all(os.path.isfile(item["image"]) and os.path.isfile(item["label"]) for item in items)
        sizes[split] = len(items)
    assert sizes == {"training": 10, "validation": 1, "test": 1}
    domain = domain_of(tmp_path / "out")
    assert domain["classes"] == {"0": "background", "1": "liver", "2": "cancer"}
    seen = [case["spacing"] for case in domain["cases"] if case["split"] != "test"]
    np.testing.assert_allclose(domain["spacing_mean"], np.mean(seen, axis=0), atol=1e-6)
    np.testing.assert_allclose(domain["spacing_median"], np.median(seen, axis=0), atol=1e-6)
    assert len(seen) == 11


def test_a_datalist_inside_the_data_moves_with_it(liver_folder, tmp_path):
    source = liver_folder(cases=3)
    prepare_lits(source, source)
    moved = source.rename(tmp_path / "moved")
    data = PreparedData("lits", str(moved), str(tmp_path / "run"))
    assert all(item["image"].startswith(str(moved)) and os.path.isfile(item["image"]) for item in data.training)
    assert not (tmp_path / "run").exists()


def rewrite(path, change, **options) -> None:
    """Write a volume again with its voxels changed, on its own affine unless ``options`` say more."""
    image = nibabel.load(path)
    voxels = change(np.asarray(image.dataobj))
    nifti = options.pop("nifti")
    nifti(path, voxels, **(options or {"affine": image.affine}))


def truncate(path, **_) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_nan(voxels):
    voxels = voxels.astype(np.float32)
    voxels[3, 3, 3] = NAN
    return voxels


FAULTS = {
    "truncated image": ("image", truncate, "cannot be read"),
    "truncated label": ("label", truncate, "cannot be read"),
    "empty image": ("image", lambda path, **_: path.write_bytes(b""), "cannot be read"),
    "no label": ("label", lambda path, **_: path.unlink(), "does not exist"),
    "no image": ("image", lambda path, **_: path.unlink(), "does not exist"),
    "label of another shape": ("label", lambda path, **o: rewrite(path, lambda v: v[:-1], **o), "19x18x16"),
    "2D image": ("image", lambda path, **o: rewrite(path, lambda v: v[..., 0], **o), "not a 3D volume"),
    "4D image": ("image", lambda path, **o: rewrite(path, lambda v: np.stack([v, v], -1), **o), "4D"),
    "4D label": ("label", lambda path, **o: rewrite(path, lambda v: np.stack([v, v], -1), **o), "not a 3D volume"),
    "NaN voxel": ("image", lambda path, **o: rewrite(path, with_nan, **o), "NaN"),
    "label without liver": ("label", lambda path, **o: rewrite(path, lambda v: v * 0, **o), "no foreground"),
    "unknown label": ("label", lambda path, **o: rewrite(path, lambda v: v + 1, **o), "the value 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_sentence_that_names_the_file_and_nothing_is_written(fault, liver_folder, nifti, tmp_path):
    key, damage, word = FAULTS[fault]
    source = liver_folder()
    path = source / f"{key}sTr" / "liver_1.nii.gz"
    damage(path, nifti=nifti)
    with pytest.raises(InputError) as error:
        prepare_lits(source, tmp_path / "out")
    message = str(error.value)
    assert str(path) in message and word in message, message
    assert "\n" not in message and message.endswith(".") and len(message) < 400
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError):
        PreparedData("lits", str(source), str(tmp_path / "run"))
    assert not {"datalist.json", "facts.json"} & {os.path.basename(name) for name in files_in(tmp_path / "run")}


@pytest.mark.parametrize("spacing", [(0, 1.5, 2), (0, 0, 0), (NAN, 1, 1)])
def test_a_volume_without_spacing_takes_the_mean_of_the_others_and_is_named(
    spacing, liver_folder, nifti, tmp_path, caplog
):
    source = liver_folder(cases=3)
    path = source / "imagesTr" / "liver_1.nii.gz"
    rewrite(path, lambda voxels: voxels, nifti=nifti, pixdim=spacing)
    with caplog.at_level(logging.WARNING):
        prepare_lits(source, tmp_path / "out")
    assert [record for record in caplog.records if str(path) in record.message and "spacing" in record.message]
    domain = domain_of(tmp_path / "out")
    (case,) = [case for case in domain["cases"] if case["image"] == str(path)]
    np.testing.assert_allclose(case["spacing"], [1.1, 1.5, 3.0], atol=1e-6)  # of (1, 1.5, 2) and (1.2, 1.5, 4)


def test_small_data_sets_choose_by_their_training_cases_and_a_missing_test_is_said(liver_folder, tmp_path):
    data = PreparedData("lits", str(liver_folder(cases=1)), str(tmp_path / "run"))
    assert len(data.training) == 1 and data.validation == data.training
    with pytest.raises(InputError, match="datalist.json.*no test cases"):
        _ = data.test


def test_without_a_folder_phantoms_are_announced(liver_folder, tmp_path, monkeypatch, caplog):
    source = liver_folder()
    monkeypatch.setattr("med3d_ext.tools.phantoms.dataset.phantom_dataset", lambda kind: source)
    with caplog.at_level(logging.WARNING):
        assert PreparedData("lits", None, str(tmp_path / "run")).training
        assert len(images_to_segment(None, "lits")) == 3
    assert sum("phantoms" in record.message for record in caplog.records) == 2
    assert images_to_segment(str(source / "imagesTr"), "lits") == images_to_segment(None, "lits")


# The intensity window


def test_of_phantoms_of_several_domains_the_first_is_segmented(tmp_path, monkeypatch):
    folder = phantom_dataset("3dseg8", tmp_path / "phantoms", 1)
    monkeypatch.setattr("med3d_ext.tools.phantoms.dataset.phantom_dataset", lambda kind: folder)
    (item,) = images_to_segment(None, "3dseg8")
    assert item["image"].startswith(str(folder / "Task01_BrainTumour" / "imagesTr"))


def test_the_window_is_the_papers_narrowed_to_what_the_images_hold(liver_folder, nifti, tmp_path):
    full = domain_of(prepare_lits(liver_folder("full"), tmp_path / "a"))
    assert full["hu_window"] == [-200, 250]
    source = liver_folder("clipped")
    for path in (source / "imagesTr").iterdir():
        rewrite(path, lambda voxels: voxels.clip(-125, 225), nifti=nifti)
    cut = domain_of(prepare_lits(source, tmp_path / "b"))
    assert cut["hu_window"] == [-125, 225]
    options = {"hu_window": [-100, 100]}
    assert PreparedData("lits", str(source), str(tmp_path / "c"), options=options).domain["hu_window"] == [-100, 100]


def test_a_full_range_ct_and_its_clipped_8_bit_copy_give_the_same_inputs(liver_folder, nifti, tmp_path):
    full, copy = liver_folder("full"), liver_folder("copy")
    slope = 400 / 255
    for path in (copy / "imagesTr").iterdir():
        image = nibabel.load(path)
        stored = ((np.asarray(image.dataobj).clip(-125, 275) + 125) / slope).round().astype(np.uint8)
        nifti(path, stored, image.affine, scaling=(slope, -125))
    domain = domain_of(prepare_lits(copy, tmp_path / "out"))
    assert domain["hu_window"] == pytest.approx([-125, 250], abs=1e-3)
    low, high = domain["hu_window"]
    load = Compose(
        [
            LoadVolumed("image"),
            ScaleIntensityRanged("image", low, high, b_min=-1.0, b_max=1.0, clip=True),
            ResampleToGridd("image", (16, 16, 16)),
        ]
    )
    ours, theirs = (load({"image": str(folder / "imagesTr" / "liver_1.nii.gz")})["image"] for folder in (full, copy))
    assert float((ours - theirs).abs().max()) <= 0.01
    assert float(ours.std()) > 0.1


def elsewhere(path, **_) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[1, 3] += 40
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)


PREPARE_SKIPPING = {"lits": prepare_lits, "3dseg8": prepare_3dseg8}


@pytest.mark.parametrize("kind", PREPARE_SKIPPING)
def test_every_faulty_case_is_named_and_left_out_where_that_is_asked(kind, liver_folder, nifti, tmp_path, caplog):
    """One fault of each pass: a missing file, a header, a damaged stream, another place, fractions, a value."""
    source = liver_folder(cases=10)
    damaged = {}
    for number, (key, damage) in enumerate(
        [
            ("image", lambda path, **_: path.unlink()),
            ("image", lambda path, **o: rewrite(path, lambda v: v[..., 0], **o)),
            ("image", truncate),
            ("label", elsewhere),
            ("label", lambda path, **o: rewrite(path, lambda v: v * np.float32(0.4), **o)),
            ("label", lambda path, **o: rewrite(path, lambda v: v + 1, **o)),
        ]
    ):
        damaged[number] = source / f"{key}sTr" / f"liver_{number}.nii.gz"
        damage(damaged[number], nifti=nifti)
    words = ["prepare", kind, str(source), "--output", str(tmp_path / "out")]
    with pytest.raises(FaultyCases) as error:
        PREPARE_SKIPPING[kind](source, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert len(lines) == 7 and lines[-1].startswith("6 of 10 cases are faulty")
    assert all(any(str(path) in line for line in lines) for path in damaged.values())
    assert cli.main(words) == 1 and not (tmp_path / "out").exists()

    caplog.clear()
    caplog.set_level(logging.INFO)
    assert cli.main([*words, "--skip_bad"]) == 0
    assert all(f"left out: {line}" in caplog.messages for line in lines[:-1])
    assert "6 faulty left out" in caplog.text
    lists = read_json(tmp_path / "out" / "datalist.json")
    kept = [item["image"] for split in ("training", "validation", "test") for item in lists[split]]
    assert sorted(map(os.path.basename, kept)) == [f"liver_{number}.nii.gz" for number in range(6, 10)]
    facts = domain_of(tmp_path / "out")
    assert [os.path.basename(case["image"]) for case in facts["cases"]] == [f"liver_{n}.nii.gz" for n in range(6, 10)]


def test_labels_in_any_order_of_voxels_give_the_same_facts(liver_folder, tmp_path):
    source = liver_folder(cases=3)
    prepare_lits(source, tmp_path / "plain")
    for number, order in enumerate(([[0, -1], [1, -1], [2, 1]], [[2, 1], [0, 1], [1, -1]], [[1, 1], [0, 1], [2, 1]])):
        path = source / "labelsTr" / f"liver_{number}.nii.gz"
        image = nibabel.load(path)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine).as_reoriented(np.array(order))
        nibabel.save(image, path)
    prepare_lits(source, tmp_path / "turned")
    plain, turned = (domain_of(tmp_path / name)["cases"] for name in ("plain", "turned"))
    for one, other in zip(plain, turned):
        assert {key: one[key] for key in ("labels", "target_box")} == {
            key: other[key] for key in ("labels", "target_box")
        }

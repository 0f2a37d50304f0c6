"""The verb `predict`: what it takes, what it leaves, and that one bad image costs the others nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from perfect import LITS, PerfectNetwork, with_network

from med3d_ext.handlers.overlay import draw_overlay
from med3d_ext.io.label_maps import read_label_names
from med3d_ext.tools import cli
from med3d_ext.tools.predict import results
from med3d_ext.tools.predict import verb as predict_verb
from med3d_ext.tools.predict.predictor import BundlePredictor
from med3d_ext.transforms.load import load_volume

pytestmark = pytest.mark.filterwarnings("ignore")

AFFINE = np.array([[0, -1.5, 0, 5.0], [1.0, 0, 0, -6], [0, 0, 2, 7], [0, 0, 0, 1]])


def scan(*shape: int) -> np.ndarray:
    """A dark volume with a bright block."""
    voxels = np.full(shape or (20, 18, 16), -200, np.int16)
    voxels[tuple(slice(size // 4, size // 2) for size in voxels.shape)] = 250
    return voxels


@pytest.fixture
def images(tmp_path, nifti) -> Path:
    """A folder with one good image."""
    nifti(tmp_path / "images" / "good.nii.gz", scan(), AFFINE)
    return tmp_path / "images"


def summary(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "summary.json").read_text())


def files_of(case: str) -> list[str]:
    return [f"{case}_preview.png", f"{case}_seg.json", f"{case}_seg.nii.gz"]


def test_every_format_gives_a_named_map_a_picture_and_volumes(
    predict, images, tmp_path, nifti, left_behind, monkeypatch, capsys
):
    monkeypatch.setattr(results, "draw_overlay", draw_overlay)
    itk = pytest.importorskip("itk")
    dicom_files = pytest.importorskip("dicom_files")
    nifti(images / "other.nii", scan(12, 20, 10), np.diag([-1.0, -1, 3, 1]))
    image = itk.image_from_array(np.ascontiguousarray(scan(16, 14, 12).T))
    image.SetSpacing([1.0, 2.0, 3.0])
    for name in ("c.mha", "d.mhd", "e.nrrd"):
        itk.imwrite(image, str(images / name))
    dicom_files.write_series(tmp_path / "dicom" / "series", scan(15, 13, 11), (1.0, 1.0, 2.5))
    assert predict(images, tmp_path / "dicom") == 0
    cases = {"good": images / "good.nii.gz", "other": images / "other.nii", "c": images / "c.mha"}
    cases |= {"d": images / "d.mhd", "e": images / "e.nrrd", "series": tmp_path / "dicom" / "series"}
    assert left_behind() == sorted(["summary.json", *(file for case in cases for file in files_of(case))])
    for case, path in cases.items():
        source = load_volume(path)
        found = nibabel.load(tmp_path / "out" / f"{case}_seg.nii.gz")
        label = source[0].numpy() > 0
        np.testing.assert_array_equal(np.asarray(found.dataobj), label)
        np.testing.assert_allclose(found.affine, source.affine.numpy(), atol=1e-6)
        assert read_label_names(tmp_path / "out" / f"{case}_seg.nii.gz") == {1: "liver"}
        facts = json.loads((tmp_path / "out" / f"{case}_seg.json").read_text())
        milliliters = label.sum() * abs(np.linalg.det(source.affine.numpy()[:3, :3])) / 1000
        assert facts["labels"] == {
            "1": {"name": "liver", "voxels": int(label.sum()), "volume_ml": pytest.approx(milliliters, abs=1e-3)}
        }
        assert (facts["image"], facts["bundle"], facts["shape"]) == (str(path), "lits_coarse", list(label.shape))
        assert len(facts["weights_sha256"]) == 64 and facts["seconds"] > 0 and facts["warnings"] == []
        assert (tmp_path / "out" / f"{case}_preview.png").read_bytes().startswith(b"\x89PNG")
    report = summary(tmp_path)
    assert [each["case"] for each in report["done"]] == ["c", "d", "e", "good", "other", "series"]
    assert (report["skipped"], report["failed"], report["complete"]) == ([], [], True)
    assert "6 done, 0 skipped, 0 failed" in capsys.readouterr().out


def bad_images(folder: Path, nifti) -> dict[str, tuple[str, ...]]:
    """Images that cannot be segmented by case, each with words of the sentence that must say why."""
    whole = nifti(folder / "torn.nii.gz", scan()).read_bytes()
    (folder / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nrrd").write_text("hello")
    nifti(folder / "slice.nii.gz", scan(20, 18, 1)[..., 0])
    nifti(folder / "time.nii.gz", np.stack([scan()] * 3, axis=-1))
    os.symlink(folder / "gone.nii.gz", folder / "link.nii.gz")
    write_series = pytest.importorskip("dicom_files").write_series
    write_series(folder / "two", scan(), uid="1.1", names="a{}.dcm")
    write_series(folder / "two", scan(), uid="1.2", names="b{}.dcm")
    write_series(folder / "gap", scan(), uid="1.3", skip=[7])
    write_series(folder / "one", scan(), uid="1.4", skip=range(1, 16))
    return {
        "torn": ("torn.nii.gz", "cannot be read"),
        "text": ("text.nrrd", "cannot be read"),
        "slice": ("slice.nii.gz", "not a 3D volume", "20x18"),
        "time": ("time.nii.gz", "not a 3D volume", "20x18x16x3"),
        "link": ("link.nii.gz", "does not exist"),
        "two": ("holds 2 DICOM series",),
        "gap": ("misses 1 slice",),
        "one": ("single slice",),
    }


def test_bad_images_are_named_with_a_sentence_and_the_others_are_done(
    predict, images, tmp_path, nifti, left_behind, capsys
):
    bad = bad_images(images, nifti)
    assert predict(images, tmp_path / "nowhere") == 1
    assert left_behind() == sorted([*files_of("good"), "summary.json"])
    failed = {each["case"]: each["reason"] for each in summary(tmp_path)["failed"]}
    assert "does not exist" in failed.pop(str(tmp_path / "nowhere"))
    assert failed.keys() == bad.keys()
    for case, words in bad.items():
        assert all(word in failed[case] for word in words), failed[case]
        assert failed[case].endswith(".") and "\n" not in failed[case]
    printed = capsys.readouterr()
    assert "1 done, 0 skipped, 9 failed" in printed.out and "Traceback" not in printed.out + printed.err


def test_an_empty_result_and_a_header_without_spacing_are_warnings_of_their_case(predict, tmp_path, nifti, capsys):
    head = nifti(tmp_path / "head.nii.gz", np.full((20, 18, 16), 40, np.int16), AFFINE)
    bare = nifti(tmp_path / "bare.nii.gz", scan(), pixdim=(0.0, 1.0, 1.0))
    assert predict(head, bare) == 0
    empty, scaleless = summary(tmp_path)["done"]
    maps = [np.asarray(nibabel.load(tmp_path / "out" / f"{name}_seg.nii.gz").dataobj) for name in ("head", "bare")]
    np.testing.assert_array_equal(maps, [np.zeros_like(maps[0]), scan() > 0])
    assert empty["labels"]["1"]["volume_ml"] == 0
    assert len(empty["warnings"]) == 1 and "Nothing was found" in empty["warnings"][0]
    assert "Nothing was found" in capsys.readouterr().out
    assert "no usable voxel spacing" in scaleless["warnings"][0] and str(bare) in scaleless["warnings"][0]
    assert scaleless["labels"]["1"] == {"name": "liver", "voxels": 5 * 5 * 4, "volume_ml": None}


def test_an_error_that_nobody_foresaw_costs_one_case(predict, images, nifti, monkeypatch, tmp_path, left_behind):
    nifti(images / "huge.nii.gz", scan(22, 18, 16), AFFINE)
    whole = results.draw_overlay

    def draw(path, image, *rest):
        if image.shape[1] == 22:
            raise MemoryError("no memory left")
        return whole(path, image, *rest)

    monkeypatch.setattr(results, "draw_overlay", draw)
    assert predict(images) == 1
    assert left_behind() == sorted([*files_of("good"), "summary.json"])
    assert summary(tmp_path)["failed"] == [{"case": "huge", "reason": "MemoryError: no memory left"}]


def test_after_an_error_in_the_network_the_next_image_gets_its_own_result(predict, nifti, tmp_path, monkeypatch):
    """An engine that an error has stopped returns at once when it is run again."""
    for number, size in enumerate((20, 21, 20, 22)):
        nifti(tmp_path / "images" / f"{number}.nii.gz", scan(size, 18, 16), AFFINE)
    calls = iter(range(9))

    def fail_second(logits):
        if next(calls) == 1:
            raise RuntimeError("out of memory")
        return logits

    monkeypatch.setattr(
        predict_verb,
        "BundlePredictor",
        lambda *args: with_network(BundlePredictor(*args), PerfectNetwork(fail_second)),
    )
    assert predict(tmp_path / "images") == 1
    assert [each["case"] for each in summary(tmp_path)["done"]] == ["0", "2", "3"]
    for number, size in ((2, 20), (3, 22)):
        found = nibabel.load(tmp_path / "out" / f"{number}_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), scan(size, 18, 16) > 0)


def test_a_result_that_is_there_is_left_out_and_replaced_on_demand(predict, images, tmp_path, nifti, capsys):
    assert predict(images) == 0
    path = tmp_path / "out" / "good_seg.nii.gz"
    before = path.stat().st_mtime_ns
    nifti(images / "new.nii.gz", scan(), AFFINE)
    assert predict(images) == 0
    assert summary(tmp_path)["skipped"] == ["good"] and path.stat().st_mtime_ns == before
    assert "1 done, 1 skipped, 0 failed" in capsys.readouterr().out
    assert predict(images, "--overwrite") == 0
    assert summary(tmp_path)["skipped"] == [] and path.stat().st_mtime_ns != before


def test_a_result_of_something_else_is_never_replaced_silently(predict, images, tmp_path, nifti):
    assert predict(images) == 0
    facts = tmp_path / "out" / "good_seg.json"
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps({**content, "bundle": "lits_fine", "weights_sha256": "0"}))
    assert predict(images) == 1
    reason = summary(tmp_path)["failed"][0]["reason"]
    assert "result of another bundle, weights" in reason and "--overwrite" in reason
    facts.unlink()  # as `monai.bundle run` leaves a map
    assert predict(images) == 1
    assert predict(images, "--overwrite") == 0


@pytest.mark.parametrize("last", files_of("out/good"))
def test_a_run_that_was_killed_leaves_no_case_that_looks_done(
    last, predict, images, tmp_path, monkeypatch, left_behind
):
    replace = os.replace

    def die(source, target):
        if str(target).endswith(last) and ".good.tmp" in str(source):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", die)
    assert predict(images) == 130
    assert "good_seg.nii.gz" not in left_behind() and not [name for name in left_behind() if name.startswith(".")]
    monkeypatch.setattr(os, "replace", replace)
    assert predict(images) == 0
    assert len(summary(tmp_path)["done"]) == 1


def test_images_of_one_name_are_told_apart_by_their_folders(predict, tmp_path, nifti, left_behind):
    for patient in "ab":
        nifti(tmp_path / patient / "ct.nii.gz", scan(), AFFINE)
    shutil.copy(tmp_path / "b" / "ct.nii.gz", tmp_path / "b" / "mr.nii.gz")
    assert predict(tmp_path / "a", tmp_path / "b", tmp_path / "a" / "ct.nii.gz") == 0
    assert left_behind() == sorted(["summary.json", *files_of("a_ct"), *files_of("b_ct"), *files_of("mr")])


def test_the_weights_are_checked_and_loaded_and_not_read_for_each_image(predict, images, nifti, monkeypatch):
    for number in range(3):
        nifti(images / f"{number}.nii.gz", scan(), AFFINE)
    reads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: reads.append(args) or load(*args, **options))
    assert predict(images) == 0
    assert len(reads) == 2


def test_a_terminal_gets_a_bar(predict, images, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert predict(images) == 0
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([LITS], ["predict: INPUT is missing"]),
        ([LITS, "nowhere"], ["INPUT 'nowhere' does not exist"]),
        ([LITS, "{images}", "--devise", "cpu"], ["'devise'", "did you mean 'device'"]),
        ([LITS, "{images}", "--output_dir", "x"], ["--output_dir", "--output"]),
        ([LITS, "{images}", "--network_name", "resnet18"], ["model.pt", "do not fit inference.json", "--network_name"]),
        ([LITS, "{images}", "--ckpt_dir", "nowhere"], ["There is neither 'nowhere", "released"]),
        (["lits_corse", "{images}"], ["the nearest is 'lits_coarse'"]),
        ([LITS, "{images}", "--device", "gpu"], ["device must be cpu, or cuda", "got 'gpu'"]),
        ([LITS, "{images}", "--device", "cuda:77"], ["device must be cpu, or cuda", "got 'cuda:77'"]),
        ([LITS, "{images}", "--output", "{images}"], ["--output must be another folder"]),
        ([LITS, "{images}", "--output", "{images}/good.nii.gz/out"], ["cannot be made"]),
    ],
)
def test_a_wrong_command_is_one_sentence_and_writes_nothing(words, named, images, weights, tmp_path, capsys):
    words = [str(word).format(images=images) for word in words]
    own = [] if "--ckpt_dir" in words else ["--ckpt_dir", str(weights)]
    own += [] if "--output" in words else ["--output", str(tmp_path / "out")]
    assert cli.main(["predict", *words, *own]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in named), error
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")
    assert os.listdir(images) == ["good.nii.gz"]


def test_a_classifier_is_refused_with_the_command_that_runs_it(tmp_path, images, capsys):
    bundle = tmp_path / "nodule_classification"
    shutil.copytree(LITS / "configs", bundle / "configs")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["format"] = "classes"
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    assert cli.main(["predict", str(bundle), str(images), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no label map" in error and "python -m monai.bundle run --config_file" in error and error.count("\n") == 1


def test_options_of_the_config_are_passed_on(predict, images, tmp_path):
    assert predict(images, "--spatial_size", "[48,48,48]") == 0
    assert json.loads((tmp_path / "out" / "good_seg.json").read_text())["options"]["spatial_size"] == [48, 48, 48]
    assert math.isclose(summary(tmp_path)["done"][0]["labels"]["1"]["volume_ml"], 100 * 3 / 1000)


@pytest.fixture
def events(monkeypatch):
    """What happens in a prediction, in its order."""
    seen: list[str] = []

    def note(module, name, word, pause=0.0):
        real = getattr(module, name)

        def noted(*args, **kwargs):
            seen.append(f"{word} begins")
            time.sleep(pause)
            try:
                return real(*args, **kwargs)
            finally:
                seen.append(f"{word} ends")

        monkeypatch.setattr(module, name, noted)

    note(predict_verb, "read_image", "read")
    note(predict_verb, "write_results", "write", pause=0.3)
    note(BundlePredictor, "__call__", "network", pause=0.3)
    return seen


def test_the_next_image_is_read_and_the_last_result_written_while_the_network_computes(
    predict, images, nifti, events, tmp_path
):
    for number in range(3):
        nifti(images / f"{number}.nii.gz", scan(), AFFINE)
    assert predict(images) == 0
    assert [each["case"] for each in summary(tmp_path)["done"]] == ["0", "1", "2", "good"]
    assert events.count("read begins") == 4  # each image once, for the network and its picture
    place = {(word, number): index for index, (word, number) in enumerate(numbered(events))}
    for number in range(3):
        assert place["read begins", number + 1] < place["network ends", number]
        assert place["write begins", number] < place["network ends", number + 1] < place["write ends", number + 1]
        assert number == 2 or place["read begins", number + 2] > place["network ends", number]  # no further ahead


def numbered(words):
    counts: dict[str, int] = {}
    for word in words:
        yield word, counts.setdefault(word, 0)
        counts[word] += 1


def test_warnings_are_those_of_their_own_case(predict, images, nifti, tmp_path):
    (images / "good.nii.gz").unlink()
    for number in range(6):
        voxels = scan() if number % 2 else np.full((20, 18, 16), -200, np.int16)
        nifti(images / f"{number}.nii.gz", voxels, *([AFFINE] if number % 3 else [None, (1.0, 1.0, 2.0)]))
    assert predict(images) == 0
    for number, case in enumerate(summary(tmp_path)["done"]):
        text = " ".join(case["warnings"])
        assert ("Nothing was found" in text) == (number % 2 == 0), case
        assert ("states no orientation" in text) == (number % 3 == 0), case
        assert text.count(".nii.gz'") == text.count(f"{number}.nii.gz'")

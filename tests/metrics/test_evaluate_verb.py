"""The verb ``evaluate`` on small label maps: matching, refusals, files and table."""

from __future__ import annotations

import csv
import json
import math

import nibabel
import numpy as np
import pytest

from med3d_ext.errors import InputError
from med3d_ext.tools import cli
from med3d_ext.tools.evaluate import evaluate, paired_test, parse_classes
from med3d_ext.tools.label_files import case_name, pair_cases, read_pair

AFFINE = np.diag([1.0, 2.0, 5.0, 1.0])
SHAPE = (6, 6, 8)


def bar(*values: int) -> np.ndarray:
    """A label map with these values along z, one voxel thick."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[2, 2, : len(values)] = values
    return voxels


@pytest.fixture
def run(tmp_path, nifti):
    """Four cases: found, missed, falsely found and empty in class 1; class 2 only in the first label."""
    labels = {"a": bar(0, 1, 1, 1, 1, 0, 2), "b": bar(1, 1), "c": bar(), "d": bar()}
    predictions = {"a": bar(0, 0, 1, 1, 1, 1), "b": bar(), "c": bar(0, 1), "d": bar()}
    for name in labels:
        nifti(tmp_path / "labels" / f"{name}.nii.gz", labels[name], AFFINE)
        nifti(tmp_path / "out" / f"{name}_seg.nii.gz", predictions[name], AFFINE)
    return tmp_path


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("file", "case"),
    [
        ("x/abdomen_20_seg.nii.gz", "abdomen_20"),
        ("abdomen_20.nii", "abdomen_20"),
        ("segmentation-12.nii", "volume-12"),
        ("volume-12_seg.nii.gz", "volume-12"),
        ("case.1.nrrd", "case.1"),
        ("seg.mha", "seg"),
        ("case_1.seg.nrrd", "case_1"),
    ],
)
def test_a_case_is_known_by_its_files_name(file, case):
    assert case_name(file) == case


def test_a_run_from_the_command_line(run, capsys):
    words = ["evaluate", str(run / "out"), str(run / "labels"), "--output", str(run / "report"), "--tolerance_mm", "2"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert "4 cases; surface Dice at 2 mm; missed" in table
    assert "1 found, 1 missed, 1 falsely found, 1 empty" in table
    summary = json.loads((run / "report" / "summary.json").read_text())
    one = summary["classes"]["1"]
    diagonal = math.sqrt(6**2 + 12**2 + 40**2)
    assert (summary["n"], summary["tolerance_mm"]) == (4, 2)
    assert one["dice"]["mean"] == pytest.approx((0.75 + 0 + 0) / 3) and one["dice"]["n"] == 3
    assert one["dice"]["undefined"] == 1 and one["dice"]["interval_95"] == [0, 0.75]
    assert one["global_dice"] == 2 * 3 / (8 + 2 + 1)
    assert one["assd_mm"]["mean"] == pytest.approx((10 / 8 + 2 * diagonal) / 3, abs=1e-4)
    assert one["volume_error_relative"]["n"] == 2
    assert (one["found"], one["missed"], one["falsely_found"], one["empty"]) == (1, 1, 1, 1)
    two = summary["classes"]["2"]
    assert (two["found"], two["missed"], two["falsely_found"], two["empty"]) == (0, 1, 0, 3)
    written = rows(run / "report" / "cases.csv")
    assert [(row["case"], row["class"]) for row in written] == [(case, name) for name in "12" for case in "abcd"]
    assert [row["outcome"] for row in written[:4]] == ["found", "missed", "falsely_found", "empty"]
    assert float(written[0]["surface_dice"]) == 0.75 and float(written[0]["label_ml"]) == 0.04
    assert not (run / "report" / "cases_compare.csv").exists()


def test_classes_are_named_and_merged(run):
    table = evaluate(str(run / "out"), str(run / "labels"), classes="whole=1+2,tumor=2,9", output=str(run / "report"))
    classes = json.loads((run / "report" / "summary.json").read_text())["classes"]
    assert list(classes) == ["whole", "tumor", "9"] and "\nwhole  1 found" in table
    assert float(rows(run / "report" / "cases.csv")[0]["dice"]) == pytest.approx(2 * 3 / 9)
    assert classes["9"]["empty"] == 4 and classes["9"]["dice"]["mean"] is None and classes["9"]["global_dice"] is None


def test_a_class_may_have_another_value_in_the_labels(run):
    evaluate(str(run / "out"), str(run / "labels"), classes="end=1:2", output=str(run / "report"))
    row = rows(run / "report" / "cases.csv")[0]
    assert (row["class"], row["pred_voxels"], row["label_voxels"], row["overlap_voxels"]) == ("end", "4", "1", "0")
    assert parse_classes("liver=1:6+7, 2") == {"liver": ([1], [6, 7]), "2": ([2], [2])}


@pytest.mark.parametrize("text", ["", "liver", "liver=1:", "1:2:3", "1,", "liver=", "1;2", "a=1,a=2", "1.5", "-1"])
def test_classes_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="--classes must be like"):
        parse_classes(text)


def test_two_runs_are_compared_case_by_case(run, nifti):
    for name, voxels in {"a": bar(0, 1, 1, 1, 1, 0, 2), "b": bar(0, 1), "d": bar(1)}.items():
        nifti(run / "other" / f"{name}.nii.gz", voxels, AFFINE)
    table = evaluate(
        str(run / "out"), str(run / "labels"), compare=str(run / "other"), output=str(run / "report"), classes="1"
    )
    comparison = json.loads((run / "report" / "summary.json").read_text())["comparison"]
    assert (comparison["n"], comparison["in_one_run_only"]) == (3, ["c"])
    found = comparison["classes"]["1"]["dice"]
    # d: this run has no value (empty), the other a false find
    assert found == paired_test([0.75, 0, math.nan], [1, 2 / 3, 0]) and (found["n"], found["excluded"]) == (2, 1)
    assert found["mean_difference"] == pytest.approx((-0.25 - 2 / 3) / 2)
    assert comparison["classes"]["1"]["assd_mm"]["mean_difference"] > 0
    assert "minus " in table and "in one run only, not compared: c" in table
    assert "n=2, 1 excluded  Wilcoxon p=0.5000  (2 differing pairs: fewer than 6 cannot reach p < 0.05)" in table
    assert [row["case"] for row in rows(run / "report" / "cases_compare.csv")] == ["a", "b", "d"]


def test_a_class_of_the_other_run_alone_is_compared_too_and_one_without_a_common_case_is_refused(run, nifti):
    nifti(run / "other" / "b.nii.gz", bar(3), AFFINE)
    table = evaluate(str(run / "out"), str(run / "labels"), compare=str(run / "other"))
    assert "\n3  0 found, 0 missed, 0 falsely found, 4 empty" in table
    nifti(run / "first" / "a.nii.gz", bar(1), AFFINE)
    with pytest.raises(InputError, match="shares no case"):
        evaluate(str(run / "first"), str(run / "labels"), compare=str(run / "other"))


def test_cases_without_partner_are_named(run, nifti):
    (run / "out" / "b_seg.nii.gz").unlink()
    nifti(run / "out" / "e_seg.nii.gz", bar(1), AFFINE)
    table = evaluate(str(run / "out"), str(run / "labels"), output=str(run / "report"))
    assert "unmatched predictions, not counted: e" in table and "unmatched labels, not counted: b" in table
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert (summary["n"], summary["unmatched_predictions"], summary["unmatched_labels"]) == (3, ["e"], ["b"])


def test_two_files_belong_together_whatever_their_names_and_nothing_is_written_without_output(run):
    before = sorted(run.rglob("*"))
    table = evaluate(str(run / "out" / "a_seg.nii.gz"), str(run / "labels" / "b.nii.gz"), classes="1")
    assert table.startswith("1 cases") and "1 found" in table
    assert sorted(run.rglob("*")) == before


def test_labels_of_a_decathlon_folder_are_not_its_images_and_those_of_lits_belong_to_its_volumes(run, nifti):
    nifti(run / "set" / "imagesTr" / "a.nii.gz", bar(7), AFFINE)
    path = nifti(run / "set" / "labelsTr" / "a.nii.gz", bar(1), AFFINE)
    nifti(run / "set" / "labelsTr" / "._a.nii.gz", bar(1), AFFINE)
    assert pair_cases(run / "out", run / "set").files == {"a": (run / "out" / "a_seg.nii.gz", path)}
    nifti(run / "lits" / "volume-3.nii", bar(7), AFFINE)
    label = nifti(run / "lits" / "segmentation-3.nii", bar(1), AFFINE)
    pred = nifti(run / "new" / "volume-3" / "volume-3_seg.nii.gz", bar(1), AFFINE)
    assert pair_cases(run / "new", run / "lits").files == {"volume-3": (pred, label)}


def test_a_list_of_cases_names_labels_by_their_images(run):
    entries = [{"image": "images/c.nii.gz", "label": "labels/a.nii.gz"}, {"image": "images/d.nii.gz"}]
    (run / "datalist.json").write_text(json.dumps({"test": entries}))
    pairs = pair_cases(run / "out", run / "datalist.json")
    assert pairs.files == {"c": (run / "out" / "c_seg.nii.gz", run / "labels" / "a.nii.gz")}
    (run / "datalist.json").write_text(json.dumps({"test": ["images/d.nii.gz"]}))
    with pytest.raises(InputError, match="no paths of images with labels"):
        pair_cases(run / "out", run / "datalist.json")


def test_folders_that_cannot_be_paired_are_refused(run, nifti):
    (run / "empty").mkdir()
    nifti(run / "strange" / "x.nii.gz", bar(1), AFFINE)
    nifti(run / "twice" / "a_seg.nii.gz", bar(1), AFFINE)
    nifti(run / "twice" / "more" / "a.nii.gz", bar(1), AFFINE)
    for pred, label, message in (
        ("empty", "labels", "PRED .* holds no label map"),
        ("out", "nowhere", "LABEL .* does not exist"),
        ("strange", "labels", "No prediction of .*x, .*name them alike"),
        ("twice", "labels", "two label maps of case a"),
    ):
        with pytest.raises(InputError, match=message):
            pair_cases(run / pred, run / label)


SHIFTED = AFFINE.copy()
SHIFTED[0, 3] = 1.0
THICKER = np.diag([1.0, 2.0, 5.1, 1.0])
MIRRORED = np.diag([-1.0, 2.0, 5.0, 1.0])  # about voxel 0, so that it is elsewhere


@pytest.mark.parametrize("affine", [SHIFTED, THICKER, MIRRORED])
def test_another_grid_is_refused(tmp_path, nifti, affine):
    files = nifti(tmp_path / "pred.nii.gz", bar(1), affine), nifti(tmp_path / "label.nii.gz", bar(1), AFFINE)
    with pytest.raises(InputError, match="mm off (its prediction|the voxels)"):
        read_pair(*files)


@pytest.mark.parametrize("side", ["prediction", "label"])
def test_either_map_may_be_in_another_order_of_voxels(tmp_path, side):
    """The measures, anisotropic distances included, are those of the plain maps."""
    maps = {"prediction": bar(1, 1, 1), "label": bar(0, 1, 1, 1)}
    for name, voxels in maps.items():
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path / f"{name}.nii.gz")
    files = [str(tmp_path / f"{name}.nii.gz") for name in maps]
    expected = evaluate(*files)
    image = nibabel.Nifti1Image(maps[side], AFFINE)
    for order in ([[2, -1], [0, 1], [1, -1]], [[0, -1], [1, -1], [2, 1]]):
        nibabel.save(image.as_reoriented(np.array(order)), tmp_path / f"{side}.nii.gz")
        assert evaluate(*files) == expected


def test_a_label_without_geometry_is_measured_in_the_predictions_with_a_warning(tmp_path, nifti, caplog):
    pred, plain = nifti(tmp_path / "pred.nii.gz", bar(1), AFFINE), nifti(tmp_path / "plain.nii.gz", bar(1), AFFINE)
    label = nifti(tmp_path / "label.nii.gz", bar(1), np.eye(4))
    assert read_pair(pred, label)[2].tolist() == [1, 2, 5]
    assert str(label) in caplog.text
    np.testing.assert_array_equal(read_pair(pred, label)[1], read_pair(pred, plain)[1])


def test_values_that_a_slope_rounds_are_those_that_a_training_takes(tmp_path, nifti):
    pred = nifti(tmp_path / "pred.nii.gz", bar(1, 2), AFFINE)
    label = nifti(tmp_path / "label.nii.gz", bar(1, 2).astype(np.float32) * np.float32(0.9999), AFFINE)
    np.testing.assert_array_equal(read_pair(pred, label)[1], bar(1, 2))


def test_every_bad_pair_is_named_and_nothing_is_written_or_the_rest_is_measured(run, nifti, capsys):
    nifti(run / "out" / "a_seg.nii.gz", bar(1)[1:], AFFINE)
    nifti(run / "labels" / "c.nii.gz", bar(1).astype(np.float32) / 3, AFFINE)
    (run / "labels" / "d.nii.gz").write_bytes(b"torn")
    words = ["evaluate", str(run / "out"), str(run / "labels"), "--output", str(run / "report")]
    assert cli.main(words) == 1
    lines = capsys.readouterr().err.strip().splitlines()[-4:]
    assert [name in line for name, line in zip(("a_seg", "c.nii", "d.nii"), lines)] == [True] * 3
    assert "its prediction" in lines[0] and "is 5x6x8" in lines[0]
    assert lines[-1].startswith("3 of 4 cases are faulty") and not (run / "report").exists()
    assert cli.main([*words, "--skip_bad"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("1 cases") and all(line in table for line in lines[:3])
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert (summary["n"], summary["left_out"]) == (1, lines[:3])
    for name in ("a", "b", "c", "d"):
        (run / "labels" / f"{name}.nii.gz").write_bytes(b"torn")
    assert cli.main([*words, "--skip_bad"]) == 1  # no case is left


def test_rounding_in_a_header_is_not_another_grid(tmp_path, nifti):
    files = nifti(tmp_path / "pred.nii.gz", bar(1), AFFINE + 1e-3), nifti(tmp_path / "label.nii.gz", bar(1), AFFINE)
    assert read_pair(*files)[2].tolist() == pytest.approx([1, 2, 5], abs=2e-3)


@pytest.mark.parametrize(
    ("voxels", "options", "message"),
    [
        (bar(1).astype(np.float32) / 2, {"affine": AFFINE}, "not a whole number"),
        (bar(1).astype(np.int16) - 1000, {"affine": AFFINE}, "negative value"),
        (bar(1), {"pixdim": (0.0, 1.0, 1.0)}, "no usable voxel spacing"),
        (bar(), {"affine": AFFINE}, "contain only background"),
    ],
)
def test_what_is_not_a_label_map_is_refused(tmp_path, nifti, voxels, options, message):
    path = str(nifti(tmp_path / "image.nii.gz", voxels, **options))
    with pytest.raises(InputError, match=message):
        evaluate(path, path)


def test_the_surface_dice_has_as_many_tolerances_as_are_asked_for(run, capsys):
    words = ["evaluate", str(run / "out"), str(run / "labels"), "--output", str(run / "report"), "--classes", "1"]
    assert cli.main([*words, "--tolerance_mm", "2,5,0.5", "--compare", str(run / "labels")]) == 0
    summary = json.loads((run / "report" / "summary.json").read_text())
    one = summary["classes"]["1"]
    assert (summary["tolerance_mm"], summary["further_tolerances_mm"]) == (2, [5, 0.5])
    # case a: six of the eight surface voxels lie on the other surface, two 5 mm off; b and c have none to find
    for name, share in (("surface_dice", 0.75), ("surface_dice_5mm", 1), ("surface_dice_0.5mm", 0.75)):
        assert one[name]["mean"] == pytest.approx(share / 3, abs=1e-4) and one[name]["n"] == 3
        assert float(rows(run / "report" / "cases.csv")[0][name]) == share
        assert rows(run / "report" / "cases.csv")[3][name] == "nan"  # empty in both
    assert "surface_dice_further" not in rows(run / "report" / "cases.csv")[0]
    assert summary["comparison"]["classes"]["1"]["surface_dice_5mm"]["mean_difference"] == -0.5
    assert capsys.readouterr().out.count("surface_dice_0.5mm") == 2


@pytest.mark.parametrize("tolerance", ["2,2", "two", "", "1,-1", "1,,2", -1.0, math.inf, math.nan])
def test_tolerances_of_another_form_are_refused(run, tolerance):
    with pytest.raises(InputError, match="--tolerance_mm"):
        evaluate(str(run / "out"), str(run / "labels"), tolerance_mm=tolerance)


def test_real_labels_are_their_own_perfect_prediction(real_data):
    label = str(min((real_data / "msd").rglob("labelsTr/*.nii.gz")))
    found = evaluate(label, label)
    assert "1 found, 0 missed" in found and "global_dice               1.0000" in found

"""Broken inputs: a sentence that names what is at fault, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
import tiny
from catalogue import KINDS, ROWS, Row, cut, several, voxels
from commands import MED3D, MONAI, REPOSITORY, Shell, link, refused, train_words, tree, typed

# What a refused command may leave: locks, and the data that it prepared completely for the next call.
MAY_STAY = (".lock", "prepared", "cache", "__pycache__", ".lidc")


def words_of(row: Row) -> list[str]:
    return [
        word.replace("{bundles}", str(REPOSITORY / "bundles")) for word in shlex.split(row.words.replace("'", "\\'"))
    ]


def left_behind(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Files that are new, changed or gone; a new folder is not a file."""
    names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return sorted(name for name in names if not (after.get(name) == "folder" and name not in before))


@pytest.mark.quick
def test_the_catalogue_covers_all_verbs_and_bundles():
    assert len(ROWS) >= 80 and len({(row.title, row.words) for row in ROWS}) == len(ROWS)
    typed_words = " ".join(row.words for row in ROWS)
    for name in ("lits_coarse", "lits_fine", "lung_segmentation", "pretrain_3dseg8", "nodule_classification"):
        assert name in typed_words
    for verb in ("prepare", "phantoms", "new-bundle", "report", "rerun", "check", "benchmark", "leakage", "compare"):
        assert any(row.words.startswith(verb) for row in ROWS), verb
    for verb in ("predict", "export", "evaluate", "weights inspect", "weights join", "weights convert"):
        assert any(row.words.startswith(verb) for row in ROWS), verb
    for verb in ("weights release", "zoo pack", "zoo index", "zoo publish", "zoo fetch"):
        assert any(row.words.startswith(verb) for row in ROWS), verb


@pytest.mark.quick
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.words.split()[0]}: {row.title}")
def test_broken_input_is_refused_in_a_sentence_that_names_it(row, trained, shell, place, record_property):
    record_property("refused", 1)
    if "own" in row.words:
        shutil.copytree(trained, place / "own", copy_function=link)
    KINDS[row.kind](place)
    row.make(place)
    before = tree(place)
    done = shell.run(row.module, *words_of(row), folder=place)
    refused(done, *row.names, code=row.expected)
    assert not (place / "ran").exists(), "code of the file was run"
    may_stay = (
        (*MAY_STAY, "_seg.nii.gz") if row.title.startswith("infer: image") else MAY_STAY
    )  # of the scans before it
    left = [name for name in left_behind(before, tree(place)) if not any(part in name for part in may_stay)]
    logs = ("summary.json", "initial_weights.json", "run.json", "arm.json", "tfevents", "/train.json", "train.log")
    assert [name for name in left if not name.endswith(logs) and "tfevents" not in name] == []


@pytest.mark.quick
@pytest.mark.parametrize(
    ("module", "words"),
    [
        (MED3D, ["weights", "inspect", "nowhere.pt"]),
        (MED3D, ["phantoms", "nodules", "--folder", "out", "--cases", "2"]),
        (MONAI, ["run", "--config_file", REPOSITORY / "bundles/lits_coarse/configs/train.json", "--epoch", "1"]),
    ],
)
def test_a_forked_command_ends_as_a_typed_one(module, words, shell, place):
    ends = []
    for run in (shell.run, typed):
        shutil.rmtree(place / "work", ignore_errors=True)
        (place / "work").mkdir()
        ends.append(run(module, *words, folder=place / "work"))
    forked, real = ends
    assert (forked.code, forked.out, forked.err) == (real.code, real.out, real.err)


@pytest.mark.quick
def test_in_a_batch_the_good_scans_are_all_segmented(trained, shell, place):
    tiny.images(place / "scans", cases=6)
    several(
        cut("scans/scan_1.nii.gz"),
        voxels("scans/scan_3.nii.gz", lambda v: v[:, :, 0]),
        voxels("scans/scan_4.nii.gz", lambda v: v * float("nan")),
    )(place)
    done = shell.run(MED3D, "predict", trained, "scans", "--output", "out", folder=place)
    refused(done, "scan_1", "scan_3", "scan_4", code=1)
    assert sorted(path.name[:6] for path in (place / "out").glob("*_seg.nii.gz")) == ["scan_0", "scan_2", "scan_5"]
    summary = json.loads((place / "out/summary.json").read_text())
    assert [len(summary[state]) for state in ("done", "failed")] == [3, 3]


BAD = several(
    cut("data/imagesTr/case_1.nii.gz"),
    voxels("data/labelsTr/case_2.nii.gz", lambda v: v[1:]),
    voxels("data/labelsTr/case_3.nii.gz", lambda v: v * 7),
)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["lits", "3dseg8"])
def test_prepare_lists_all_bad_files(kind, shell, place):
    tiny.decathlon(place / "data", cases=5)
    BAD(place)
    done = shell.run(MED3D, "prepare", kind, "data", "--output", "out", folder=place)
    refused(done, "imagesTr/case_1", "labelsTr/case_2", "labelsTr/case_3", code=1)


@pytest.mark.quick
def test_check_lists_all_bad_files(own, shell, place):
    tiny.decathlon(place / "data", 5, ("background", "a", "b"), "MRI")
    BAD(place)
    done = shell.run(MED3D, "check", "own", "--dataset_dir", "data", folder=place)
    assert done.code == 1 and "Traceback" not in done.err, done
    for name in ("imagesTr/case_1", "labelsTr/case_2", "labelsTr/case_3"):
        assert name in done.out + done.err, done


@pytest.mark.quick
def test_evaluate_measures_the_good_pairs_beside_a_bad_one(shell, place):
    tiny.decathlon(place / "data", cases=4)
    shutil.copytree(place / "data/labelsTr", place / "pred")
    cut("pred/case_2.nii.gz")(place)
    done = shell.run(MED3D, "evaluate", "pred", "data/labelsTr", "--skip_bad", "--output", "out", folder=place)
    assert "Traceback" not in done.err and "pred/case_2" in done.err, done
    cases = (place / "out/cases.csv").read_text()
    assert all(f"case_{number}" in cases for number in (0, 1, 3)), cases


def test_a_training_that_was_refused_trains_after_the_repair(shell: Shell, data, place):
    tiny.decathlon(place / "data")
    good = (place / "data/imagesTr/case_1.nii.gz").read_bytes()
    cut("data/imagesTr/case_1.nii.gz")(place)
    words = train_words("lits_coarse", place / "data", place, epochs=1)
    refused(shell.run(MONAI, *words, folder=place), "case_1", code=1)
    (place / "data/imagesTr/case_1.nii.gz").write_bytes(good)
    done = shell.run(MONAI, *words, folder=place)
    assert done.code == 0 and (place / "models/model.pt").is_file(), done

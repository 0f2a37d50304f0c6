"""A recorded training is run again by its own command, and every difference is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from med3d_ext.errors import InputError
from med3d_ext.run.provenance import git_state, versions
from med3d_ext.tools.rerun import rerun, without

TRAIN = "../bundles/lits_coarse/configs/train.json"
RUN = "python -m monai.bundle run --config_file"
GIT, VERSIONS = git_state(), versions()
CHECKOUT = Path(__file__).parents[2]


def write_run(folder: Path, loss: str = "0.5", dice: float = 0.9, hash_: str = "a", **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    command = f"{RUN} {TRAIN} --output_dir old --epochs 2 --ckpt_dir=old/models"
    record = {"status": "completed", "command": command, "folder": "docs", "versions": VERSIONS, "git": GIT}
    figures = {"metrics": {"val_mean_dice": dice}, "data": {"liver": {"one.nii.gz": hash_}}}
    (folder / "run.json").write_text(json.dumps({**record, "device": {"threads": 3}, **figures, **changes}))
    (folder / "loss.csv").write_text(f"iteration,epoch,loss\n1,1,{loss}\n")
    return folder / "run.json"


@pytest.fixture
def trainings(monkeypatch):
    """The commands that would be run; each "training" leaves a run of the given content."""
    seen = SimpleNamespace(commands=[], folders=[], content={}, code=0)

    def run(command, cwd, env, check):
        assert env["OMP_NUM_THREADS"] == "3"
        seen.commands.append(command)
        seen.folders.append(cwd)
        if not seen.code:
            write_run(Path(command[command.index("--output_dir") + 1]), **seen.content)
        return SimpleNamespace(returncode=seen.code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("med3d_ext.tools.rerun.git_state", lambda: {"revision": "now", "dirty": False})
    monkeypatch.setattr("med3d_ext.tools.rerun.checkout", lambda: CHECKOUT)
    return seen


def test_the_command_runs_again_where_it_was_typed_and_writes_elsewhere(tmp_path, trainings):
    said = rerun(str(write_run(tmp_path).rename(tmp_path / "kept.json")))  # whatever the record is called
    out = tmp_path / "rerun"
    options = ["--config_file", TRAIN, "--epochs", "2", "--output_dir", str(out), "--ckpt_dir", str(out / "models")]
    assert trainings.commands == [[sys.executable, "-m", "monai.bundle", "run", *options]]
    assert trainings.folders == [CHECKOUT / "docs"]
    assert said.splitlines() == [
        "equal    hashes of images: 1, again 1",
        "equal    losses of iterations: 1, again 1",
        "equal    val_mean_dice: 0.9, again 0.9",
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"loss": "0.5000001"}, "DIFFERS  losses of iterations: 1, again 1"),
        ({"dice": 0.8}, "DIFFERS  val_mean_dice: 0.9, again 0.8"),
        ({"hash_": "b"}, "DIFFERS  hashes of images: 1, again 1"),
        ({"metrics": {}}, "DIFFERS  val_mean_dice: 0.9, again None"),
    ],
)
def test_a_difference_is_named_and_the_exit_code_tells(tmp_path, trainings, capsys, content, line):
    trainings.content = content
    with pytest.raises(SystemExit) as end:
        rerun(str(write_run(tmp_path)), output=str(tmp_path / "again"))
    assert end.value.code == 1 and line in capsys.readouterr().out.splitlines()


def test_a_training_that_fails_again_ends_with_its_own_exit_code(tmp_path, trainings):
    trainings.code = 3
    with pytest.raises(SystemExit) as end:
        rerun(str(write_run(tmp_path)))
    assert end.value.code == 3


def test_what_is_not_as_it_was_is_told_first(tmp_path, trainings, capsys):
    rerun(str(write_run(tmp_path, versions={"torch": "1.0"}, git={"revision": "then", "dirty": True})))
    said = capsys.readouterr().err
    assert "torch was 1.0, is " in said and "the revision was then, is now" in said
    assert "the run had uncommitted changes, which cannot be restored" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "running"}, "is of a run that is running; give the record of a completed one"),
        ({"command": "pytest -x"}, "is of the command 'pytest -x'; rerun takes those of python -m monai.bundle run"),
        (
            {"command": f"{RUN} own/train.json", "from_record": "../.."},
            "call rerun in the folder that the training was started in",
        ),
    ],
)
def test_what_cannot_run_again_is_refused_in_a_sentence(tmp_path, trainings, changes, message):
    with pytest.raises(InputError, match=message):
        rerun(str(write_run(tmp_path, **changes)))
    assert trainings.commands == []


def test_a_finished_second_run_is_not_compared_once_more_as_if_it_were_new(tmp_path, trainings):
    first = write_run(tmp_path)
    rerun(str(first))
    with pytest.raises(InputError, match="rerun' holds a completed run; remove it, or give another --output"):
        rerun(str(first))
    write_run(tmp_path / "rerun", status="running")  # a killed one is resumed
    assert "DIFFERS" not in rerun(str(first)) and len(trainings.commands) == 2


def test_a_run_outside_of_a_checkout_is_repeated_where_its_files_are(tmp_path, trainings, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.json").write_text("{}")
    monkeypatch.chdir(tmp_path.parent)
    rerun(str(write_run(tmp_path / "own" / "eval", command=f"{RUN} own/train.json", from_record="../..")))
    assert trainings.folders == [tmp_path.resolve()]


def test_options_leave_a_command_in_both_spellings():
    assert without(["a", "--x", "1", "--y=2", "--xy", "3", "x"], ("x", "y")) == ["a", "--xy", "3", "x"]


@pytest.mark.slow
def test_a_training_on_phantoms_gives_the_same_again(tmp_path):
    train = ["-m", "monai.bundle", "run", "--config_file", "bundles/lits_coarse/configs/train.json", "--epochs", "2"]
    small = ["--spatial_size", "[32,32,32]", "--output_dir", str(tmp_path), "--ckpt_dir", str(tmp_path / "models")]
    subprocess.run([sys.executable, *train, *small], cwd=CHECKOUT, check=True)
    again = [sys.executable, "-m", "med3d_ext", "rerun", str(tmp_path / "run.json")]
    done = subprocess.run(again, cwd=tmp_path, check=True, capture_output=True, text=True)
    rows = [row for row in done.stdout.splitlines() if ", again " in row]
    assert {row[9:].partition(":")[0] for row in rows} >= {"hashes of images", "losses of iterations", "val_mean_dice"}
    assert all(row.startswith("equal ") for row in rows)

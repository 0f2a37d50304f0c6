"""The commands that a user types, each in a process of its own, on a copy of the bundles: all but one are slow."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from bundle_files import BUNDLES, REPOSITORY, each_bundle, images_of, is_classifier, rows

from med3d_ext.io.files import read_json

RUN = (sys.executable, "-m", "monai.bundle", "run")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *RUN[1:])
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SHORT = ("--epochs", "1", "--val_interval", "1", "--spatial_size", "[32,32,32]")
NOTICE = re.compile(r"^.*parsing config_file .*\n(  .*\n)?", re.MULTILINE)  # MONAI's, in every command

each_name = pytest.mark.parametrize("name", [bundle.name for bundle in BUNDLES])


@pytest.fixture
def project(tmp_path):
    """A copy of the bundles as a clone has them: with the released encoder, without what runs wrote."""
    root = tmp_path / "project"
    left_out = shutil.ignore_patterns("models", "eval", "weights")
    shutil.copytree(REPOSITORY / "bundles", root / "bundles", ignore=left_out)
    encoder = Path("bundles") / "pretrain_3dseg8" / "weights"
    (root / encoder).symlink_to(REPOSITORY / encoder)
    return root


@pytest.fixture(scope="session")
def data(phantoms):
    """Folder of phantoms by the name of a bundle."""
    return {bundle.name: phantoms(bundle) for bundle in BUNDLES}


def run(*words, cwd):
    words = [str(word) for word in words]
    return subprocess.run(words, cwd=cwd, env=ONE_THREAD, capture_output=True, text=True, timeout=600)


def succeed(*words, cwd):
    done = run(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def configs(name, *files):
    """The option with the config files as the README writes them."""
    return "--config_file", "[" + ",".join(f"'bundles/{name}/configs/{file}.json'" for file in files) + "]"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def check_trained(project, name, before):
    """Only the bundle's two folders were written to, and there is one checkpoint; the run's record."""
    written = files(project) - before
    folders = (f"bundles/{name}/models/", f"bundles/{name}/eval/")
    assert [path for path in written if not path.startswith(folders)] == []
    assert {f"bundles/{name}/models/{file}" for file in ("model.pt", "card.json", "training_state.pt")} <= written
    assert len([path for path in written if path.endswith("/model.pt")]) == 1
    record = read_json(project / "bundles" / name / "eval" / "run.json")
    assert record["status"] == "completed"
    return record


def train_cascade_stage(project, data, cwd, config, own=frozenset()):
    before, visible = files(project), set(os.listdir(project / cwd))
    done = succeed(*RUN, "--config_file", config, "--dataset_dir", data["lits_coarse"], *SHORT, cwd=project / cwd)
    check_trained(project, "lits_coarse", before)
    assert "epoch 1/1" in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert set(os.listdir(project / cwd)) - visible == own


def test_training_from_the_repositorys_root_writes_inside_the_bundle(project, data):
    train_cascade_stage(project, data, ".", "bundles/lits_coarse/configs/train.json")


@pytest.mark.slow
def test_training_from_elsewhere_writes_inside_the_bundle(project, data):
    config = project / "bundles/lits_coarse/configs/train.json"
    for cwd, path, own in (
        ("bundles/lits_coarse", "configs/train.json", {"models", "eval"}),
        ("bundles/pretrain_3dseg8", "../lits_coarse/configs/train.json", set()),
        ("/", config, set()),
    ):
        train_cascade_stage(project, data, cwd, path, own)
        shutil.rmtree(config.parents[1] / "models")
        shutil.rmtree(config.parents[1] / "eval")


@pytest.mark.slow
@each_name
def test_the_bare_command_says_that_it_runs_on_phantoms(name, project):
    """With the values of the table ``phantoms`` where nothing else was asked for."""
    before = files(project)
    done = succeed(*RUN, "--config_file", f"bundles/{name}/configs/train.json", *SHORT, cwd=project)
    config = check_trained(project, name, before)["config"]
    (announced,) = [line for line in (done.stdout + done.stderr).splitlines() if "generated phantoms" in line]
    assert "no --dataset_dir given" in announced
    table = read_json(project / "bundles" / name / "configs" / "train.json")["phantoms"]
    asked = {"epochs": 1, "spatial_size": [32, 32, 32], "_desc_": None}
    assert {key: config[key] for key in {*table} - {*asked}} == {key: table[key] for key in {*table} - {*asked}}
    assert (config["epochs"], list(config["spatial_size"])) == (1, [32, 32, 32])


@pytest.mark.slow
@each_name
def test_train_evaluate_and_infer_one_after_the_other(name, project, data):
    bundle, given = project / "bundles" / name, ("--dataset_dir", data[name])
    images, branch = images_of(data[name])
    succeed(*RUN, *configs(name, "train"), *given, *SHORT, cwd=project)
    succeed(*RUN, *configs(name, "train", "evaluate"), *given, cwd=project)
    assert read_json(bundle / "eval" / "test" / "summary.json")["n"] > 0
    chosen = [word for key, value in branch.items() for word in (f"--{key}", value)]
    succeed(*RUN, "--config_file", "configs/inference.json", "--dataset_dir", images, *chosen, cwd=bundle)
    if is_classifier(bundle):
        made = read_json(bundle / "eval" / "inference" / "predictions.json")["cases"]
    else:
        made = list((bundle / "eval" / "inference").glob("*_seg.nii.gz"))
    assert len(made) == len(list(images.iterdir()))
    assert not any((project / folder).exists() for folder in ("eval", "models"))


@pytest.mark.slow
@each_name
def test_mlflow_tracks_inside_the_bundle(name, project, data, tmp_path):
    pytest.importorskip("mlflow")
    before = files(project)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = project / "bundles" / name / "configs" / "train.json"
    options = ("--tracking", "mlflow", "--dataset_dir", data[name], *SHORT)
    succeed(*RUN, "--config_file", config, *options, cwd=elsewhere)
    check_trained(project, name, before)
    assert os.listdir(elsewhere) == []
    assert list((project / "bundles" / name / "eval").glob("mlruns*"))


@pytest.mark.slow
@each_name
def test_two_processes_train_and_evaluate_as_one(name, project, data):
    before, given = files(project), ("--dataset_dir", data[name])
    done = succeed(*TORCHRUN, *configs(name, "train", "multi_gpu_train"), *given, *SHORT, cwd=project)
    assert check_trained(project, name, before)["device"]["processes"] == 2
    assert done.stderr.count("epoch 1/1") == 1
    folder, found = project / "bundles" / name / "eval" / "training", []
    for start, names in ((RUN, ()), (TORCHRUN, ("multi_gpu_evaluate",))):
        succeed(*start, *configs(name, "train", "evaluate", *names), *given, "--split", "training", cwd=project)
        cases = sorted((folder / "cases.csv").read_text().splitlines())
        found.append((read_json(folder / "summary.json"), cases))
        shutil.rmtree(folder)
    assert found[0] == found[1]


@pytest.mark.slow
def test_an_override_without_effect_is_refused_in_one_line(project):
    done = run(*RUN, *configs("pretrain_3dseg8", "train"), "--sample_per_domain", "3", cwd=project)
    assert done.returncode != 0
    line = "override 'sample_per_domain' matches no id of train.json; did you mean 'samples_per_domain'?\n"
    assert NOTICE.sub("", done.stderr) == line


def change(path, changed):
    """Write a NIfTI file again with other voxels; its path."""
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(changed(np.asarray(image.dataobj)), image.affine), path)
    return path


def with_nan(voxels):
    voxels = voxels.astype(np.float32)
    voxels[5, 5, 5] = np.nan
    return voxels


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def remove(path, again=False):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if again:
        path.mkdir()
    return path


def image(folder):
    return sorted(folder.glob("imagesTr/*"))[0]


def label(folder):
    return sorted(folder.glob("labelsTr/*"))[0]


FAULTS = {
    "missing": remove,
    "empty": lambda folder: remove(folder, again=True),
    "without liver": lambda folder: change(label(folder), np.zeros_like),
    "truncated": lambda folder: truncate(image(folder)),
    "of another shape": lambda folder: change(label(folder), lambda voxels: voxels[:-1]),
    "without label": lambda folder: remove(label(folder)),
    "flat": lambda folder: change(image(folder), lambda voxels: voxels[:, :, 0]),
    "with NaN": lambda folder: change(image(folder), with_nan),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_with_the_files_name_and_nothing_half_written(fault, project, data, tmp_path):
    folder = tmp_path / "liver"
    shutil.copytree(data["lits_coarse"], folder)
    named = FAULTS[fault](folder)
    done = run(*RUN, *configs("lits_coarse", "train"), "--dataset_dir", folder, *SHORT, cwd=project)
    assert done.returncode != 0
    said = NOTICE.sub("", done.stderr)
    assert said.count("\n") == 1, said
    assert str(named) in said
    assert "Traceback" not in done.stdout
    left = {path.rpartition("/")[2] for path in files(project / "bundles" / "lits_coarse")}
    assert left.isdisjoint({"datalist.json", "facts.json", "model.pt", "training_state.pt", "card.json"})


@pytest.mark.slow
@each_bundle
def test_a_killed_training_continues_bit_for_bit(bundle, phantoms, tmp_path):
    def command(folder):
        config = bundle / "configs" / "train.json"
        words = ["--config_file", config, "--dataset_dir", phantoms(bundle), "--epochs", 3, "--val_interval", 1]
        words += ["--output_dir", folder / "eval", "--ckpt_dir", folder / "models", "--spatial_size", "[32,32,32]"]
        # Some phantom sets have two cases to train on: an epoch needs an inside to be killed in.
        return [str(word) for word in (*RUN, *words, "--batch_size", 1)]

    def losses(folder):
        """(iteration, epoch, loss) as written, digit by digit."""
        path = folder / "eval" / "loss.csv"
        return [tuple(row.values()) for row in rows(path)] if path.is_file() else []

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed(*command(whole), cwd=REPOSITORY)
    process = subprocess.Popen(command(killed), cwd=REPOSITORY, env=ONE_THREAD, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(row[1] == "2" for row in losses(killed)):
        assert time.monotonic() < deadline, "the second epoch has not begun after 300 s"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = losses(killed)
    assert before[-1][1] == "2"
    per_epoch = sum(row[1] == "1" for row in losses(whole))
    assert len(before) < 2 * per_epoch, "the kill came after the epoch's end"
    succeed(*command(killed), cwd=REPOSITORY)
    assert losses(killed) == losses(whole)

"""The commands that a user types, each in a process of its own, on a copy of the bundles: all but one are slow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from bundle_files import BUNDLES, REPOSITORY, images_of, is_classifier

RUN = (sys.executable, "-m", "monai.bundle", "run")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
SMALL = ("--spatial_size", "[32,32,32]")
SHORT = ("--epochs", "1", "--val_interval", "1", *SMALL)
NOTICE = re.compile(r"^.*parsing config_file .*\n(  .*\n)?", re.MULTILINE)  # MONAI's, in every command

each_bundle = pytest.mark.parametrize("name", [bundle.name for bundle in BUNDLES])


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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in words]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def succeed(*words, cwd):
    done = run(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def overlay(folder, *names):
    """The config files as the README writes them."""
    return "[" + ",".join(f"'{folder}/configs/{name}.json'" for name in names) + "]"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def check_trained(project, name, before):
    """Only the bundle's two folders were written to, and there is one checkpoint."""
    written = files(project) - before
    places = (f"bundles/{name}/models/", f"bundles/{name}/eval/")
    assert {path for path in written if not path.startswith(places)} == set()
    assert {f"bundles/{name}/models/{file}" for file in ("model.pt", "card.json", "training_state.pt")} <= written
    assert len([path for path in written if path.endswith("/model.pt")]) == 1
    assert json.loads((project / "bundles" / name / "eval" / "run.json").read_text())["status"] == "completed"


def test_training_from_the_repositorys_root_writes_inside_the_bundle(project, data):
    before = files(project)
    options = ("--dataset_dir", data["lits_coarse"], *SHORT)
    done = succeed(*RUN, "--config_file", "bundles/lits_coarse/configs/train.json", *options, cwd=project)
    check_trained(project, "lits_coarse", before)
    assert "epoch 1/1" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cwd", "config"),
    [
        ("bundles/lits_coarse", "configs/train.json"),
        ("bundles/pretrain_3dseg8", "../lits_coarse/configs/train.json"),
        ("/", None),
    ],
)
def test_training_from_elsewhere_writes_inside_the_bundle(cwd, config, project, data):
    before = files(project)
    visible = set(os.listdir(project / cwd))
    config = config or project / "bundles/lits_coarse/configs/train.json"
    succeed(*RUN, "--config_file", config, "--dataset_dir", data["lits_coarse"], *SHORT, cwd=project / cwd)
    check_trained(project, "lits_coarse", before)
    own = {"models", "eval"} if cwd == "bundles/lits_coarse" else set()
    assert set(os.listdir(project / cwd)) - visible == own


@pytest.mark.slow
@each_bundle
def test_the_bare_command_says_that_it_runs_on_phantoms(name, project):
    before = files(project)
    done = succeed(*RUN, "--config_file", f"bundles/{name}/configs/train.json", *SHORT, cwd=project)
    check_trained(project, name, before)
    announced = [line for line in (done.stdout + done.stderr).splitlines() if "generated phantoms" in line]
    assert len(announced) == 1
    assert "no --dataset_dir given" in announced[0]


@pytest.mark.slow
@each_bundle
def test_train_evaluate_and_infer_one_after_the_other(name, project, data):
    bundle = project / "bundles" / name
    images = images_of(data[name])
    branch = () if images.parent == data[name] else ("--branch", images.parent.name)
    given = ("--dataset_dir", data[name])
    succeed(*RUN, "--config_file", f"bundles/{name}/configs/train.json", *given, *SHORT, cwd=project)
    succeed(*RUN, "--config_file", overlay(f"bundles/{name}", "train", "evaluate"), *given, cwd=project)
    assert json.loads((bundle / "eval" / "test" / "summary.json").read_text())["n"] > 0
    succeed(*RUN, "--config_file", "configs/inference.json", "--dataset_dir", images, *branch, cwd=bundle)
    if is_classifier(bundle):
        made = json.loads((bundle / "eval" / "inference" / "predictions.json").read_text())["cases"]
    else:
        made = list((bundle / "eval" / "inference").glob("*_seg.nii.gz"))
    assert len(made) == len(list(images.iterdir()))
    assert not any((project / folder).exists() for folder in ("eval", "models"))


@pytest.mark.slow
@each_bundle
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
@each_bundle
def test_two_processes_write_one_checkpoint(name, project, data):
    before = files(project)
    config = overlay(f"bundles/{name}", "train", "multi_gpu_train")
    options = ("--config_file", config, "--dataset_dir", data[name], *SHORT)
    done = succeed(*TORCHRUN, "-m", "monai.bundle", "run", *options, cwd=project)
    check_trained(project, name, before)
    record = json.loads((project / "bundles" / name / "eval" / "run.json").read_text())
    assert record["device"]["processes"] == 2
    assert done.stderr.count("epoch 1/1") == 1


@pytest.mark.slow
@each_bundle
def test_two_processes_evaluate_as_one(name, project, data):
    given = ("--dataset_dir", data[name], "--split", "training")
    succeed(*RUN, "--config_file", f"bundles/{name}/configs/train.json", *given[:2], *SHORT, cwd=project)
    succeed(*RUN, "--config_file", overlay(f"bundles/{name}", "train", "evaluate"), *given, cwd=project)
    folder = project / "bundles" / name / "eval" / "training"
    alone = json.loads((folder / "summary.json").read_text()), sorted((folder / "cases.csv").read_text().splitlines())
    shutil.rmtree(folder)
    config = overlay(f"bundles/{name}", "train", "evaluate", "multi_gpu_evaluate")
    succeed(*TORCHRUN, "-m", "monai.bundle", "run", "--config_file", config, *given, cwd=project)
    assert json.loads((folder / "summary.json").read_text()) == alone[0]
    assert sorted((folder / "cases.csv").read_text().splitlines()) == alone[1]


@pytest.mark.slow
def test_an_override_without_effect_is_refused_in_one_line(project):
    config = "bundles/pretrain_3dseg8/configs/train.json"
    done = run(*RUN, "--config_file", config, "--sample_per_domain", "3", cwd=project)
    assert done.returncode != 0
    line = "override 'sample_per_domain' matches no id of train.json; did you mean 'samples_per_domain'?\n"
    assert NOTICE.sub("", done.stderr) == line


def missing(folder):
    shutil.rmtree(folder)
    return folder


def empty(folder):
    missing(folder).mkdir()
    return folder


def without_liver(folder):
    path = sorted(folder.glob("labelsTr/*"))[1]
    label = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    return path


def truncated(folder):
    path = sorted(folder.glob("imagesTr/*"))[2]
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def of_another_shape(folder):
    path = sorted(folder.glob("labelsTr/*"))[0]
    label = nibabel.load(path)
    nibabel.save(label.slicer[:-1], path)
    return path


def without_label(folder):
    path = sorted(folder.glob("labelsTr/*"))[0]
    path.unlink()
    return path


def flat(folder):
    path = sorted(folder.glob("imagesTr/*"))[0]
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, :, 0], image.affine), path)
    return path


def with_nan(folder):
    path = sorted(folder.glob("imagesTr/*"))[0]
    image = nibabel.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[5, 5, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    return path


FAULTS = [missing, empty, without_liver, truncated, of_another_shape, without_label, flat, with_nan]


@pytest.mark.slow
@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_bad_input_is_one_line_with_the_files_name_and_nothing_half_written(damage, project, data, tmp_path):
    folder = tmp_path / "liver"
    shutil.copytree(data["lits_coarse"], folder)
    named = damage(folder)
    config = "bundles/lits_coarse/configs/train.json"
    done = run(*RUN, "--config_file", config, "--dataset_dir", folder, *SHORT, cwd=project)
    assert done.returncode != 0
    said = NOTICE.sub("", done.stderr)
    assert said.count("\n") == 1, said
    assert str(named) in said
    assert "Traceback" not in done.stdout
    left = {path.rpartition("/")[2] for path in files(project / "bundles" / "lits_coarse")}
    assert left.isdisjoint({"datalist.json", "facts.json", "model.pt", "training_state.pt", "card.json"})

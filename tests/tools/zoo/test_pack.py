from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import med3d_ext
from med3d_ext.tools import cli
from med3d_ext.tools.weights import release

NAME = "tiny_segmentation"
PACKAGE = Path(med3d_ext.__file__).parent


def pack(*words):
    return cli.main(["zoo", "pack", *map(str, words)])


def unpack(folder):
    with zipfile.ZipFile(folder / f"{NAME}_v0.2.0.zip") as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked" / NAME


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *words):
    assert pack(*words) == 2
    said = capsys.readouterr().err.splitlines()
    return said[-1]


def test_an_archive_holds_the_bundle_its_weights_and_this_package(tiny, tmp_path):
    assert pack(tiny, tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == [f"{NAME}_v0.2.0.zip", f"{NAME}_v0.2.0.zip.sha256"]
    held = files(unpack(tmp_path / "out"))
    assert {name for name in held if not name.startswith("med3d_ext/")} == {
        "LICENSE",
        "configs/inference.json",
        "configs/logging.conf",
        "configs/metadata.json",
        "configs/train.json",
        "docs/README.md",
        "docs/data_license.txt",
        "large_files.yml",
        "models/card.json",
        "models/facts.json",
        "models/model.pt",
        "models/model.safetensors",
    }
    own = {f"med3d_ext/{name}" for name in files(PACKAGE) if "__pycache__" not in name}
    assert {name for name in held if name.startswith("med3d_ext/")} == own
    assert {"med3d_ext/__init__.py", "med3d_ext/data/held_out.json"} <= own
    for path in (tmp_path / "out" / "unpacked" / NAME / "configs").glob("*.json"):
        content = json.loads((tiny / "configs" / path.name).read_text())
        assert path.read_text() == json.dumps(content, indent=4) + "\n"


def test_what_runs_leave_in_a_bundle_stays_out_and_strangers_are_named(tiny, tmp_path, capsys, caplog):
    for name in (
        "eval/run.json",
        "eval/tensorboard/events",
        "eval/cache/a.pt",
        "models/training_state.pt",
        "models/model_previous.pt",
        "mlruns/0/meta.yaml",
        "docs/.hidden",
        "configs/__pycache__/a.pyc",
        "med3d_ext/old.py",
    ):
        path = tiny / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a run's")
    with caplog.at_level("INFO"):
        assert pack(tiny, tmp_path) == 0
    unpacked = unpack(tmp_path)
    assert [name for name in files(unpacked) if (unpacked / name).read_bytes() == b"a run's"] == []
    assert "left out: mlruns" in caplog.messages


def test_packing_again_gives_the_same_bytes_whenever_and_wherever(tiny, tmp_path, monkeypatch):
    pack(tiny, tmp_path / "a")
    for path in tiny.rglob("*"):
        os.utime(path, (1e9, 1e9))
        if path.is_file():
            path.chmod(0o600)
    monkeypatch.chdir(tiny.parent.parent)
    pack(NAME, tmp_path / "b")  # by name, from ./bundles
    first, second = ((tmp_path / folder / f"{NAME}_v0.2.0.zip").read_bytes() for folder in "ab")
    assert first == second
    with zipfile.ZipFile(tmp_path / "a" / f"{NAME}_v0.2.0.zip") as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}
    assert {entry.filename.split("/")[0] for entry in entries} == {NAME}


def test_released_weights_come_before_trained_ones_and_it_is_said(tiny, tmp_path, caplog):
    released = torch.load(tiny / "weights" / "model.pt")
    (tiny / "weights").rename(tiny / "models")
    for folder in ("trained", "both"):
        with caplog.at_level("INFO"):
            pack(tiny, tmp_path / folder)
        if folder == "trained":
            assert f"weights: '{tiny / 'models' / 'model.pt'}'" in caplog.messages
            (tiny / "weights").mkdir()
            for path in (tiny / "models").iterdir():
                (tiny / "weights" / path.name).write_bytes(path.read_bytes())
            torch.save({name: value + 1 for name, value in released.items()}, tiny / "models" / "model.pt")
    assert caplog.messages[-1] == f"weights: '{tiny / 'weights' / 'model.pt'}'"
    packed = torch.load(unpack(tmp_path / "both") / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, released[name]) for name, value in packed.items())


def test_weights_are_float32_whatever_the_file_holds(tiny, tmp_path):
    given = tmp_path / "small" / "model.pt"
    release(str(tiny / "weights" / "model.pt"), str(given))
    assert torch.load(given)["weight"].dtype == torch.float16
    pack(tiny, tmp_path, "--weights", given)
    models = unpack(tmp_path) / "models"
    for state in (torch.load(models / "model.pt", weights_only=True), load_file(models / "model.safetensors")):
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert torch.equal(state["weight"], torch.load(given)["weight"].float())
        torch.nn.Conv3d(1, 2, 3).load_state_dict(state)
    assert json.loads((models / "card.json").read_text())["precision"].startswith("convolutions rounded")


def test_an_archive_with_other_content_is_replaced_only_when_asked(tiny, tmp_path, capsys):
    assert pack(tiny, tmp_path) == 0
    assert pack(tiny, tmp_path) == 0  # the same bytes
    before = files(tmp_path)
    (tiny / "docs" / "README.md").write_text("# Other\n")
    assert "exists with other content; raise the version" in refused(capsys, tiny, tmp_path)
    assert files(tmp_path) == before
    assert pack(tiny, tmp_path, "--overwrite") == 0
    assert (unpack(tmp_path) / "docs" / "README.md").read_text() == "# Other\n"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"version": "0.3.0"}, "has no line for version 0.3.0; add it."),
        ({"changelog": None}, "has no line for version 0.2.0; add it."),
        ({"version": "0.10.0"}, "must be three single digits like 0.1.0, got '0.10.0'."),
        ({"version": None}, "must be three single digits like 0.1.0, got 'None'."),
    ],
)
def test_a_version_that_downloaders_would_not_find_is_refused(values, said, tiny, change, tmp_path, capsys):
    change(tiny / "configs" / "metadata.json", **values)
    assert refused(capsys, tiny, tmp_path / "out").endswith(said)
    assert not (tmp_path / "out").exists()


def test_a_name_that_downloaders_cut_is_refused(tiny, tmp_path, capsys):
    other = tiny.rename(tiny.with_name("tiny_v2"))
    assert "without '_v', got 'tiny_v2'; rename it." in refused(capsys, other, tmp_path / "out")


@pytest.mark.parametrize(
    "path",
    [
        "/home/somebody/data",
        "file:///home/somebody/data",
        "/Users/somebody/data",
        str(Path("/root") / "x"),
        "/scratch/lab/x",
        "C:\\Users\\somebody",
        "C:\\\\Users\\\\somebody",
        str(Path.home() / "data"),
    ],
)
def test_a_path_of_somebodys_machine_is_refused_in_any_text(path, tiny, tmp_path, capsys):
    (tiny / "docs" / "notes.txt").write_text(f"see '{path}' for more")
    said = refused(capsys, tiny, tmp_path / "out")
    assert said.startswith("'docs/notes.txt' holds a path of somebody's machine (")
    assert not (tmp_path / "out").exists()


def test_addresses_and_examples_are_no_paths_of_machines(tiny, tmp_path):
    (tiny / "docs" / "notes.txt").write_text("https://example.org/home/x ~/mnt/x ../mnt/x /data/Task03_Liver ./mnt/a")
    assert pack(tiny, tmp_path) == 0


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"weight": torch.zeros(2, 1, 3, 3, 3)}, "it lacks 1 of the network's 2 tensors, bias first"),
        (
            {"weight": torch.zeros(2, 1, 3, 3, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
            "it holds 1 tensors that the network lacks, more first",
        ),
        (
            {"weight": torch.zeros(3, 1, 3, 3, 3), "bias": torch.zeros(3)},
            "it has 2 tensors of other shapes: weight is (3, 1, 3, 3, 3), the network's is (2, 1, 3, 3, 3)",
        ),
        (
            {"weight": torch.full((2, 1, 3, 3, 3), torch.nan), "bias": torch.zeros(2)},
            "it holds values that are not finite in weight",
        ),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(state, said, tiny, tmp_path, capsys):
    torch.save(state, tiny / "weights" / "model.pt")
    message = refused(capsys, tiny, tmp_path / "out")
    network = "(network Conv3d, in_channels 1, out_channels 2, kernel_size 3)"
    assert f"model.pt' does not fit the network of configs/inference.json {network}: {said}; give" in message
    assert not (tmp_path / "out").exists()


def test_missing_weights_and_what_belongs_to_them_are_named(tiny, tmp_path, capsys):
    assert "--weights must be a file or random, and 'none.pt' is not a file." in refused(
        capsys, tiny, tmp_path / "out", "--weights", "none.pt"
    )
    (tiny / "weights" / "facts.json").unlink()
    assert "facts.json' is missing: it holds" in refused(capsys, tiny, tmp_path / "out")
    (tiny / "weights" / "model.pt").unlink()
    assert "has neither weights/model.pt nor models/model.pt; train it, or" in refused(capsys, tiny, tmp_path / "out")
    assert "has no med3d_ext.handlers.card.WeightsCard" in refused(
        capsys, tiny, tmp_path / "out", "--weights", "random"
    )


def test_a_bundle_without_its_files_is_refused(tiny, tmp_path, capsys):
    (tiny / "LICENSE").unlink()
    (tiny / "docs" / "README.md").unlink()
    assert "lacks LICENSE, docs/README.md; a bundle that others use has them." in refused(capsys, tiny, tmp_path)


TRAIN = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "output_dir": "eval",
    "ckpt_dir": "models",
    "dataset_dir": None,
    "init": "med3d",
    "data": {
        "_target_": "med3d_ext.data.PreparedData",
        "kind": "lits",
        "dataset_dir": "@dataset_dir",
        "output_dir": "@output_dir",
    },
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 3},
    "train": {
        "dataset": {"_target_": "Dataset", "data": "$@data.training"},
        "handlers": [
            {
                "_target_": "med3d_ext.handlers.card.WeightsCard",
                "ckpt_dir": "@ckpt_dir",
                "data": "@data",
                "dataset": "@train::dataset",
                "network_name": "tiny",
                "init": "@init",
                "spatial_size": [32, 32, 32],
                "evaluator": "@missing",
            }
        ],
    },
}


def test_random_weights_are_called_so_and_have_all_that_inference_reads(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("med3d_ext.tools.zoo.pack.PHANTOMS", 2)
    (tiny / "configs" / "train.json").write_text(json.dumps(TRAIN))
    for folder in "ab":
        assert pack(tiny, tmp_path / folder, "--weights", "random") == 0
    first, second = ((tmp_path / folder / f"{NAME}_v0.2.0.zip").read_bytes() for folder in "ab")
    assert first == second
    models = unpack(tmp_path / "a") / "models"
    packed = torch.load(models / "model.pt", weights_only=True)
    assert not torch.equal(packed["weight"], torch.load(tiny / "weights" / "model.pt")["weight"])
    card = json.loads((models / "card.json").read_text())
    assert card["weights"] == "random: never trained"
    assert (card["init"], card["epochs"], card["best"]) == ("scratch", 0, None)
    assert card["cases"] == {"training": [], "validation": []}
    (domain,) = json.loads((models / "facts.json").read_text())["domains"].values()
    assert domain["spatial_size"] == [32, 32, 32]
    assert len(domain["spacing_mean"]) == 3

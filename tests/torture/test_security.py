"""Weights never run code, archives stay in their folder, nothing calls home, data are never evaluated."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import re
import stat
import zipfile
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from catalogue import Code
from commands import MED3D, MONAI, REPOSITORY, refused, train_words, tree
from results import differing

pytestmark = pytest.mark.quick
SOURCES = [
    path for path in REPOSITORY.rglob("*.py") if path.relative_to(REPOSITORY).parts[0] in ("med3d_ext", "bundles")
]


@cache
def calls() -> list[tuple[Path, ast.Call, str]]:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                found.append((path, node, ast.unparse(node.func)))
    return found


def test_torch_load_is_only_called_for_tensors():
    loads = [(path, node) for path, node, name in calls() if name == "torch.load"]
    assert loads
    for path, node in loads:
        safe = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("weights_only")
        assert safe == "True", f"{path}:{node.lineno}"


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    forbidden = r"(pickle|dill|joblib|shelve|marshal)\.loads?|eval|exec|os\.system|os\.popen|yaml\.(unsafe_)?load"
    found = [f"{path}:{node.lineno} {name}" for path, node, name in calls() if re.fullmatch(forbidden, name)]
    assert found == []
    words = [(path, word.arg, ast.unparse(word.value)) for path, node, _ in calls() for word in node.keywords]
    assert [word for word in words if word[1] == "shell" or word[1:] == ("allow_pickle", "True")] == []


CARRIERS = {
    "plain": lambda path: path.write_bytes(pickle.dumps(Code())),
    "old protocol": lambda path: path.write_bytes(pickle.dumps(Code(), 0)),
    "archive": lambda path: torch.save({"state_dict": {"a": torch.zeros(2)}, "config": Code()}, path),
    "legacy archive": lambda path: torch.save(Code(), path, _use_new_zipfile_serialization=False),
    "module": lambda path: torch.save(torch.nn.Conv3d(1, 1, 1), path),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "words",
    [
        ["weights", "inspect", "w.pt"],
        ["weights", "convert", "w.pt", "o.pt"],
        ["weights", "release", "w.pt", "o.pt"],
        ["weights", "join", "w.pt", "w.pt", "o.pt"],
        ["zoo", "pack", "{own}", "zoo", "--weights", "w.pt"],
    ],
    ids=" ".join,
)
def test_code_in_weights_is_refused_and_never_run(carrier, words, trained, shell, place):
    CARRIERS[carrier](place / "w.pt")
    done = shell.run(MED3D, *(word.format(own=trained) for word in words), folder=place)
    refused(done, "w.pt", code=2)
    assert not (place / "ran").exists()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_code_in_initial_weights_is_refused_and_never_run(carrier, data, shell, place):
    CARRIERS[carrier](place / "w.pt")
    words = train_words("lits_coarse", data["lits_coarse"], place)
    words[words.index("scratch")] = "w.pt"
    refused(shell.run(MONAI, *words, folder=place), "w.pt", code=1)
    assert not (place / "ran").exists()


def archive(place: Path, *entries: tuple[zipfile.ZipInfo | str, bytes | str]) -> None:
    """``zoo/own_v0.1.0.zip`` with its checksum."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in entries:
            file.writestr(name, text)
    (place / "zoo").mkdir()
    (place / "zoo/own_v0.1.0.zip").write_bytes(content.getvalue())
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    (place / "zoo/own_v0.1.0.zip.sha256").write_text(f"{digest}  own_v0.1.0.zip\n")


def link_to(target: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("own/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


METADATA = ("own/configs/metadata.json", json.dumps({"version": "0.1.0"}))
EVIL = {
    "above": [METADATA, ("own/../../evil", "x")],
    "absolute": [METADATA, ("/tmp/torture-evil", "x")],
    "beside": [METADATA, ("other/evil", "x")],
    "backslashes": [METADATA, ("own\\..\\..\\evil", "x")],
    "link": [METADATA, (link_to("/etc"), "/etc")],
    "code in weights": [METADATA, ("own/models/model.pt", pickle.dumps(Code()))],
    "pickle": [METADATA, ("own/models/facts.pkl", pickle.dumps(Code()))],
    "another version": [("own/configs/metadata.json", json.dumps({"version": "9.0.0"}))],
    "no bundle": [("own/readme", "x")],
    "twice": [METADATA, METADATA],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_is_not_a_plain_bundle_is_refused_and_leaves_nothing(name, shell, place):
    archive(place, *EVIL[name])
    before = tree(place)
    done = shell.run(MED3D, "zoo", "fetch", "own", "--source", "zoo", "--output", "out", folder=place)
    refused(done, code=2)
    assert (
        differing(tree(place), before) == []
        and not Path("/tmp/torture-evil").exists()
        and not (place.parent / "evil").exists()
    )


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(shell, place):
    """Refused by what it states, before a disk is full."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(*METADATA)
        with file.open("own/docs/README.md", "w") as entry:
            for _ in range(256):
                entry.write(bytes(1 << 20))
    (place / "zoo").mkdir()
    (place / "zoo/own_v0.1.0.zip").write_bytes(content.getvalue())
    (place / "zoo/own_v0.1.0.zip.sha256").write_text(hashlib.sha256(content.getvalue()).hexdigest())
    done = shell.run(MED3D, "zoo", "fetch", "own", "--source", "zoo", "--output", "out", folder=place)
    refused(done, code=2)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".xml"])
def test_a_sentence_of_python_in_data_stays_a_sentence(suffix, shell, place):
    """What a config would evaluate ($...) and what fire would parse is text in data."""
    text = "$__import__('os').mkdir('ran')"
    if suffix == ".json":
        tiny.decathlon(place / "data", 3, ("background", text, "__import__('os').mkdir('ran')"), text)
        words = ["prepare", "lits", "data", "--output", "out"]
    elif suffix == ".csv":
        tiny.nodules(place / "data")
        (place / "data/nodules.csv").write_text(f'nodule,malignancy\n"{text}",1\nn1,"{text}"\n')
        words = ["prepare", "nodules", "data", "--output", "out"]
    else:
        (place / "data").mkdir()
        (place / "data/r.xml").write_text(
            f"<LidcReadMessage><SeriesInstanceUid>{text}</SeriesInstanceUid></LidcReadMessage>"
        )
        words = ["prepare", "lidc", "data", "--output", "out"]
    done = shell.run(MED3D, *words, folder=place)
    assert "Traceback" not in done.err and not (place / "ran").exists(), done


def test_labels_of_a_new_bundle_are_text_in_its_configs(shell, place):
    text = "$__import__('os').mkdir('ran')"
    tiny.decathlon(place / "data", 3, ("background", text, "@device"), "MRI")
    done = shell.run(MED3D, "new-bundle", "evil", "--dataset_dir", "data", folder=place)
    if done.code == 0:
        done = shell.run(MONAI, *train_words(place / "evil", place / "data", place, 1), folder=place)
        shell.run(MED3D, "check", "evil", "--dataset_dir", "data", folder=place)
    assert "Traceback" not in done.err and not (place / "ran").exists(), done


def test_file_names_are_text_in_pages_and_commands(trained, shell, place):
    tiny.images(place / "scans", 1)
    name = "<img src=x onerror=alert(1)>$(touch ran);`touch ran`"
    (place / "scans/scan_0.nii.gz").rename(place / "scans" / f"{name}.nii.gz")
    done = shell.run(MED3D, "predict", trained, "scans", "--output", "out", folder=place)
    assert done.code == 0 and not (place / "ran").exists(), done


def test_a_report_holds_no_markup_of_the_data(shell, place):
    label = "<script>alert(1)</script>"
    tiny.decathlon(place / "data", 4, ("background", label), "MRI")
    assert shell.run(MED3D, "new-bundle", "own", "--dataset_dir", "data", folder=place).code == 0
    words = train_words(place / "own", place / "data", place / "own", 1)
    done = shell.run(MONAI, *words, folder=place)
    assert done.code == 0, done
    done = shell.run(MED3D, "report", "own", folder=place)
    assert done.code == 0, done
    assert "<script>alert" not in next((place / "own").rglob("report.html")).read_text()


@pytest.mark.parametrize("task", ["train", "predict", "prepare", "evaluate", "check", "pack", "fetch"])
def test_nothing_calls_home(task, trained, data, shell, place):
    """Name look-ups, connections and listening sockets end the command with code 99."""
    tiny.decathlon(place / "data")
    tiny.images(place / "scans", 1)
    commands = {
        "train": (MONAI, train_words("pretrain_3dseg8", data["pretrain_3dseg8"], place, 1)),
        "predict": (MED3D, ["predict", trained, "scans", "--output", "out"]),
        "prepare": (MED3D, ["prepare", "lits", "data", "--output", "out"]),
        "evaluate": (MED3D, ["evaluate", "data/labelsTr", "data/labelsTr"]),
        "check": (MED3D, ["check", trained, "--dataset_dir", data["pretrain_3dseg8"]]),
        "pack": (MED3D, ["zoo", "pack", trained, "zoo"]),
        "fetch": (MED3D, ["zoo", "fetch", "own", "--source", "zoo", "--output", "out"]),
    }
    if task == "fetch":
        assert shell.run(MED3D, *commands["pack"][1], folder=place).code == 0
    module, words = commands[task]
    done = shell.run(module, *words, folder=place, before="import faults; faults.offline()")
    assert done.code == 0, done


def test_no_server_of_the_project_listens_to_other_machines():
    found = [
        path
        for path in SOURCES
        if re.search(r"0\.0\.0\.0|import socket|HTTPServer|uvicorn|\.listen\(", path.read_text())
    ]
    assert found == []

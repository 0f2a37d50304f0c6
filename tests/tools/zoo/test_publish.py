from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile

import pytest
import torch
import yaml

from med3d_ext.tools import cli
from med3d_ext.tools.zoo.fetch import read_list

NAME = "tiny_segmentation"
RELEASE = f"{NAME}_v0.2.0"


def publish(*words):
    return cli.main(["zoo", "publish", *map(str, words)])


@pytest.fixture
def published(tiny, tmp_path):
    assert publish(tiny, tmp_path / "out", "--url", "https://example.org/v1/") == 0
    return tmp_path / "out"


def front_matter(readme):
    start, head, body = readme.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head), body


def test_a_release_is_a_folder_of_files_with_their_sums(published):
    folder = published / "github" / RELEASE
    assert sorted(os.listdir(folder)) == [
        "RELEASE_NOTES.md",
        "SHA256SUMS",
        "large_files.yml",
        f"{RELEASE}.zip",
        f"{RELEASE}.zip.sha256",
        f"{RELEASE}_card.json",
        f"{RELEASE}_facts.json",
        f"{RELEASE}_model.pt",
        f"{RELEASE}_model.safetensors",
    ]
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == 5
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, check=True)
    with zipfile.ZipFile(folder / f"{RELEASE}.zip") as archive:
        inside = archive.read(f"{NAME}/models/model.pt")
    assert (folder / f"{RELEASE}_model.pt").read_bytes() == inside


def test_the_notes_say_what_changed_what_the_weights_are_and_how_to_get_them(published):
    notes = (published / "github" / RELEASE / "RELEASE_NOTES.md").read_text()
    for text in (
        "# Tiny segmentation 0.2.0",
        "better weights",
        "- network: `tiny`",
        "- started from: `scratch`, 3 epochs",
        "by which the epoch was chosen: val_mean_dice 0.500",
        "- training cases: 1 (x 1)",
        "- validation cases: 0\n",
        f"--name {NAME} --url <this release>/{RELEASE}.zip",
        "Generated data.",
    ):
        assert text in notes
    assert "first" not in notes.split("## Weights")[0]


def test_the_list_of_large_files_is_what_a_pull_request_needs(published):
    folder = published / "github" / RELEASE
    entries = read_list(folder)
    assert [entry["path"] for entry in entries] == ["models/model.pt", "models/model.safetensors"]
    for entry in entries:
        assert entry["url"].startswith("https://example.org/v1/tiny")
        content = (folder / entry["url"].rpartition("/")[2]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["hash_val"]


def test_a_hub_repository_is_the_bundle_with_a_model_card(published):
    folder = published / "huggingface" / NAME
    for name in ("LICENSE", "configs/inference.json", "models/model.pt", "med3d_ext/__init__.py", ".gitattributes"):
        assert (folder / name).is_file()
    torch.nn.Conv3d(1, 2, 3).load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    head, body = front_matter((folder / "README.md").read_text())
    assert head["license_link"] == "docs/data_license.txt"
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == ("other", "monai", "image-segmentation")
    assert head["tags"] == ["monai", "medical", "3d", "med3d", "ct"]
    assert body.strip().startswith("# Tiny\n\nSegments something small.")
    assert f"--source huggingface_hub --repo <owner>/{NAME}" in body
    assert "- training cases: 1 (x 1)" in body


def test_the_front_matter_holds_any_description_as_it_is(tiny, change, tmp_path):
    text = """He said: "it's a # <liver> & {{ more }}" - Ödem"""
    change(tiny / "configs" / "metadata.json", description=text)
    publish(tiny, tmp_path / "out", "--form", "huggingface")
    head, _ = front_matter((tmp_path / "out" / "huggingface" / NAME / "README.md").read_text(encoding="utf-8"))
    assert head["description"] == text


def test_a_classifier_is_tagged_as_one_and_random_weights_are_called_so(tiny, change, tmp_path):
    metadata = json.loads((tiny / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["format"] = "probabilities"
    (tiny / "configs" / "metadata.json").write_text(json.dumps(metadata))
    change(tiny / "weights" / "card.json", weights="random: never trained", best=None)
    publish(tiny, tmp_path / "out", "--form", "huggingface")
    assert os.listdir(tmp_path / "out") == ["huggingface"]
    head, body = front_matter((tmp_path / "out" / "huggingface" / NAME / "README.md").read_text())
    assert head["pipeline_tag"] == "image-classification"
    assert "- **random: never trained**" in body
    assert "started from" not in body


def test_existing_folders_are_replaced_only_when_asked(tiny, published, capsys):
    (published / "github" / RELEASE / "notes.txt").write_text("by hand")
    assert publish(tiny, published) == 2
    assert f"{RELEASE}' exists; give another folder or --overwrite." in capsys.readouterr().err
    assert publish(tiny, published, "--overwrite", "--form", "github") == 0
    assert not (published / "github" / RELEASE / "notes.txt").exists()
    assert not (published / "github" / RELEASE / "large_files.yml").exists()


def test_a_fault_leaves_nothing_half_written(tiny, tmp_path, capsys):
    assert publish(tiny, tmp_path / "out", "--form", "gitlab") == 2
    assert "--form must be github, huggingface or both, got 'gitlab'." in capsys.readouterr().err
    (tiny / "docs" / "notes.txt").write_text("/home/somebody/x")
    assert publish(tiny, tmp_path / "out") == 2
    assert os.listdir(tmp_path / "out") == []

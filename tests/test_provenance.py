from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import med3d_ext
from med3d_ext.run import provenance
from med3d_ext.run.provenance import command_line, git_state, portable, versions


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder and a home next to each other."""
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with the package's folder in it."""
    folder = tmp_path / "checkout" / "med3d_ext"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "one")):
        subprocess.run([*git, *command], cwd=folder.parent, check=True)
    monkeypatch.setattr(provenance, "_FOLDER", folder)
    return folder


def test_paths_become_relative_to_the_working_folder_or_the_home(work, monkeypatch):
    value = {
        "inside": f"{work}/here/bundles/a/models",
        "home": f"{work}/home/data",
        "elsewhere": f"{work}/data",
        "list": [f"{work}/here", Path(work / "home"), 3, None],
        f"{work}/here/key": f"$@x + '{work}/here/a'",
        "expression": "$@bundle_root + '/models'",
        "sentence": f"{work}/here/a.nii is truncated; copy it to {work}/home.",
    }
    assert portable(value) == {
        "inside": "bundles/a/models",
        "home": "~/data",
        "elsewhere": "../data",
        "list": [".", "~", 3, None],
        "key": "$@x + 'a'",
        "expression": "$@bundle_root + '/models'",
        "sentence": "a.nii is truncated; copy it to ~.",
    }
    monkeypatch.setattr(os, "getcwd", lambda: "/")  # no prefix
    assert portable("$a + '/b'") == "$a + '/b'"
    assert portable("/b/c") == "b/c"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/env/lib/monai/bundle/__main__.py", "python -m monai.bundle run --config_file a.json --name 'x y'"),
        ("/env/lib/med3d_ext/__main__.py", "python -m med3d_ext run --config_file a.json --name 'x y'"),
        ("/env/bin/med3d_ext", "med3d_ext run --config_file a.json --name 'x y'"),
    ],
)
def test_the_command_is_the_one_that_a_user_types(work, monkeypatch, program, command):
    monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", f"{work}/here/a.json", "--name", "x y"])
    assert command_line() == {"command": command, "folder": "."}


def test_the_git_state_names_the_revision_and_changed_files(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    assert command_line()["folder"] == "med3d_ext"  # relative to the checkout
    clean = git_state()
    assert len(clean["revision"]) == 40
    assert clean["dirty"] is False
    (checkout / "new.txt").write_text("untracked")
    assert git_state() == clean
    (checkout / "__init__.py").write_text("changed")
    assert git_state() == {**clean, "dirty": True}


def test_a_package_that_is_no_part_of_the_checkout_has_no_git_state(checkout, monkeypatch):
    installed = checkout.parent / ".venv" / "med3d_ext"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(provenance, "_FOLDER", installed)
    assert git_state() is None
    monkeypatch.setenv("PATH", "")  # without git
    assert git_state() is None


def test_the_versions_are_those_that_run(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("torch", "no-such-package"))
    own = {"python": sys.version.split()[0], "med3d_ext": med3d_ext.__version__}
    assert versions() == {**own, "torch": torch.__version__, "no-such-package": None}

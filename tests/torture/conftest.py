"""Small data, a trained bundle and a quick shell for the torture."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "data"))  # lidc_files

import tiny  # noqa: E402
from commands import MED3D, MONAI, REPOSITORY, Done, Shell  # noqa: E402

BUNDLES = {
    "lits_coarse": lambda folder: tiny.decathlon(folder),
    "lits_fine": lambda folder: tiny.decathlon(folder),
    "lung_segmentation": lambda folder: tiny.decathlon(folder, labels=("background", "lung")),
    "pretrain_3dseg8": lambda folder: tiny.decathlon(folder, labels=("background", "a", "b"), modality="MRI"),
    "nodule_classification": lambda folder: tiny.nodules(folder),
}
"""A maker of fitting data for each bundle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker("torture")


@pytest.fixture(scope="session")
def shell() -> Iterator[Shell]:
    """Where commands are typed."""
    shell = Shell()
    yield shell
    shell.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, removed after the test: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data for each bundle; no test writes into it."""
    folder = tmp_path_factory.mktemp("data")
    return {name: make(folder / f"data_{name}") for name, make in BUNDLES.items()}


def config(bundle: str | Path, *names: str) -> str:
    """``--config_file`` of a bundle's configs."""
    folder = (REPOSITORY / "bundles" / bundle if isinstance(bundle, str) else bundle) / "configs"
    files = [str(folder / f"{name}.json") for name in names or ("train",)]
    return files[0] if len(files) == 1 else str(files).replace(" ", "")


def train_words(bundle: str | Path, data: Path, output: Path, epochs: int = 2) -> list[object]:
    """The shortest training of a bundle into a folder of its own."""
    words: list[object] = ["run", "--config_file", config(bundle), "--dataset_dir", data, "--epochs", epochs]
    words += ["--spatial_size", "[32,32,32]", "--init", "scratch", "--batch_size", 1, "--val_interval", 1]
    return words + ["--output_dir", output / "eval", "--ckpt_dir", output / "models"]


@pytest.fixture(scope="session")
def trained(shell: Shell, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one's own (classes a and b) after one epoch; no test writes into it."""
    folder = tmp_path_factory.mktemp("own")
    source = data["pretrain_3dseg8"]
    made = shell.run(MED3D, "new-bundle", "own", "--dataset_dir", source, folder=folder)
    assert made.code == 0, made
    words = train_words(folder / "own", source, folder / "own", epochs=1)
    done = shell.run(MONAI, *words, folder=folder)
    assert done.code == 0, done
    for state in (folder / "own").rglob("training_state.pt"):
        state.unlink()  # 170 MB that nobody reads
    return folder / "own"


@pytest.fixture
def own(trained: Path, place: Path) -> Path:
    """A copy of :func:`trained` to write into; its weights are hard links."""
    shutil.copytree(trained, place / "own", copy_function=_link)
    return place / "own"


def _link(source: str, target: str) -> None:
    (os.link if source.endswith(".pt") else shutil.copy2)(source, target)


@pytest.fixture
def mount(place: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a tmpfs (``size``) or a read-only view of a folder (``source``); skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(name: str, size: str | None = None, source: Path | None = None) -> Path:
        target = place / name
        target.mkdir(parents=True)
        steps = [["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]] if size else [["--bind", str(source)]]
        steps += [] if size else [["-o", "remount,bind,ro"]]
        for step in steps:
            done = subprocess.run(["mount", *step, str(target)], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
            if target not in mounted:
                mounted.append(target)
        return target

    yield mount
    for target in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(target)], check=True)


def refused(done: Done, *names: str, code: int | None = None) -> None:
    """A sentence that names what is at fault, the right exit code, and no traceback."""
    assert "Traceback" not in done.err + done.out, done
    assert done.code > 0 if code is None else done.code == code, done
    for name in names:
        assert name in done.err, f"the message does not name {name!r}\n{done}"


def cards(path: Path) -> dict:
    """A JSON file."""
    return dict(json.loads(path.read_text()))

"""Small data, a trained bundle and a quick shell for the torture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(1, str(Path(__file__).parents[1] / "data"))  # lidc_files

import tiny  # noqa: E402
from commands import MED3D, MONAI, Shell, link, train_words  # noqa: E402


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
    return {name: make(folder / f"data_{name}") for name, make in tiny.BUNDLES.items()}


@pytest.fixture(scope="session")
def trained(shell: Shell, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one's own (classes a and b) after one epoch, one for all workers; no test writes into it."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            draft = tmp_path_factory.mktemp("draft")
            train_own(shell, data["pretrain_3dseg8"], draft)
            draft.rename(folder)
    return folder / "own"


def train_own(shell: Shell, source: Path, folder: Path) -> None:
    made = shell.run(MED3D, "new-bundle", "own", "--dataset_dir", source, folder=folder)
    assert made.code == 0, made
    words = train_words(folder / "own", source, folder / "own", epochs=1)
    done = shell.run(MONAI, *words, folder=folder)
    assert done.code == 0, done
    for state in (folder / "own").rglob("training_state.pt"):
        state.unlink()  # 170 MB that nobody reads


@pytest.fixture
def own(trained: Path, place: Path) -> Path:
    """A copy of :func:`trained` to write into; its weights are hard links."""
    shutil.copytree(trained, place / "own", copy_function=link)
    return place / "own"


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


def pytest_terminal_summary(terminalreporter) -> None:
    """What was tried, summed over the cases of each test that counts it, and what failed of it."""
    tried: dict[str, Counter[str]] = {}
    failed = Counter(each.nodeid.partition("[")[0] for each in terminalreporter.getreports("failed"))
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when == "call" and type(report).__name__ == "TestReport" and "torture" in report.nodeid:
            for key, value in report.user_properties:
                tried.setdefault(report.nodeid.partition("[")[0], Counter())[key] += value
    for test, counts in tried.items():
        facts = ", ".join(f"{key} {round(value, 2)}" for key, value in counts.items())
        terminalreporter.write_line(f"{test.rpartition('::')[2]}: tried: {facts}; failed: {failed[test]}")

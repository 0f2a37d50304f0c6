"""A Python that has not this repository: MONAI, torch, numpy, and what a bundle's metadata asks for; nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ALWAYS = ("monai", "torch", "numpy")


class Elsewhere:
    """Runs commands with a Python of its own, in a folder of its own.

    Its site-packages holds links to the installed packages that are asked for and to what those need. Files of the
    ``.pth`` kind are not among them, so that no editable install is found; neither is anything of the test's paths.

    Args:
        folder: a new folder.
        packages: names of installed distributions.
    """

    def __init__(self, folder: Path, packages: Iterable[str]) -> None:
        venv.create(folder / "python", with_pip=False, symlinks=True)
        self.python = folder / "python" / "bin" / "python"
        self.cwd = folder / "work"
        self.cwd.mkdir()
        (site,) = (folder / "python" / "lib").glob("python*/site-packages")
        for path in _files(packages):
            (site / path.name).symlink_to(path)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.environment |= {"OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", "MED3D_CACHE": str(folder / "cache")}

    def run(self, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """``python words...``, in a folder of its own or in ``cwd``, whatever becomes of it."""
        command = [str(self.python), *map(str, words)]
        options = {"cwd": cwd or self.cwd, "env": self.environment, "capture_output": True, "text": True}
        return subprocess.run(command, **options, timeout=900, check=False)

    def succeed(self, *words: object, cwd: Path | None = None) -> str:
        """``python words...``, which must end well; both outputs."""
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr


def packages_of(bundle: Path) -> list[str]:
    """What MONAI's model zoo installs for a bundle."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    return [*ALWAYS, *metadata["required_packages_version"], *metadata.get("optional_packages_version", {})]


def _files(packages: Iterable[str]) -> set[Path]:
    """Files and folders in site-packages of distributions and all that they require."""
    todo, done, found = list(packages), set(), set()
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        installed = distribution(name)
        needs = [Requirement(text) for text in installed.requires or []]
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        root = Path(str(installed.locate_file("")))
        found |= {root / path.parts[0] for path in installed.files or [] if path.parts[0] != ".."}
    return {path for path in found if path.suffix != ".pth" and path.name != "__pycache__" and path.exists()}

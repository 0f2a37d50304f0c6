"""One arm of a study or a comparison: a training and an evaluation in processes of their own, each run once."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_json

if TYPE_CHECKING:
    from med3d_ext.data.prepare import PreparedData

logger = logging.getLogger("med3d_ext.arms")
# Arguments that say where things lie, not what is done with them: an experiment may be moved.
PLACES = ("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "train::dataset::cache_dir")


@dataclass(frozen=True)
class Arm:
    """One setting of an experiment with one seed.

    Args:
        folder: where the arm is written; its name is the arm's.
        arguments: the overrides of its training and of its evaluation.
        facts: what tells it from the experiment's other arms, such as its seed.
        places: the arguments that may change without making another arm of it.
    """

    folder: Path
    arguments: dict[str, Any]
    facts: dict[str, Any]
    places: tuple[str, ...] = PLACES

    @property
    def mark(self) -> Path:
        """What the arm was begun with."""
        return self.folder / "arm.json"

    @property
    def state(self) -> Path:
        """What its training continues from."""
        return self.folder / "models" / "training_state.pt"

    @property
    def model(self) -> Path:
        """Its weights."""
        return self.folder / "models" / "model.pt"

    @property
    def run(self) -> Path:
        """The record of its training."""
        return self.folder / "run.json"

    @property
    def summary(self) -> Path:
        """The figures of its evaluation."""
        return self.folder / "test" / "summary.json"


@dataclass(frozen=True)
class Recipe:
    """What the arms of an experiment have in common.

    Args:
        title: the experiment in a message, as "study 'share'".
        train: the config files of a training; edited ones make other arms.
        evaluate: the overlay that makes an evaluation of them.
        overlays: further overlays of the training that leave its outcome as it is.
        keep_weights: whether a finished arm keeps its weights.
    """

    title: str
    train: Sequence[str]
    evaluate: str
    overlays: Sequence[str] = ()
    keep_weights: bool = True


def arm_mark(arm: Arm, recipe: Recipe, data: PreparedData) -> dict[str, Any]:
    """All that makes the arm's figures: another mark, another arm."""
    arguments = {key: value for key, value in arm.arguments.items() if key not in arm.places}
    config = hashlib.sha256(b"".join(Path(file).read_bytes() for file in recipe.train)).hexdigest()[:16]
    mark = {"arguments": arguments, "facts": arm.facts, "config": config, "data": data_digest(data)}
    return dict(json.loads(json.dumps(mark)))  # as it will be read again


def run_arm(arm: Arm, recipe: Recipe, data: PreparedData) -> None:
    """Run what is left of an arm.

    A finished one is kept, an unfinished one goes on from its checkpoint, one of another mark starts anew. What
    another process, or one that a killed command left behind, is doing in the arm's folder is waited for. The
    checkpoint, three times as large as the weights, is removed when the arm is finished.

    Raises:
        InputError: when a process fails; the message names its log.
    """
    mark = arm_mark(arm, recipe, data)
    with alone_in(arm.folder) as descriptors:
        before = read_json(arm.mark) if arm.mark.is_file() else None
        if before == mark and arm.summary.is_file():
            logger.info(f"{arm.folder.name} is finished")
            return
        arm.summary.unlink(missing_ok=True)
        if before is not None and before != mark:
            logger.warning(f"{arm.folder.name} was run with other settings or data: training it anew")
            for file in (arm.run, arm.state):
                file.unlink(missing_ok=True)
        write_json(arm.mark, mark)
        if not _is_trained(arm):
            _step(arm, "train", [*recipe.train, *recipe.overlays], recipe.title, descriptors)
        _step(arm, "evaluate", [*recipe.train, recipe.evaluate], recipe.title, descriptors)
        for file in (arm.state,) if recipe.keep_weights else (arm.state, arm.model):
            file.unlink(missing_ok=True)


def _is_trained(arm: Arm) -> bool:
    # A training that has ended is not continued but started anew: an evaluation that was cut off must not cost it.
    return arm.model.is_file() and arm.run.is_file() and read_json(arm.run).get("status") == "completed"


def _step(arm: Arm, step: str, files: Sequence[str], title: str, descriptors: Sequence[int]) -> None:
    log = arm.folder / f"{step}.log"
    code = run_bundle({"config_file": list(files), **arm.arguments}, log, descriptors)
    if code != 0:
        raise InputError(
            f"{title} stopped: {step} of {arm.folder.name} failed ({_last_line(log)}); see '{log}', "
            "then type the same command again."
        )


def run_bundle(arguments: Mapping[str, Any], log: Path, descriptors: Sequence[int] = ()) -> int:
    """``python -m monai.bundle run`` in a process of its own.

    Args:
        arguments: all arguments; they stand beside the log in ``<log's name>.json``, which repeats the command.
        log: where its output goes, replaced.
        descriptors: open files that the process inherits.

    Returns:
        its exit code.
    """
    file = log.with_suffix(".json")
    write_json(file, dict(arguments))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(file)]
    with open(log, "wb") as output:
        return subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, pass_fds=descriptors
        ).returncode


@contextmanager
def alone_in(folder: Path) -> Iterator[tuple[int, ...]]:
    """Hold a folder, made where missing: whoever else wants to, waits.

    Yields the descriptors to pass on to processes that work in it. The folder is held until they have ended too,
    also after this process was killed. Without effect on Windows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield ()
        return
    with open(folder / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"waiting for the process that is at work in '{folder}'")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield (file.fileno(),)


def data_digest(data: PreparedData) -> str:
    """A short digest of all cases and their split."""
    cases = [(split, item["domain"], item["sha256"]) for split in ("validation", "test") for item in data.items(split)]
    return hashlib.sha256(f"{data.identity} {sorted(cases)}".encode()).hexdigest()[:16]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no output"

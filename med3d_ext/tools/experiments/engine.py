"""The engine under ``compare`` and the studies: arms, each a training and an evaluation in processes of their own."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_json
from med3d_ext.run.provenance import command_line, git_state, versions

logger = logging.getLogger("med3d_ext.experiments")
# Arguments that say where things are, not what is done with them: an experiment may be moved.
MARK, RUN, SUMMARY = "arm.json", "run.json", "test/summary.json"  # what an arm was begun with, and what it leaves
MODEL, STATE = "models/model.pt", "models/training_state.pt"
CACHE = "train::dataset::cache_dir"
PLACES = ("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", CACHE)


@dataclass(frozen=True)
class Arm:
    """One setting of an experiment with one seed.

    Args:
        folder: where the arm is written; its name is the arm's.
        data: its prepared data.
        overrides: the overrides of its training and of its evaluation, besides folders and seed.
        facts: what distinguishes it from the experiment's other arms, its ``seed`` among them.
    """

    folder: Path
    data: PreparedData
    overrides: Mapping[str, Any]
    facts: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """All overrides."""
        folders = {"output_dir": str(self.folder), "ckpt_dir": str(self.folder / "models")}
        data = {"dataset_dir": str(self.data.folder.resolve())}
        return {**self.overrides, **data, **folders, "seed": self.facts["seed"]}


@dataclass(frozen=True)
class Experiment:
    """What the arms of an experiment have in common, and how they are run.

    Args:
        title: the experiment in a message, as "study 'share'".
        train: the config files of a training; edited ones make other arms.
        evaluate: the overlay that makes an evaluation of them.
        overlays: further overlays of the training that leave its outcome as it is.
        keep_weights: whether a finished arm keeps its weights.
        places: the arguments that may change without making another arm.
    """

    title: str
    train: Sequence[str]
    evaluate: str
    overlays: Sequence[str] = ()
    keep_weights: bool = True
    places: tuple[str, ...] = PLACES

    def run(self, arms: Sequence[Arm]) -> Iterator[Arm]:
        """Run what is left of the arms, and yield each one when it is finished.

        Raises:
            InputError: an arm failed, and the message names its log; or two arms would be written to one folder.
        """
        names = [arm.folder.name for arm in arms]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.title} has two arms that would both be written to '{twice}'; leave one out.")
        began, trained = time.monotonic(), 0
        for number, arm in enumerate(arms):
            left = (time.monotonic() - began) / trained * (len(arms) - number) if trained else None
            place = f"{self.title}: arm {number + 1} of {len(arms)}, {arm.folder.name}"
            logger.info(place + (f", about {left / 60:.0f} min left" if left else ""))
            trained += not (arm.folder / SUMMARY).is_file()
            self.run_arm(arm)
            yield arm

    def run_arm(self, arm: Arm) -> None:
        """Run what is left of an arm.

        A finished one is kept, an unfinished one resumes from its checkpoint, one with another mark starts anew. If
        another process is working in the arm's folder, one left behind by a killed command for example, it is waited
        for. The checkpoint, three times as large as the weights, is removed when the arm is finished.

        Raises:
            InputError: a process failed; the message names its log.
        """
        mark = self.mark(arm)
        with alone_in(arm.folder) as descriptors:
            before = read_json(arm.folder / MARK) if (arm.folder / MARK).is_file() else None
            if before == mark and (arm.folder / SUMMARY).is_file():
                logger.info(f"{arm.folder.name} is finished")
                return
            (arm.folder / SUMMARY).unlink(missing_ok=True)
            if before is not None and before != mark:
                logger.warning(f"{arm.folder.name} was run with other settings or data: training it again")
                for name in (RUN, STATE):
                    (arm.folder / name).unlink(missing_ok=True)
            write_json(arm.folder / MARK, mark)
            # A finished training is not resumed but started anew: an evaluation that was cut off must not cost it.
            files = [arm.folder / MODEL, arm.folder / RUN]
            if not (all(file.is_file() for file in files) and read_json(files[1]).get("status") == "completed"):
                self._step(arm, "train", [*self.train, *self.overlays], descriptors)
            self._step(arm, "evaluate", [*self.train, self.evaluate], descriptors)
            for name in (STATE,) if self.keep_weights else (STATE, MODEL):
                (arm.folder / name).unlink(missing_ok=True)

    def mark(self, arm: Arm) -> dict[str, Any]:
        """All that makes the arm's figures: another mark, another arm."""
        arguments = {key: value for key, value in arm.arguments.items() if key not in self.places}
        config = hashlib.sha256(b"".join(Path(file).read_bytes() for file in self.train)).hexdigest()[:16]
        splits = ("validation", "test")
        keys = ("domain", "sha256", "label_sha256")
        cases = [(split, *map(item.get, keys)) for split in splits for item in arm.data.items(split)]
        data = hashlib.sha256(f"{arm.data.identity} {sorted(cases)}".encode()).hexdigest()[:16]
        mark = {"arguments": arguments, "facts": arm.facts, "config": config, "data": data}
        return dict(json.loads(json.dumps(mark)))  # as it will be read again

    def _step(self, arm: Arm, step: str, files: Sequence[str], descriptors: Sequence[int]) -> None:
        log = arm.folder / f"{step}.log"
        if run_bundle({"config_file": list(files), **arm.arguments}, log, descriptors) != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            said = next((line.strip().rstrip(".") for line in reversed(lines) if line.strip()), "no output")
            raise InputError(
                f"{self.title} stopped: {step} of {arm.folder.name} failed ({said}); see '{log}', "
                "then type the same command again."
            )


def run_bundle(arguments: Mapping[str, Any], log: Path, descriptors: Sequence[int] = ()) -> int:
    """``python -m monai.bundle run`` in a process of its own.

    Args:
        arguments: all arguments; they are kept next to the log in ``<log's name>.json``, which repeats the command.
        log: where its output goes, replaced.
        descriptors: open files that the process inherits.

    Returns:
        its exit code.
    """
    file = log.with_suffix(".json")
    write_json(file, dict(arguments))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(file)]
    with open(log, "wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, pass_fds=descriptors)
    return done.returncode


@contextmanager
def alone_in(folder: Path) -> Iterator[tuple[int, ...]]:
    """Hold a folder, made if missing: whoever else wants it waits.

    Yields the descriptors to pass on to processes that work in it. The folder is held until they have ended too,
    even if this process is killed, which filelock's locks, closed in child processes, do not offer. Without effect on
    Windows.
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


def need_one_process(what: str) -> None:
    """Stop under torchrun.

    Raises:
        InputError: several processes run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{what} starts its own processes; run it without torchrun.")


def origin(data: PreparedData, test: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Where an experiment's figures come from: command, versions, revision, data, test cases by domain or fold."""
    sets = {name: {"n": len(cases), "identity": identity(cases)} for name, cases in test.items()}
    facts = {"name": data.folder.resolve().name, "identity": data.identity, "test": sets}
    return {**command_line(), "versions": versions(), "git": git_state(), "data": facts}


def identity(cases: Sequence[Mapping[str, Any]]) -> str:
    """A short digest of a set of cases."""
    return hashlib.sha256("".join(sorted(case["sha256"] for case in cases)).encode()).hexdigest()[:16]

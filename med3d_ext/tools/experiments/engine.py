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

import numpy as np
import pandas as pd
from monai.bundle import ConfigParser

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, read_json, write_json
from med3d_ext.run.overrides import split_id
from med3d_ext.run.provenance import command_line, git_state, versions
from med3d_ext.run.start import run_arguments

logger = logging.getLogger("med3d_ext.experiments")
MARK, RUN, SUMMARY = "arm.json", "run.json", "test/summary.json"  # what an arm was begun with, and what it leaves
MODEL, STATE = "models/model.pt", "models/training_state.pt"
METRIC = "val_"  # how the columns of cases.csv begin that are metrics
CACHE = "train::dataset::cache_dir"
# Arguments that say where things are, not what is done with them: an experiment may be moved.
PLACES = ("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", CACHE)


@dataclass(frozen=True)
class Arm:
    """One setting of an experiment with one seed."""

    folder: Path  # where it is written; its name is the arm's
    data: PreparedData
    overrides: Mapping[str, Any]  # of its training and of its evaluation, apart from folders and seed
    facts: dict[str, Any]  # what distinguishes it from the experiment's other arms, its ``seed`` among them

    @property
    def arguments(self) -> dict[str, Any]:
        """All overrides."""
        folders = {"output_dir": str(self.folder), "ckpt_dir": str(self.folder / "models")}
        data = {"dataset_dir": str(self.data.folder.resolve())}
        return {**self.overrides, **data, **folders, "seed": self.facts["seed"]}


@dataclass(frozen=True)
class Experiment:
    """What the arms of an experiment have in common, and how they are run."""

    title: str  # in messages, as "study 'share'"
    train: Sequence[str]  # the config files of a training; edited ones make other arms
    evaluate: str  # the overlay that makes an evaluation of them
    overlays: Sequence[str] = ()  # of the training, which leave its outcome as it is
    keep_weights: bool = True  # of a finished arm
    places: tuple[str, ...] = PLACES  # the arguments that may change without making another arm

    def run(self, arms: Sequence[Arm]) -> Iterator[Arm]:
        """Run what is left of the arms, and yield each one when it is finished."""
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
            model, run = arm.folder / MODEL, arm.folder / RUN
            if not (model.is_file() and run.is_file() and read_json(run).get("status") == "completed"):
                self._step(arm, "train", [*self.train, *self.overlays], descriptors)
            self._step(arm, "evaluate", [*self.train, self.evaluate], descriptors)
            for name in (STATE,) if self.keep_weights else (STATE, MODEL):
                (arm.folder / name).unlink(missing_ok=True)

    def mark(self, arm: Arm) -> dict[str, Any]:
        """All that makes the arm's figures: another mark, another arm."""
        arguments = {key: value for key, value in arm.arguments.items() if key not in self.places}
        config = digest(b"".join(Path(file).read_bytes() for file in self.train))
        keys = ("domain", "sha256", "label_sha256")
        cases = [(split, *map(item.get, keys)) for split in ("validation", "test") for item in arm.data.items(split)]
        data = digest(f"{arm.data.identity} {sorted(cases)}".encode())
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
    """``python -m monai.bundle run`` in a process of its own, which inherits ``descriptors``; its exit code.

    Its output replaces ``log``; next to it, ``<log's name>.json`` keeps the arguments and repeats the command.
    """
    file = log.with_suffix(".json")
    write_json(file, dict(arguments))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(file)]
    with open(log, "wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, pass_fds=descriptors)
    return done.returncode


@contextmanager
def alone_in(folder: Path) -> Iterator[tuple[int, ...]]:
    """Hold a folder, made if missing: whoever else wants it waits. Without effect on Windows.

    Yields the descriptors to pass on to processes that work in it. The folder is held until they have ended too,
    even if this process is killed, which filelock's locks, closed in child processes, do not offer.
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


def given_command(
    overlay: str, files: Sequence[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], set[str]]:
    """What an experiment that is an overlay of a bundle's own command was begun with.

    Args:
        overlay: the id that makes a config file the experiment's own overlay.
        files: config files. Defaults to None: those of the command that runs.
        overrides: Defaults to None: the command's.

    Returns:
        path and content of the other files, the overrides of ids that they have, and the ids of all overrides.
    """
    command, typed = run_arguments()
    typed = typed if overrides is None else dict(overrides)
    loaded = {str(file): ConfigParser.load_config_file(file) for file in files or command}
    base = {file: content for file, content in loaded.items() if overlay not in content}
    ids = {key for content in base.values() for key in content}
    arguments = {key: value for key, value in typed.items() if split_id(key)[0] in ids}
    return base, arguments, {"::".join(split_id(name)) for name in typed}


def check_plan(what: str, **lists: Sequence[Any]) -> None:
    """Stop under torchrun, and on a list that is empty or has something twice."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{what} starts its own processes; run it without torchrun.")
    for name, given in lists.items():
        if not given or len(set(map(str, given))) < len(given):
            raise InputError(f"{name} of {what} must be one or more different ones, got {list(given)}.")


def origin(data: PreparedData, test: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Where an experiment's figures come from: command, versions, revision, data, test cases by domain or fold."""
    sets = {name: {"n": len(cases), "identity": identity(cases)} for name, cases in test.items()}
    facts = {"name": data.folder.resolve().name, "identity": data.identity, "test": sets}
    return {**command_line(), "versions": versions(), "git": git_state(), "data": facts}


def identity(cases: Sequence[Mapping[str, Any]]) -> str:
    """A short digest of a set of cases."""
    return digest("".join(sorted(case["sha256"] for case in cases)).encode())


def digest(content: bytes) -> str:
    """Enough of a SHA-256 to tell apart what one user has."""
    return hashlib.sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class ArmResult:
    """What a finished arm left behind."""

    facts: Mapping[str, Any]  # ``seed``, and ``value``, or ``start``, ``share`` and ``fold``
    folder: Path
    record: Mapping[str, Any]  # its ``run.json``
    losses: np.ndarray  # of every iteration
    history: pd.DataFrame  # ``history.csv``, each row with the ``iteration`` that its epoch ended with
    cases: pd.DataFrame  # a row per test case: ``domain``, ``case``, ``sha256`` of its image, and its numbers
    training: Sequence[Mapping[str, Any]]  # its training cases, as its card lists them

    @property
    def effort(self) -> dict[str, Any]:
        """Epochs; seconds of the training since its last start; how often it was started; the device."""
        run = self.record
        facts = {"epochs": run["epochs"], "seconds": run["duration_seconds"]}
        return {**facts, "starts": 1 + len(run["earlier"]), "device": run["device"]}


def read_result(arm: Arm) -> ArmResult:
    """Read a finished arm; refused if it was not evaluated on exactly its data's test cases."""
    folder = arm.folder
    record, card = read_json(folder / RUN), read_json(folder / "models" / "card.json")
    test = [item for item in arm.data.test if item["domain"] in record["data"]]  # a study's arm may lack domains
    chosen = {case["sha256"] for split in ("training", "validation") for case in card["cases"].get(split, [])}
    for item in test:
        if item["sha256"] in chosen or item["sha256"] not in record["data"][item["domain"]].values():
            raise InputError(
                f"'{folder}' has other test cases of {item['domain']} than the experiment's data; remove it."
            )
    losses, history = _read_table(folder / "loss.csv"), _read_table(folder / "history.csv")
    history["iteration"] = history["epoch"].map(losses.groupby("epoch")["iteration"].last())
    cases = _read_cases(folder / "test" / "cases.csv", test)
    return ArmResult(arm.facts, folder, record, losses["loss"].to_numpy(), history, cases, card["cases"]["training"])


def _read_cases(path: Path, test: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of an evaluation with the SHA-256 of their images: every test case once."""
    cases = _read_table(path)
    left, hashes = list(test), []
    for domain, name in zip(cases.get("domain", []), cases.get("case", [])):
        # the arms of an experiment evaluate in one order, so files of one name in several folders come in it too
        called = [item for item in left if name in (case_name(item["image"]), os.path.basename(item["image"]))]
        called = [item for item in called if item["domain"] == domain] or called
        if called:
            left.remove(called[0])
            hashes.append(called[0]["sha256"])
    if left or len(hashes) < len(cases):
        raise InputError(f"'{path}' does not contain each of the {len(test)} test cases once; remove it and repeat.")
    numbers = cases.drop(columns=["domain", "case"]).apply(pd.to_numeric, errors="coerce")
    return pd.concat([cases[["domain", "case"]].assign(sha256=hashes), numbers], axis=1)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, converters={"case": str, "domain": str}, float_precision="round_trip")
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"'{path}' cannot be read ({reason}); remove the arm's folder and repeat.") from error


def check_budgets(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Iterations, epochs and training cases by share and fold; refused if two arms differ.

    All arms of a share and fold made the same iterations, and those of one seed on the same training cases.
    """
    firsts: dict[tuple, ArmResult] = {}
    twins: dict[tuple, ArmResult] = {}
    for result in results:
        place = (result.facts["share"], result.facts["fold"])
        pair = (firsts.setdefault(place, result), result)
        made = [(one.record["iterations"], one.record["epochs"], len(one.losses)) for one in pair]
        if made[0] != made[1]:
            words = (
                f"'{one.folder.name}' made {iterations} iterations in {epochs} epochs ({losses} in its loss.csv)"
                for one, (iterations, epochs, losses) in zip(pair, made)
            )
            raise InputError(
                f"budgets must be equal, and {', '.join(words)}; remove the folder of the one that is wrong and type "
                "the same command again."
            )
        twin = twins.setdefault((*place, result.facts["seed"]), result)
        if identity(twin.training) != identity(result.training):
            raise InputError(
                f"training cases must be equal, and '{twin.folder.name}' and '{result.folder.name}' had different "
                "ones; remove both folders and type the same command again."
            )
    keys = ("iterations", "epochs")
    return [
        {"share": share, "fold": fold, **{key: one.record[key] for key in keys}, "training_cases": len(one.training)}
        for (share, fold), one in firsts.items()
    ]

"""Studies of the paper as configs: one training and one evaluation per value of an option, one JSON of all figures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from med3d_ext.bundle import run_arguments
from med3d_ext.data.prepare import PreparedData
from med3d_ext.data.subsets import choose_domains, nested_share
from med3d_ext.errors import InputError
from med3d_ext.files import read_json, write_json
from med3d_ext.networks import ResNetEncoder
from med3d_ext.overrides import split_id
from med3d_ext.study_results import Arm, arm_rows, draw_study, study_record

logger = logging.getLogger("med3d_ext.studies")
STUDY = "study"  # the id that makes a config file a study's overlay


class Study:
    """Train and evaluate once per value of one option, and write all figures into one JSON and one plot.

    Each arm is a training and an evaluation on the test cases, in processes of their own, with the config files of
    the study's command except the overlay that holds the study, and the command's overrides. It lies in
    ``<output_dir>/<name>/<option>_<value>_seed<seed>``, weights in ``models`` there. All arms read one prepared folder,
    so the split is the same for every value and seed, and share its cache.

    The same command continues a study: an arm that was evaluated with the same settings on the same data is kept, an
    unfinished one goes on from its checkpoint. ``study_<name>.json`` and ``.png`` are rewritten after each arm.

    Args:
        name: name of the study and of its files.
        option: the id that the study varies: "share", "domains", "network_name", or any other of the config.
        values: its values; "brain,liver" is one value.
        output_dir: where the study is written.
        data: the prepared data of the study; its test cases are every arm's.
        evaluation: the overlay that makes an evaluation of the base config.
        seeds: seeds of the trainings: initial weights, samples, draw of a share.
        settings: further overrides of every arm. What the study fixes stands here: with ``samples_per_domain`` an epoch
            is as long for a tenth of the data as for all of it.
        metric: the metric of the plot.
        config_files: the base config files. Defaults to None: those of the command that runs.
        overrides: the overrides of every arm. Defaults to None: those of the command.

    Raises:
        InputError: when a value cannot be, there is none, or the study runs in several processes.
    """

    def __init__(
        self,
        name: str,
        option: str,
        values: Any,
        output_dir: str,
        data: PreparedData,
        evaluation: str,
        seeds: int | Sequence[int] = (0,),
        settings: Mapping[str, Any] | None = None,
        metric: str = "val_mean_dice",
        config_files: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.option, self.metric = name, option, metric
        self.values = list(values) if isinstance(values, list | tuple) else [values]
        self.seeds: list[int] = list(seeds) if isinstance(seeds, Sequence) else [seeds]
        self.folder, self.data, self.evaluation = Path(output_dir), data, str(evaluation)
        self.settings = dict(settings or {})
        files, typed = run_arguments()
        self.config_files, base = _base_files(files if config_files is None else config_files)
        typed = typed if overrides is None else dict(overrides)
        self.overrides = {key: value for key, value in typed.items() if split_id(key)[0] in base}
        self._check()

    def _check(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("a study starts its own processes; run it without torchrun.")
        for key, rule in (("values", self.values), ("seeds", self.seeds)):
            if not rule or len(set(map(str, rule))) < len(rule):
                raise InputError(f"{key} of study '{self.name}' must be one or more different ones, got {rule}.")
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise InputError(f"seeds of study '{self.name}' must be integers >= 0, got {self.seeds}.")
        if self.option in self.overrides:
            raise InputError(f"--{self.option} is what study '{self.name}' varies; give its values by --values.")
        for value in self.values:
            _CHECKS.get(self.option, lambda *_: None)(value, self.data)

    def run(self) -> dict[str, Any]:
        """Run what is left of the study.

        Returns:
            the content of ``study_<name>.json``.

        Raises:
            InputError: when an arm fails; the message names its log.
        """
        arms = [self._arm(value, seed) for value in self.values for seed in self.seeds]
        rows: list[dict[str, Any]] = []
        record: dict[str, Any] = {}
        for number, arm in enumerate(arms, start=1):
            logger.info(f"study {self.name}: arm {number} of {len(arms)}, {arm.folder.name}")
            self._run_arm(arm)
            rows += arm_rows(arm, self.data)
            record = {
                **study_record(self.name, self.option, self.values, self.seeds, self.data),
                "settings": self._public_settings(),
                "complete": number == len(arms),
                "rows": rows,
            }
            write_json(self.folder / f"study_{self.name}.json", record)
            draw_study(record, self.metric, self.folder / f"study_{self.name}.png")
        logger.info(f"study {self.name}: figures are in {self.folder / f'study_{self.name}.json'}")
        return record

    def _arm(self, value: Any, seed: int) -> Arm:
        words = re.sub(r"[^\w.+-]+", "+", ",".join(map(str, value)) if isinstance(value, list) else str(value))
        folder = self.folder / self.name / f"{self.option.replace('::', '.')}_{words}_seed{seed}"
        own = {
            "dataset_dir": str(self.data.folder.resolve()),
            "output_dir": str(folder),
            "ckpt_dir": str(folder / "models"),
            "train::dataset::cache_dir": str(self.folder / self.name / "cache"),
            "seed": seed,
            self.option: value,
        }
        return Arm(value, seed, folder, {**self.overrides, **self.settings, **own})

    def _run_arm(self, arm: Arm) -> None:
        mark = {"arguments": arm.arguments, "config": _digest(self.config_files), "data": _data_digest(self.data)}
        mark = json.loads(json.dumps(mark))  # as it will be read again
        before = read_json(arm.mark) if arm.mark.is_file() else None
        if before == mark and arm.summary.is_file():
            logger.info(f"{arm.folder.name} is finished")
            return
        arm.summary.unlink(missing_ok=True)
        if before is not None and before != mark:
            logger.warning(f"{arm.folder.name} was run with other settings or data: training it anew")
            arm.state.unlink(missing_ok=True)
        write_json(arm.mark, mark)
        if not self._is_trained(arm):
            self._step(arm, "train", self.config_files)
        self._step(arm, "evaluate", [*self.config_files, self.evaluation])

    @staticmethod
    def _is_trained(arm: Arm) -> bool:
        # A training that has ended is not continued but started anew: an evaluation that was cut off must not cost it.
        return arm.state.is_file() and arm.run.is_file() and read_json(arm.run).get("status") == "completed"

    def _step(self, arm: Arm, step: str, files: Sequence[str]) -> None:
        log = arm.folder / f"{step}.log"
        code = run_bundle({"config_file": list(files), **arm.arguments}, log)
        if code != 0:
            raise InputError(
                f"study '{self.name}' stopped: {step} of {arm.folder.name} failed ({_last_line(log)}); see '{log}', "
                "then type the same command again."
            )

    def _public_settings(self) -> dict[str, Any]:
        private = {"dataset_dir", "output_dir", "ckpt_dir", "seed", self.option}
        return {key: value for key, value in {**self.overrides, **self.settings}.items() if key not in private}


def run_bundle(arguments: Mapping[str, Any], log: Path) -> int:
    """``python -m monai.bundle run`` in a process of its own.

    Args:
        arguments: all arguments; they stand beside the log in ``<log's name>.json``, which repeats the command.
        log: where its output goes, replaced.

    Returns:
        its exit code.
    """
    file = log.with_suffix(".json")
    write_json(file, dict(arguments))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(file)]
    with open(log, "wb") as output:
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def _base_files(files: Sequence[str]) -> tuple[list[str], set[str]]:
    """The config files without the study's overlay, and the ids at their top."""
    contents = {file: ConfigParser.load_config_file(file) for file in files}
    base = [file for file, content in contents.items() if STUDY not in content]
    if not base:
        raise InputError(
            "a study needs its base config; run it as --config_file \"['train.json','study_share.json']\"."
        )
    return base, {key for file in base for key in contents[file]}


def _check_share(share: Any, _: Any) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise InputError(f"share must be a number above 0 and at most 1, got {share!r}.")
    nested_share([], share)


def _check_network(name: str, _: Any) -> None:
    import torch

    with torch.device("meta"):
        ResNetEncoder(name)


# What a wrong value would only show hours later, when its arm begins.
_CHECKS: dict[str, Callable[[Any, PreparedData], Any]] = {
    "share": _check_share,
    "domains": lambda value, data: choose_domains(data.fingerprint["domains"], value),
    "network_name": _check_network,
}


def _digest(files: Sequence[str]) -> str:
    """Of the configs' content: an edited config makes other arms."""
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


def _data_digest(data: PreparedData) -> str:
    cases = [(split, item["domain"], item["sha256"]) for split in ("validation", "test") for item in data.items(split)]
    return hashlib.sha256(f"{data.identity} {sorted(cases)}".encode()).hexdigest()[:16]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no output"

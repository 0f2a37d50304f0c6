"""Studies of the paper as configs: one training and one evaluation per value of an option, one JSON of all figures."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from med3d_ext.data.prepare import PreparedData
from med3d_ext.data.subsets import choose_domains, nested_share
from med3d_ext.errors import InputError
from med3d_ext.io.files import write_json
from med3d_ext.networks import ResNetEncoder
from med3d_ext.run.overrides import split_id
from med3d_ext.run.start import run_arguments
from med3d_ext.tools.experiments.arms import Arm, Recipe, run_arm
from med3d_ext.tools.experiments.study_results import arm_rows, draw_study, study_record

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
        recipe = Recipe(f"study '{self.name}'", self.config_files, self.evaluation)
        arms = [self._arm(value, seed) for value in self.values for seed in self.seeds]
        rows: list[dict[str, Any]] = []
        record: dict[str, Any] = {}
        for number, arm in enumerate(arms, start=1):
            logger.info(f"study {self.name}: arm {number} of {len(arms)}, {arm.folder.name}")
            run_arm(arm, recipe, self.data)
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
        return Arm(folder, {**self.overrides, **self.settings, **own}, {"value": value, "seed": seed})

    def _public_settings(self) -> dict[str, Any]:
        private = {"dataset_dir", "output_dir", "ckpt_dir", "seed", self.option}
        return {key: value for key, value in {**self.overrides, **self.settings}.items() if key not in private}


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

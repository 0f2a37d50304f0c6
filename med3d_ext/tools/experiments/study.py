"""Studies of the paper as configs: one training and one evaluation per value of an option, one JSON of all figures."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.domains import choose_domains
from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import write_json
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.run.options import check_options
from med3d_ext.run.overrides import split_id
from med3d_ext.tools.experiments import engine
from med3d_ext.tools.experiments.engine import CACHE, METRIC, Arm, ArmResult, Experiment
from med3d_ext.tools.experiments.report import draw_study, value_words

logger = logging.getLogger("med3d_ext.experiments")
STUDY = "study"  # the id that makes a config file a study's overlay


class Study:
    """Train and evaluate once per value of one option, and write all figures into one JSON and one plot.

    Each arm is a training and an evaluation on the test cases, in processes of their own, with the config files of
    the study's command except the overlay that holds the study, and the command's overrides. It is written to
    ``<output_dir>/<name>/<option>_<value>_seed<seed>``, its weights to ``models`` there. All arms read one prepared
    folder, so the split is the same for every value and seed, and share its cache.

    The same command resumes a study: an arm that was evaluated with the same settings on the same data is kept, an
    unfinished one resumes from its checkpoint. ``study_<name>.json`` and ``.png`` are rewritten after each arm.

    Args:
        name: name of the study and of its files.
        option: the id that the study varies: "share", "domains", "network_name", or any other of the config.
        values: its values; "brain,liver" is one value.
        output_dir: where the study is written.
        data: the prepared data of the study; its test cases are every arm's.
        evaluation: the overlay that makes an evaluation of the base config.
        seeds: seeds of the trainings: initial weights, samples, draw of a share.
        settings: further overrides of every arm, which the study fixes: with ``samples_per_domain`` an epoch is as
            long for a tenth of the data as for all of it.
        metric: the metric of the plot.
        config_files: the base config files. Defaults to None: those of the command that runs.
        overrides: the overrides of every arm. Defaults to None: those of the command.

    Raises:
        InputError: when a value is out of range, there is none, or the study runs in several processes.
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
        self.folder, self.data = Path(output_dir), data
        base, arguments, typed = engine.given_command(STUDY, config_files, overrides)
        self.arguments = arguments | dict(settings or {})
        if not base:
            raise InputError(
                "a study needs its base config; run it as --config_file \"['train.json','study_share.json']\"."
            )
        self._check(typed)
        self.experiment = Experiment(f"study '{name}'", list(base), str(evaluation))

    def _check(self, typed: set[str]) -> None:
        """What a wrong value would only show hours later, when its arm begins."""
        engine.check_plan(f"study '{self.name}'", values=self.values, seeds=self.seeds)
        check_options({"seeds": self.seeds})
        if "::".join(split_id(self.option)) in typed:
            raise InputError(f"--{self.option} is what study '{self.name}' varies; give its values with --values.")
        for name in typed & {"ckpt_dir", CACHE}:
            raise InputError(f"study '{self.name}' sets {name} of each arm itself, below output_dir; remove --{name}.")
        for value in self.values:
            check_options({self.option: value})
            if self.option == "domains":
                choose_domains(self.data.domains, value)
        _ = self.data.test  # refused now if there is none

    def run(self) -> dict[str, Any]:
        """Run what is left of the study; the content of ``study_<name>.json``.

        Raises:
            InputError: when an arm fails; the message names its log.
        """
        arms = [self.arm(value, seed) for value in self.values for seed in self.seeds]
        rows: list[dict[str, Any]] = []
        record: dict[str, Any] = {}
        path = self.folder / f"study_{self.name}.json"
        test: dict[str, list[dict[str, Any]]] = {}
        for item in self.data.test:
            test.setdefault(item["domain"], []).append(item)
        own = {"dataset_dir", "output_dir", "ckpt_dir", "seed", self.option}
        settings = {key: value for key, value in self.arguments.items() if key not in own}
        facts: dict[str, Any] = {"study": self.name, "option": self.option, "values": self.values, "seeds": self.seeds}
        facts |= {**engine.origin(self.data, test), "settings": settings}
        for number, arm in enumerate(self.experiment.run(arms), start=1):
            rows += self._rows(engine.read_result(arm))
            record = {**facts, "complete": number == len(arms), "rows": rows}
            write_json(path, record)
            if self.metric not in rows[-1]:
                names = ", ".join(name for name in rows[-1] if name.startswith(METRIC))
                raise InputError(f"metric of study '{self.name}' must be one of {names}, got {self.metric}.")
            draw_study(record, self.metric, path.with_suffix(".png"))
        logger.info(f"study {self.name}: figures are in {path}")
        return record

    def arm(self, value: Any, seed: int) -> Arm:
        """The arm of a value and a seed."""
        words = re.sub(r"[^\w.+-]+", "+", value_words(value))
        folder = self.folder / self.name / f"{self.option.replace('::', '.')}_{words}_seed{seed}"
        own = {CACHE: str(self.folder / self.name / "cache"), self.option: value}
        return Arm(folder, self.data, {**self.arguments, **own}, {"value": value, "seed": seed})

    def _rows(self, result: ArmResult) -> list[dict[str, Any]]:
        """One row per domain of a finished arm: value, seed, domain, training cases, metrics, epochs, seconds."""
        rows = []
        for domain, cases in result.cases.groupby("domain", sort=False):
            described = {name: describe_metric(cases[name]) for name in cases if name.startswith(METRIC)}
            place = {"domain": domain, "organ": self.data.domains[domain].get("organ", domain)}
            trained = sum(case["domain"] == domain for case in result.training)
            figures = {name: {key: one[key] for key in ("n", "mean", "interval_95")} for name, one in described.items()}
            rows.append({**result.facts, **place, "training_cases": trained, **figures, **result.effort})
        return rows

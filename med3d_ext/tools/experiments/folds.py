"""Cross-validation of a bundle in one command: a training for each part of the cases, and the mean of their models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from monai.bundle import ConfigParser

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.facts import read_facts, write_facts
from med3d_ext.io.files import read_json, write_atomically, write_json
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.run.options import check_options
from med3d_ext.tools.experiments import engine
from med3d_ext.tools.experiments.engine import METRIC, MODEL, SUMMARY, Arm, Experiment
from med3d_ext.tools.weights import saved
from med3d_ext.weights.files import fit, read_checkpoint

logger = logging.getLogger("med3d_ext.experiments")
OVERLAY = "cross_validation"  # the id that makes a config file the overlay


class CrossValidation:
    """Train once for each of ``folds`` equal parts of the cases, without that part, and evaluate each model on it.

    So every case is a test case once, of a model that has not seen it: ``<output_dir>/folds.json`` has the figures of
    all cases together, ``folds.csv`` a row for each. Each training is in ``<output_dir>/folds/fold<k>``. In the end
    ``<ckpt_dir>/model.pt`` holds all models: as one network its logits are the mean of theirs, see
    :func:`~med3d_ext.networks.mean_of`; the ``facts.json`` next to it states how many as ``members``.

    The same command resumes what was stopped: a finished fold is kept, an unfinished one resumes from its checkpoint.

    Args:
        folds: number of parts, 2 or more.
        output_dir: where everything but the models is written.
        ckpt_dir: where the models are written.
        bundle_root: the bundle's folder.
        config_files: the base config files. Defaults to None: those of the command that runs.
        overrides: the overrides of every fold. Defaults to None: those of the command.

    Raises:
        InputError: ``folds`` or an override does not fit, or the command runs in several processes.
    """

    def __init__(
        self,
        folds: int,
        output_dir: str,
        ckpt_dir: str,
        bundle_root: str = ".",
        config_files: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        base, arguments, typed = engine.given_command(OVERLAY, config_files, overrides)
        check_options({"folds": folds})
        engine.check_plan("a cross-validation", folds=list(range(folds or 0)))
        if not base:
            raise InputError("a cross-validation needs its base config; give \"['train.json','folds.json']\".")
        if "fold" in typed:
            raise InputError("a cross-validation trains every fold; leave --fold out, or leave out folds.json.")
        root = str(Path(bundle_root).resolve())
        self.folds, self.folder, self.models = folds, Path(output_dir), Path(ckpt_dir)
        self.arguments = {**arguments, "bundle_root": root, "folds": folds}
        evaluate = Path(root) / "configs" / "evaluate.json"
        self.experiment = Experiment("the cross-validation", list(base), str(evaluate))

    def run(self) -> dict[str, Any]:
        """Run what is left, and write figures and models; the content of ``folds.json``."""
        arms = [self.arm(fold) for fold in range(self.folds)]
        tables, seen = [], set()
        for arm in self.experiment.run(arms):
            result = engine.read_result(arm)
            tables.append(result.cases.assign(fold=arm.facts["fold"]))
            seen |= set(read_json(arm.folder / SUMMARY).get("seen_by_weights") or [])
        cases = pd.concat(tables, ignore_index=True)
        figures = {name: describe_metric(cases[name]) for name in cases if name.startswith(METRIC)}
        test = {f"fold {arm.facts['fold']}": arm.data.test for arm in arms}
        record = {**engine.origin(arms[0].data, test), "folds": self.folds, "seen_by_initial_weights": sorted(seen)}
        record |= {"n": len(cases), **figures}
        with write_atomically(self.folder / "folds.csv", "w") as file:
            cases.to_csv(file, index=False)
        write_json(self.folder / "folds.json", record)
        join_models([arm.folder / MODEL for arm in arms], self.models)
        for name, figure in figures.items():
            interval = figure["interval_95"]
            words = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            if figure["n"]:
                logger.info(f"{name} of {figure['n']} cases: {figure['mean']:.3f}{words}")
        logger.info(f"figures are in '{self.folder / 'folds.json'}', the mean of the models in '{self.models}'")
        return record

    def arm(self, fold: int) -> Arm:
        """The training and evaluation of one fold."""
        folder = self.folder / "folds" / f"fold{fold}"
        arguments = {**self.arguments, "fold": fold}
        parser = ConfigParser()
        parser.read_config(self.experiment.train)
        parser.update({**arguments, "output_dir": str(folder)})
        data: PreparedData = parser.get_parsed_content("data")
        seed = parser.get_parsed_content("seed")
        if any(facts.get("options", {}).get("folds") != self.folds for facts in data.domains.values()):
            raise InputError(f"'{data.folder}' keeps the split that it was prepared with; give the source folder.")
        return Arm(folder, data, arguments, {"fold": fold, "seed": seed})


def join_models(files: Sequence[Path], folder: Path) -> None:
    """Write ``model.pt``, ``facts.json`` and ``card.json`` of the mean of some models into a folder.

    Raises:
        InputError: the models are of different networks.
    """
    states = [read_checkpoint(file)[0] for file in files]
    joined = {}
    for number, state in enumerate(states):
        if faults := fit(state, states[0]):
            raise InputError(f"'{files[number]}' and '{files[0]}' are of different networks: the first {faults[0]}.")
        for name, tensor in state.items():
            stage, _, rest = name.partition(".")
            is_stage = stage in ("coarse", "fine")
            joined[f"{stage}.members.{number}.{rest}" if is_stage else f"members.{number}.{name}"] = tensor
    domains, cards = read_facts(files[0].parent)["domains"], [read_json(file.with_name("card.json")) for file in files]
    for facts in domains.values():
        facts["members"] = len(files)
        options = facts.get("options", {})
        facts["options"] = {name: value for name, value in options.items() if name not in ("folds", "fold")}
    cases: dict[str, dict[str, Any]] = {}
    for card in cards:
        for split, items in card["cases"].items():
            cases.setdefault(split, {}).update({item["sha256"]: item for item in items})
    write_facts(folder, {"domains": domains})
    lists = {split: list(items.values()) for split, items in cases.items()}
    write_json(folder / "card.json", {**cards[0], "members": len(files), "best": None, "cases": lists})
    with write_atomically(folder / "model.pt") as file:
        file.write(saved(joined))

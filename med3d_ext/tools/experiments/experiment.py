"""A comparison: its arms, the order they are run in, and what may not be mixed."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from med3d_ext.data.subsets import nested_share
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, read_json, write_json
from med3d_ext.tools.experiments.arm_results import ArmResult, check_budgets, read_result
from med3d_ext.tools.experiments.arms import PLACES, Arm, Recipe, arm_mark, run_arm
from med3d_ext.tools.experiments.bundle_config import BundleConfig
from med3d_ext.tools.experiments.initial import Start, parse_starts, seen_by, start_facts
from med3d_ext.tools.experiments.report import write_report

logger = logging.getLogger("med3d_ext.compare")
SNAPSHOTS = 4  # rows of the overlays
_PER_ARM = ("learning_rate", "seed", "share", "fold")


class Comparison:
    """Train and evaluate a bundle from several initial weights under equal budgets (paper, section 4.2).

    Everything goes to ``output``: the data, prepared once for all arms (once per fold), and the arms in
    ``arms/<start>[_share<share>][_fold<fold>]_seed<seed>``. The report is written whenever a seed is complete. The
    same command continues a comparison; more seeds, shares or initial weights add to it.

    Args:
        bundle: the bundle's folder.
        inits: initial weights, see :func:`~med3d_ext.tools.experiments.initial.parse_starts`.
        seeds: seeds of the trainings: initial weights, order and augmentation of the samples, draw of a share.
        output: where the comparison is written.
        options: overrides of every arm.
        shares: shares of the training cases. Defaults to None, all cases.
        folds: how many parts the cases are tested in, one after the other. Defaults to None, the bundle's own split.
        metric: the metric that the arms are compared by. Defaults to None, the one that picks the best epoch.
        keep_weights: whether finished arms keep their weights. Defaults to True.

    Raises:
        InputError: when something cannot be, or ``output`` holds arms of other settings.
    """

    def __init__(
        self,
        bundle: Path,
        inits: Sequence[str],
        seeds: Sequence[int],
        output: Path,
        options: Mapping[str, Any] | None = None,
        shares: Sequence[float] | None = None,
        folds: int | None = None,
        metric: str | None = None,
        keep_weights: bool = True,
    ) -> None:
        _check_numbers(seeds, shares, folds)
        self.output, self.seeds, self.metric = output, list(seeds), metric
        self.shares: list[float | None] = list(shares) if shares else [None]
        self.folds: list[int | None] = list(range(folds)) if folds else [None]
        self.config = BundleConfig(bundle, options or {})
        self._ask_for(shares, folds)
        self.epochs = self.config.whole_number("epochs")
        self.starts = parse_starts(inits, bundle, *self.config.rates())
        self.data = {fold: self.config.prepare(self._data_folder(fold), fold) for fold in self.folds}
        self._check_folds()
        for start in self.starts:
            if start.weights is not None:
                self.config.check_weights(start.weights, self.data[self.folds[0]], output)
        self.facts = {start.name: start_facts(start, self.test_cases) for start in self.starts}
        seen = [case for start in self.starts for case in seen_by(start, self.test_cases) or []]
        self.excluded = {item["sha256"]: case_name(item["image"]) for item in seen}
        if seen:
            logger.warning(f"seen in pretraining, so counted in no arm: {', '.join(sorted(self.excluded.values()))}")
        overlay = self._write_overlay()
        self.recipe = Recipe("the comparison", [self.config.train], self.config.evaluate, [overlay], keep_weights)
        self._check_unmixed()

    def _ask_for(self, shares: Sequence[float] | None, folds: int | None) -> None:
        """Stop where the bundle has no shares or folds."""
        if shares:
            self.config.require("share", "--shares")
        if folds:
            self.config.require("folds", "--folds")
            self.config.require("fold", "--folds")
            self.config.options["folds"] = folds

    def _data_folder(self, fold: int | None) -> Path:
        return self.output if fold is None else self.output / f"fold{fold}"

    @property
    def test_cases(self) -> list[dict[str, Any]]:
        """The test cases of all folds."""
        return [item for data in self.data.values() for item in data.test]

    def _check_folds(self) -> None:
        """A folder that is prepared already keeps its split, whatever fold is asked for."""
        folds = [{(item["domain"], item["sha256"]) for item in data.test} for data in self.data.values()]
        if len(set().union(*folds)) < sum(map(len, folds)):
            raise InputError(
                "folds must test every case once, and one is tested in several; give the source folder as dataset_dir: "
                "a prepared one keeps its split."
            )

    def _write_overlay(self) -> str:
        interval = self.config.whole_number("val_interval") if "val_interval" in self.config.content else 1
        epochs = snapshot_epochs(self.epochs, interval)
        handler = {
            "_target_": "med3d_ext.handlers.snapshots.ValidationSnapshots",
            "output_dir": "$@output_dir + '/snapshots'",
            "epochs": epochs,
        }
        path = self.output / "snapshots.json"
        write_json(path, {"+validate::handlers": [handler]})
        return str(path)

    def arms(self, seed: int) -> Iterator[Arm]:
        """The arms of one seed."""
        for share, fold, start in itertools.product(self.shares, self.folds, self.starts):
            yield self._arm(start, share, fold, seed)

    def _arm(self, start: Start, share: float | None, fold: int | None, seed: int) -> Arm:
        parts = [("share", share), ("fold", fold), ("seed", seed)]
        folder = self.output / "arms" / "_".join([start.name, *(f"{k}{v:g}" for k, v in parts if v is not None)])
        own: dict[str, Any] = {
            "bundle_root": str(self.config.bundle),
            "dataset_dir": str(self.data[fold].folder.resolve()),
            "output_dir": str(folder),
            "ckpt_dir": str(folder / "models"),
            "seed": seed,
            "init": start.init,
            "learning_rate": start.learning_rate,
        }
        if "cache_dir" in self.config.content.get("train", {}).get("dataset", {}):
            own["train::dataset::cache_dir"] = str(self.output / "cache")
        own |= {name: value for name, value in (("share", share), ("fold", fold)) if value is not None}
        facts = {"start": start.name, "share": share, "fold": fold, "seed": seed}
        facts["weights"] = self.facts[start.name].get("sha256")
        return Arm(folder, {**self.config.options, **own}, facts, places=(*PLACES, "init"))

    def _check_unmixed(self) -> None:
        """No arm in the output folder was run with other settings.

        Raises:
            InputError: one was; the message names the first difference.
        """
        wanted = {arm.mark: arm for seed in self.seeds for arm in self.arms(seed)}
        some = next(iter(wanted.values()))
        for path in sorted((self.output / "arms").glob("*/arm.json")):
            before = read_json(path)
            if path in wanted:
                mark = arm_mark(wanted[path], self.recipe, self.data[wanted[path].facts["fold"]])
            else:
                mark = arm_mark(some, self.recipe, self.data[some.facts["fold"]])
                mark, before = _common(mark), _common(before)
            difference = _difference(before, mark)
            if difference:
                raise InputError(
                    f"'{path.parent}' was run with other settings ({difference}); give another --output, or remove "
                    "that folder."
                )

    def run(self) -> dict[str, Any]:
        """Run what is left and write the report.

        Returns:
            the content of ``comparison.json``.

        Raises:
            InputError: an arm failed, or budgets differ.
        """
        total = len(self.seeds) * len(self.shares) * len(self.folds) * len(self.starts)
        results: list[ArmResult] = []
        record: dict[str, Any] = {}
        began, trained = time.monotonic(), 0
        for number, seed in enumerate(self.seeds):
            for arm in self.arms(seed):
                place = f"arm {len(results) + 1} of {total}, {arm.folder.name}"
                left = (time.monotonic() - began) / trained * (total - len(results)) if trained else None
                logger.info(place + (f", about {left / 60:.0f} min left" if left else ""))
                trained += not arm.summary.is_file()
                data = self.data[arm.facts["fold"]]
                run_arm(arm, self.recipe, data)
                results.append(read_result(arm, data))
                check_budgets(results)  # now, not after hours
            record = write_report(self, results, complete=number == len(self.seeds) - 1)
        return record


def snapshot_epochs(epochs: int, interval: int) -> list[int]:
    """A few of the epochs that are validated: the last, and those that halve it, where a training still moves."""
    validated = [*range(interval, epochs + 1, interval), epochs]
    wanted = [epochs / 2**power for power in range(SNAPSHOTS)]
    return sorted({min(validated, key=lambda epoch: abs(epoch - one)) for one in wanted})


def _check_numbers(seeds: Sequence[int], shares: Sequence[float] | None, folds: int | None) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a comparison starts its own processes; run it without torchrun.")
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise InputError(f"seeds must be one or more different integers >= 0, got {list(seeds)}.")
    if shares is not None:
        for share in shares:
            nested_share([], share)
        if not shares or len(set(shares)) < len(shares):
            raise InputError(f"shares must be one or more different numbers, got {list(shares)}.")
    if folds is not None and folds < 2:
        raise InputError(f"folds must be at least 2, got {folds}.")


def _common(mark: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a mark that all arms of a comparison share."""
    arguments = {key: value for key, value in mark["arguments"].items() if key not in _PER_ARM}
    return {"arguments": arguments, "config": mark["config"]}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference of two marks in words."""
    old, new = before["arguments"], now["arguments"]
    for name in dict.fromkeys([*new, *old]):
        if old.get(name) != new.get(name):
            return f"{name} {old.get(name, 'not given')}, now {new.get(name, 'not given')}"
    words = {"config": "the bundle's train.json has changed", "data": "other data", "facts": "other initial weights"}
    return next((text for key, text in words.items() if before.get(key) != now.get(key)), None)

"""``compare``: what initial weights are worth, by training a bundle from each of them under equal budgets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from med3d_ext.data.prepared_data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.io.files import case_name, read_json, write_atomically, write_json
from med3d_ext.run.options import check_options
from med3d_ext.run.provenance import portable
from med3d_ext.tools.bundle_folder import Bundle, find_bundle
from med3d_ext.tools.experiments import engine
from med3d_ext.tools.experiments.engine import CACHE, METRIC, PLACES, Arm, ArmResult, Experiment
from med3d_ext.tools.experiments.figures import LOSS, arm_figures, iterations_to_reach, loss_curves, metric_curves
from med3d_ext.tools.experiments.report import Panel, comparison_table, draw_curves, draw_overlays, share_words
from med3d_ext.tools.experiments.starts import check_bundle, parse_starts

T = TypeVar("T")
logger = logging.getLogger("med3d_ext.experiments")
SNAPSHOTS = 4  # rows of the overlays
_PER_ARM = ("learning_rate", "seed", "share", "fold")


def compare(
    bundle: str,
    *,
    inits: str,
    seeds: str = "0",
    dataset_dir: str | None = None,
    output: str | None = None,
    epochs: int | None = None,
    shares: str | None = None,
    folds: int | None = None,
    metric: str | None = None,
    drop_weights: bool = False,
    **options: Any,
) -> str:
    """Train a bundle from several initial weights under equal budgets and report what they are worth.

    From scratch it trains at both of the bundle's learning rates, from all other weights at the one for pretrained
    weights, with the same iterations, data, seeds and test cases. Writes `comparison.json`, `table.md`, `curves.png`
    and `overlays.png`. The same command resumes a comparison that was stopped. All other options are passed to the
    trainings.

    Args:
        bundle: a bundle's folder or name.
        inits: initial weights, such as scratch,med3d,kinetics=PATH; scratch must be among them.
        seeds: seeds of the trainings, such as 0,1,2.
        dataset_dir: the data. Defaults to the bundle's generated phantoms.
        output: where to write. Defaults to eval/compare in the bundle.
        epochs: of each training. Defaults to the bundle's.
        shares: shares of the training cases, such as 0.25,1.0. Defaults to all cases.
        folds: cross-validate with this many folds. Defaults to the bundle's own split.
        metric: metric of the validation to compare by. Defaults to the one that selects the best epoch.
        drop_weights: delete each arm's weights when it is finished.
    """
    found = find_bundle(bundle)
    given = {"dataset_dir": dataset_dir, "epochs": epochs}
    comparison = Comparison(
        bundle=found,
        inits=parse_list("inits", inits, str),
        seeds=parse_list("seeds", seeds, int),
        output=Path(output).expanduser() if output is not None else found / "eval" / "compare",
        options={**options, **{name: value for name, value in given.items() if value is not None}},
        shares=None if shares is None else parse_list("shares", shares, float),
        folds=folds,
        metric=metric,
        keep_weights=not drop_weights,
    )
    comparison.run()
    return (comparison.output / "table.md").read_text(encoding="utf-8") + f"\nfigures are in {comparison.output}"


def parse_list(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """Values as typed: ``0``, ``0,1,2``, ``[0,1,2]`` or ``(0, 1, 2)``."""
    parts = [part.strip().strip("'\"") for part in text.strip().strip("[]()").rstrip(",").split(",")]
    try:
        if not all(parts):
            raise ValueError
        return [kind(part) for part in parts]
    except ValueError:
        kinds: dict[Any, str] = {int: "whole numbers, as 0,1,2", float: "numbers, as 0.25,1.0"}
        words = kinds.get(kind, "joined by commas, as scratch,med3d")
        raise InputError(f"compare: --{name} must be {words}, got '{text}'.") from None


class Comparison:
    """Train and evaluate a bundle from several initial weights under equal budgets (paper, section 4.2).

    Everything goes to ``output``: the data, prepared once for all arms (once per fold), and the arms in
    ``arms/<start>[_share<share>][_fold<fold>]_seed<seed>``. The report is written whenever a seed is complete. The
    same command resumes a comparison; more seeds, shares or initial weights add to it.

    Arguments as of :func:`compare`; ``options`` are overrides of every arm.
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
        engine.check_plan("a comparison", seeds=seeds, **({} if shares is None else {"shares": shares}))
        check_options({"seeds": list(seeds), "folds": folds})
        for share in shares or []:
            check_options({"share": share})
        self.output, self.seeds, self.metric = output, list(seeds), metric
        self.shares: list[float | None] = list(shares) if shares else [None]
        self.folds: list[int | None] = list(range(folds)) if folds else [None]
        self.bundle = Bundle(bundle, {**(options or {}), **({"folds": folds} if folds else {})})
        check_bundle(self.bundle, options or {}, [*["share"] * bool(shares), *["folds", "fold"] * bool(folds)])
        periods = {name: self.bundle.value("train", name, default=1) for name in ("epochs", "val_interval")}
        check_options(periods)
        self.starts = parse_starts(inits, self.bundle)
        self.data = self._prepare()
        for start in self.starts:
            start.check(self.bundle, self.data[self.folds[0]], output)
        test = [item for data in self.data.values() for item in data.test]
        self.facts = {start.name: start.facts(test) for start in self.starts}
        seen = [item for start in self.starts for item in start.seen(test) or []]
        self.excluded = {item["sha256"]: case_name(item["image"]) for item in seen}
        if seen:
            logger.warning(f"seen in pretraining, so counted in no arm: {', '.join(sorted(self.excluded.values()))}")
        handler = {
            "_target_": "med3d_ext.handlers.overlay.ValidationSnapshots",
            "output_dir": "$@output_dir + '/snapshots'",
            "epochs": snapshot_epochs(*periods.values()),
        }
        overlay = output / "snapshots.json"
        write_json(overlay, {"+validate::handlers": [handler]})
        self.experiment = Experiment(
            title="the comparison",
            train=self.bundle.files("train"),
            evaluate=self.bundle.files("evaluate")[1],
            overlays=[str(overlay)],
            keep_weights=keep_weights,
            places=(*PLACES, "init"),
        )
        self._check_unmixed()

    def _prepare(self) -> dict[int | None, PreparedData]:
        """The data of each fold, prepared under the output folder if need be."""
        prepared = {}
        for fold in self.folds:
            folder, own = (self.output, {}) if fold is None else (self.output / f"fold{fold}", {"fold": fold})
            prepared[fold] = self.bundle.value("train", "data", output_dir=str(folder), **own)
        # a folder that is prepared already keeps its split, whatever fold is asked for
        folds = [{(item["domain"], item["sha256"]) for item in data.test} for data in prepared.values()]
        if len(set().union(*folds)) < sum(map(len, folds)):
            raise InputError(
                "folds must test every case once, and one is tested in several; give the source folder as dataset_dir: "
                "a prepared one keeps its split."
            )
        return prepared

    def arms(self) -> Iterator[Arm]:
        """All arms, seed by seed."""
        for seed, share, fold, start in product(self.seeds, self.shares, self.folds, self.starts):
            given = {key: value for key, value in (("share", share), ("fold", fold)) if value is not None}
            words = [start.name, *(f"{key}{value:.12g}" for key, value in given.items()), f"seed{seed}"]
            own = {"bundle_root": str(self.bundle.folder), "init": start.init, "learning_rate": start.learning_rate}
            if "cache_dir" in self.bundle.as_written("train").get("train", {}).get("dataset", {}):
                own[CACHE] = str(self.output / "cache")
            weights = self.facts[start.name].get("sha256")
            facts = {"start": start.name, "share": share, "fold": fold, "seed": seed, "weights": weights}
            folder = self.output / "arms" / "_".join(words)
            yield Arm(folder, self.data[fold], {**self.bundle.overrides, **own, **given}, facts)

    def _check_unmixed(self) -> None:
        """No arm in the output folder was run with other settings; the message names the first difference."""
        wanted = {arm.folder / engine.MARK: arm for arm in self.arms()}
        some = next(iter(wanted.values()))
        others = {
            "config": "the bundle's train.json has changed",
            "data": "other data",
            "facts": "other initial weights",
        }
        for path in sorted((self.output / "arms").glob(f"*/{engine.MARK}")):
            before, now = read_json(path), self.experiment.mark(wanted.get(path, some))
            old, new = before["arguments"], now["arguments"]
            # of an arm that is not asked for now, only what all arms share is compared
            own, keys = ((), others) if path in wanted else (_PER_ARM, ("config",))
            names = [name for name in {**new, **old} if name not in own and old.get(name) != new.get(name)]
            words = [f"{name} {old.get(name, 'not given')}, now {new.get(name, 'not given')}" for name in names]
            words += [others[key] for key in keys if before.get(key) != now.get(key)]
            if words:
                raise InputError(
                    f"'{path.parent}' was run with other settings ({words[0]}); give another --output, or remove that "
                    "folder."
                )

    def run(self) -> dict[str, Any]:
        """Run what is left and write the report; its ``comparison.json``."""
        arms = list(self.arms())
        results: list[ArmResult] = []
        record: dict[str, Any] = {}
        for number, arm in enumerate(self.experiment.run(arms), start=1):
            results.append(engine.read_result(arm))
            engine.check_budgets(results)  # now, not after hours
            if number % (len(arms) // len(self.seeds)) == 0:
                record = self.write_report(results, complete=number == len(arms))
        return record

    def write_report(self, results: Sequence[ArmResult], complete: bool) -> dict[str, Any]:
        """Write ``comparison.json``, ``table.md``, ``curves.png`` and, if there are snapshots, ``overlays.png``.

        ``results`` are every arm of the first seeds, or of all of them: then it is ``complete``.
        """
        metric = self._known_metric(results)
        reaches, window = [], {}
        panels: list[list[Panel]] = []
        for share in self.shares:
            words = share_words(share)
            members = [result for result in results if result.facts["share"] == share]
            losses, window[words] = loss_curves(members)
            smooth, scores = f"{LOSS}, mean of {window[words]} iterations", metric_curves(members, metric)
            panels.append([])
            for curves, quantity, label in ((losses, LOSS, smooth), (scores, metric, f"{metric} (validation)")):
                reach = iterations_to_reach(curves, quantity)
                reaches.append({"share": share, **reach})
                panels[-1].append((words, label, curves, reach))
        test = {"test" if fold is None else f"fold {fold}": data.test for fold, data in self.data.items()}
        record = {
            "bundle": self.bundle.folder.resolve().name,
            **engine.origin(self.data[self.folds[0]], test),
            "options": portable(self.bundle.overrides),
            "shares": self.shares,
            "folds": None if self.folds == [None] else len(self.folds),
            "starts": self.facts,
            "complete": complete,
            "seeds": list(dict.fromkeys(result.facts["seed"] for result in results)),
            "budgets": engine.check_budgets(results),
            "excluded_test_cases": sorted(self.excluded.values()),
            "metric": metric,
            "results": arm_figures(results, metric, frozenset(self.excluded)),
            "smoothing_iterations": window,
            "iterations_to_reach": reaches,
            "runs": [
                {
                    **{key: result.facts[key] for key in ("start", "share", "fold", "seed")},
                    "iterations": result.record["iterations"],
                    "training_cases": len(result.training),
                    **result.effort,
                    **{key: result.record[key] for key in ("best",) if key in result.record},
                }
                for result in results
            ],
        }
        write_json(self.output / "comparison.json", record)
        with write_atomically(self.output / "table.md", "w") as file:
            file.write(comparison_table(record))
        draw_curves(self.output / "curves.png", panels)
        share = max(self.shares, key=lambda one: one or 0)
        shown = {"share": share, "fold": self.folds[0], "seed": self.seeds[0]}
        first = [result for result in results if shown.items() <= dict(result.facts).items()]
        if not draw_overlays(self.output / "overlays.png", first):
            (self.output / "overlays.png").unlink(missing_ok=True)
        return record

    def _known_metric(self, results: Sequence[ArmResult]) -> str:
        """The metric of the validation that arms are compared by."""
        best = results[0].record.get("best", {})
        metric = self.metric or next((name for name in best if name != "epoch"), None)
        if metric is None:
            raise InputError(f"'{results[0].folder / 'run.json'}' names no best metric; choose one with --metric.")
        for result in results:
            if metric not in result.history or result.history[metric].isna().all():
                names = ", ".join(sorted(name for name in result.history if name.startswith(METRIC)))
                path = result.folder / "history.csv"
                raise InputError(f"metric must be a column of '{path}', one of {names}, got {metric}.")
        return metric


def snapshot_epochs(epochs: int, interval: int) -> list[int]:
    """A few of the epochs that are validated: the last, and those that halve it, when a training still moves."""
    validated = [*range(interval, epochs + 1, interval), epochs]
    wanted = [epochs / 2**power for power in range(SNAPSHOTS)]
    return sorted({min(validated, key=lambda epoch: abs(epoch - one)) for one in wanted})

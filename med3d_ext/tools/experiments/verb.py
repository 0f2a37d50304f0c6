"""The verb ``compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from med3d_ext.errors import InputError
from med3d_ext.tools.bundle_folder import find_bundle

T = TypeVar("T")


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
    """Train a bundle from several initial weights under equal budgets and tell what they are worth.

    From scratch it trains at both of the bundle's learning rates, from each other weights at that for pretrained
    ones: the same iterations, data, seeds and test cases. Writes `comparison.json`, `table.md`, `curves.png` and
    `overlays.png`. The same command continues a comparison that was stopped. Every other option goes to all
    trainings.

    Args:
        bundle: a bundle's folder or name.
        inits: initial weights, as scratch,med3d,kinetics=PATH; scratch must be among them.
        seeds: seeds of the trainings, as 0,1,2.
        dataset_dir: the data. Defaults to the bundle's generated phantoms.
        output: where to write. Defaults to eval/compare in the bundle.
        epochs: of each training. Defaults to the bundle's.
        shares: shares of the training cases, as 0.25,1.0. Defaults to all cases.
        folds: test in this many parts, every case once. Defaults to the bundle's own split.
        metric: metric of the validation to compare by. Defaults to the one that picks the best epoch.
        drop_weights: remove each arm's weights when it is finished.
    """
    from med3d_ext.tools.experiments.experiment import Comparison

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
    """Values as typed: ``0``, ``0,1,2``, ``[0,1,2]`` or ``(0, 1, 2)``.

    Raises:
        InputError: one is empty or of another kind.
    """
    parts = [part.strip().strip("'\"") for part in text.strip().strip("[]()").rstrip(",").split(",")]
    try:
        if not all(parts):
            raise ValueError
        return [kind(part) for part in parts]
    except ValueError:
        words = {int: "whole numbers, as 0,1,2", float: "numbers, as 0.25,1.0"}.get(
            kind, "joined by commas, as scratch,med3d"
        )  # type: ignore[call-overload]
        raise InputError(f"compare: --{name} must be {words}, got '{text}'.") from None

"""The verb `predict` with a network that is never wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.utils import set_determinism
from perfect import LITS, PerfectNetwork, random_weights, with_network

from med3d_ext.tools import cli
from med3d_ext.tools.predict import results
from med3d_ext.tools.predict import verb as predict_verb
from med3d_ext.tools.predict.predictor import BundlePredictor


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Folder of random weights of lits_coarse."""
    folder = tmp_path_factory.mktemp("weights")
    random_weights(LITS, folder, spatial_size=[32, 32, 32])
    return folder


@pytest.fixture
def predict(weights, monkeypatch, tmp_path) -> Callable[..., int]:
    """``predict(*words)``: the verb on lits_coarse with a perfect network, results in ``tmp_path / "out"``.

    Pictures take longer than all the rest and are not drawn.
    """

    def perfect(*args: object) -> BundlePredictor:
        return with_network(BundlePredictor(*args), PerfectNetwork())  # type: ignore[arg-type]

    monkeypatch.setattr(predict_verb, "BundlePredictor", perfect)
    monkeypatch.setattr(results, "draw_overlay", lambda path, *_: path.write_bytes(b"a picture"))

    def run(*words: object, output: Path = tmp_path / "out") -> int:
        own = ["--output", str(output), "--ckpt_dir", str(weights), "--device", "cpu"]
        try:
            return cli.main(["predict", str(LITS), *map(str, words), *own])
        except SystemExit as end:
            return int(end.code or 0)

    yield run
    set_determinism(None)


@pytest.fixture
def left_behind(tmp_path) -> Callable[[], list[str]]:
    """Names of all that lies in the results' folder, hidden files included."""
    return lambda: sorted(os.listdir(tmp_path / "out"))

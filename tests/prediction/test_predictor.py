"""Bundles that others wrote: what the predictor needs of them, and what it says where that is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from perfect import LITS, PerfectNetwork, with_network

from med3d_ext.errors import InputError
from med3d_ext.tools.predict import BundlePredictor

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def changed(tmp_path, weights):
    """``changed(change)``: lits_coarse with its config changed, and a predictor of it with a perfect network."""

    def make(change) -> BundlePredictor:
        bundle = tmp_path / "bundle"
        shutil.copytree(LITS / "configs", bundle / "configs")
        path = bundle / "configs" / "inference.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
        return with_network(BundlePredictor(bundle, "cpu", {"ckpt_dir": str(weights)}), PerfectNetwork())

    return make


@pytest.fixture
def scan(tmp_path, nifti) -> Path:
    voxels = np.full((20, 18, 16), -200, np.int16)
    voxels[5:10, 4:9, 4:8] = 250
    return nifti(tmp_path / "scan.nii.gz", voxels, np.diag([-1.0, 1.5, 2, 1]))


def test_names_come_from_the_metadata_where_the_config_has_none(changed, scan):
    def change(config):
        del config["label_names"]
        config["save"].pop("writer")
        config["postprocessing"]["transforms"][-1] = config.pop("save")  # as configs of version 0.1 have it

    predictor = changed(change)
    assert predictor.names == {1: "liver"}
    assert predictor(str(scan)).labels.sum() == 5 * 5 * 4


def test_a_bundle_without_inference_or_without_weights_in_it_is_named(changed, tmp_path):
    with pytest.raises(InputError, match="has no configs/inference.json"):
        BundlePredictor(tmp_path)
    with pytest.raises(InputError, match="loads no weights; add a CheckpointLoader"):
        changed(lambda config: config.update(handlers=[]))


@pytest.mark.parametrize(("left_out", "said"), [(0, "back to the image's grid"), (1, "end with a label map")])
def test_a_result_that_is_no_label_map_on_the_images_grid_is_never_written(changed, scan, left_out, said):
    predictor = changed(lambda config: config["postprocessing"]["transforms"].pop(left_out))
    with pytest.raises(RuntimeError, match=said):
        predictor(str(scan))

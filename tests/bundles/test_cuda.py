"""The bundles on a GPU; skipped without one."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import pytest
import torch
from bundle_files import checkpointing_id, each_bundle, images_of, is_classifier, places, rows, run_bundle
from monai.utils import set_determinism

from med3d_ext.engines import computes_bfloat16
from med3d_ext.weights.initial import encoder_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("clean_process"),
    pytest.mark.filterwarnings("ignore"),
]
GPU = {"spatial_size": [32, 32, 32], "device": "cuda", "epochs": 2, "val_interval": 1}


def losses(run):
    return [float(row["loss"]) for row in rows(Path(run.parser.get_parsed_content("output_dir")) / "loss.csv")]


@each_bundle
def test_a_bundle_trains_evaluates_and_infers_on_a_gpu(bundle, on_phantoms, phantoms, tmp_path):
    run = run_bundle(bundle, "train", **{**on_phantoms, **GPU})
    get = run.parser.get_parsed_content
    assert all(parameter.is_cuda for parameter in get("network").parameters())
    assert get("train::dataloader").pin_memory
    kernel = next(p for p in encoder_of(get("network_def")).parameters() if p.dim() == 5 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(math.isfinite(loss) for loss in losses(run))
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True, map_location="cpu")
    assert all(torch.isfinite(value).all() for value in state.values())
    run_bundle(bundle, "train", "evaluate", **{**on_phantoms, "device": "cuda"})
    images, branch = images_of(phantoms(bundle))
    given = {**places(bundle, tmp_path), "output_dir": str(tmp_path / "found"), "dataset_dir": str(images), **branch}
    run_bundle(bundle, "inference", device="cuda", **given)
    maps = list((tmp_path / "found").glob("*_seg.nii.gz"))
    assert is_classifier(bundle) or maps
    assert all(nibabel.load(path).shape == nibabel.load(next(images.glob("*.nii.gz"))).shape for path in maps[:1])
    set_determinism(None)


@each_bundle
@pytest.mark.parametrize("way", ["float32", "checkpointing", "compile"])
def test_other_ways_to_compute_learn_nearly_the_same(bundle, way, on_phantoms, tmp_path):
    if way == "compile" and bundle.name != "lits_coarse":
        pytest.skip("compiling takes minutes: one bundle")
    other = {
        "float32": {"train::trainer::amp": False},
        "checkpointing": {checkpointing_id(bundle): True},
        "compile": {"train::trainer::compile": True},
    }[way]
    found = []
    for number, options in enumerate(({}, other)):
        given = {**on_phantoms, **GPU, "epochs": 1, **places(bundle, tmp_path / str(number)), **options}
        found.append(losses(run_bundle(bundle, "train", **given))[0])
        set_determinism(None)
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_bfloat16_is_used_where_the_gpu_computes_it():
    assert computes_bfloat16(torch.device("cuda")) == torch.cuda.is_bf16_supported(including_emulation=False)

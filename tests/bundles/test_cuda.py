"""The bundles on a GPU; skipped without one."""

from __future__ import annotations

import math

import nibabel
import pytest
import torch
from bundle_files import BUNDLES, checkpointing_id, images_of, is_classifier, run_bundle
from monai.utils import set_determinism

from med3d_ext.engines import computes_bfloat16
from med3d_ext.weights.initial import encoder_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("clean_process"),
    pytest.mark.filterwarnings("ignore"),
]
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
SMALL = {"spatial_size": [32, 32, 32], "init": "scratch", "device": "cuda", "epochs": 2, "val_interval": 1}


def losses(run):
    path = run.parser.get_parsed_content("output_dir")
    with open(f"{path}/loss.csv", encoding="utf-8") as file:
        return [float(line.split(",")[-1]) for line in file.read().splitlines()[1:]]


@each_bundle
def test_a_bundle_trains_evaluates_and_infers_on_a_gpu(bundle, folders, phantoms, tmp_path):
    data = phantoms(bundle)
    run = run_bundle(bundle, "train", **{**folders, **SMALL, "dataset_dir": str(data)})
    get = run.parser.get_parsed_content
    network, loader = get("network"), get("train::dataloader")
    assert all(parameter.is_cuda for parameter in network.parameters())
    assert loader.pin_memory
    kernel = next(p for p in encoder_of(get("network_def")).parameters() if p.dim() == 5 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(math.isfinite(loss) for loss in losses(run))
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True, map_location="cpu")
    assert all(torch.isfinite(value).all() for value in state.values())
    run_bundle(bundle, "train", "evaluate", **{**folders, "dataset_dir": str(data), "device": "cuda"})
    images = images_of(data)
    branch = {} if images.parent == data else {"branch": images.parent.name}
    out = tmp_path / "inference"
    run_bundle(
        bundle,
        "inference",
        **{**folders, "dataset_dir": str(images), "device": "cuda", "output_dir": str(out), **branch},
    )
    maps = list(out.rglob("*_seg.nii.gz"))
    assert is_classifier(bundle) or maps
    assert all(nibabel.load(path).shape == nibabel.load(next(images.glob("*.nii.gz"))).shape for path in maps[:1])
    set_determinism(None)


@each_bundle
@pytest.mark.parametrize("way", ["float32", "checkpointing", "compile"])
def test_other_ways_to_compute_learn_nearly_the_same(bundle, way, folders, phantoms, tmp_path):
    if way == "compile" and bundle.name != "lits_coarse":
        pytest.skip("compiling takes minutes: one bundle")
    options = {
        "float32": {"train::trainer::amp": False},
        "checkpointing": {checkpointing_id(bundle): True},
        "compile": {"train::trainer::compile": True},
    }[way]
    found = []
    for name, given in (("usual", {}), (way, options)):
        place = {"output_dir": str(tmp_path / name / "eval"), "ckpt_dir": str(tmp_path / name / "models")}
        run = run_bundle(
            bundle,
            "train",
            **{**folders, **SMALL, **place, "epochs": 1, "dataset_dir": str(phantoms(bundle)), **given},
        )
        found.append(losses(run)[0])
        set_determinism(None)
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_bfloat16_is_used_where_the_gpu_computes_it():
    assert computes_bfloat16(torch.device("cuda")) == torch.cuda.is_bf16_supported(including_emulation=False)

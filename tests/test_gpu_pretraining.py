"""The pretraining that is carried to a GPU: what is packed, how crops are drawn, and what comes back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from med3d_ext.networks import Med3DNet
from med3d_ext.tools.phantoms.dataset import phantom_dataset

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu_pretraining.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_pretraining", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SIZE, module.USUAL_SIZE, module.CT_MM, module.MR_MM = {}, (16, 24, 16), 16.0, 8.0
    module.VOXEL_MM = {}
    return module


@pytest.fixture(scope="module")
def store(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    phantom_dataset("3dseg8", folder / "data", 3)
    script.pack(folder / "data", folder / "store.npz")
    return folder / "store.npz"


def test_the_store_holds_training_cases_alone_and_their_values(script, store):
    data = script.Volumes(store, torch.device("cpu"))
    assert len(data.names) == 8 and all(len(cases) == 2 for cases in data.by_domain)  # one of three is test
    for classes, cases in zip(data.classes.values(), data.by_domain):
        for image, label, (low, high) in cases:
            assert image.shape == label.shape and int(label.max()) < classes and low < high
            values = image.float() / 255 * (high - low) + low
            assert abs(float(values.mean())) < 1  # z-scored, on a coarser grid


def test_a_crop_of_the_whole_volume_is_the_volume(script):
    volume = torch.rand(1, 1, 6, 8, 10)
    shape = np.array(volume.shape[2:])
    theta = torch.from_numpy(script._matrix(shape, shape, shape / 2, np.zeros(3))).float()[None]
    grid = torch.nn.functional.affine_grid(theta, volume.shape, align_corners=False)
    torch.testing.assert_close(torch.nn.functional.grid_sample(volume, grid, align_corners=False), volume)
    half = torch.from_numpy(script._matrix(shape, shape / 2, shape / 4, np.zeros(3))).float()[None]
    grid = torch.nn.functional.affine_grid(half, [1, 1, 3, 4, 5], align_corners=False)
    corner = torch.nn.functional.grid_sample(volume, grid, align_corners=False)
    torch.testing.assert_close(corner, volume[..., :3, :4, :5])


def test_what_was_stopped_resumes_on_the_same_samples_and_comes_back_in_pieces(
    script, store, tmp_path, monkeypatch, capsys
):
    settings = {"network_name": "resnet10", "samples": 8, "batch": 2, "device": "cpu"}
    script.train(store, tmp_path / "whole", minutes=60, **settings)
    ticks = iter([0.0, 0.0, 0.0, 1e9, 1e9])  # two batches, then time is over
    with monkeypatch.context() as patch:
        patch.setattr(script.time, "monotonic", lambda: next(ticks))
        script.train(store, tmp_path / "parts", minutes=60, **settings)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["samples"] == 4
    script.train(store, tmp_path / "parts", minutes=60, **settings)
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["done"] == parts["done"] == 8
    assert all(torch.equal(tensor, parts["network"][name]) for name, tensor in whole["network"].items())
    monkeypatch.setattr(script, "PIECE", 1 << 22)
    script.export(tmp_path / "whole", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) > 3
    script.join(tmp_path / "out", tmp_path / "model.pt")
    network = Med3DNet("resnet10", 1, script.Volumes(store, torch.device("cpu")).classes)
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for name, tensor in whole["network"].items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)

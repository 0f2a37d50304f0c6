"""The cascade's bundle: its first stage is carried along untouched, and whatever scan comes, a label map goes."""

from __future__ import annotations

import json
import logging

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import BUNDLES, SMALL, merged, places, run_bundle, workflow
from composed_networks import aspp_network

from med3d_ext.io.files import read_json
from med3d_ext.networks import Segmenter, TwoStageSegmenter
from med3d_ext.run.one_line import input_error_message

pytestmark = [pytest.mark.usefixtures("clean_process"), pytest.mark.filterwarnings("ignore")]

FINE = next(bundle for bundle in BUNDLES if bundle.name == "lits_fine")
WINDOW = [-200.0, 250.0]


def write_weights(path, network, **facts):
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    classes = {"0": "background", "1": "liver", "2": "tumor"}
    domain = {"hu_window": WINDOW, "spacing_mean": [2.0, 2.0, 4.0], "spatial_size": [32, 32, 32], "classes": classes}
    path.with_name("facts.json").write_text(json.dumps({"domains": {"liver": {**domain, **facts}}}))


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """One epoch of three classes with a coarse network from a file: folder, options, what that file held, the run."""
    root = tmp_path_factory.mktemp("cascade")
    coarse = Segmenter()
    for name, value in coarse.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
    write_weights(root / "coarse" / "model.pt", coarse, spatial_size=[24, 32, 16])
    options = {"coarse_weights": str(root / "coarse" / "model.pt"), "hu_window": WINDOW, "num_classes": 3}
    given = {"dataset_dir": str(phantoms(FINE)), "widths": [8, 4], **options, **SMALL, **places(FINE, root)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", list(__import__("sys").path))
        run = run_bundle(FINE, "train", epochs=1, val_interval=1, **given)
    torch.use_deterministic_algorithms(False)
    return root, given, coarse, run


def test_an_epoch_leaves_the_coarse_stage_bit_for_bit_and_moves_the_fine_one(trained):
    root, _, coarse, run = trained
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    for name, value in coarse.state_dict().items():
        assert torch.equal(state[f"coarse.{name}"], value), name
    statistics = [name for name in run.network_def.fine.state_dict() if name.endswith("running_mean")]
    assert statistics and all(state[f"fine.{name}"].any() for name in statistics)
    optimized = sum(len(group["params"]) for group in run.parser.get_parsed_content("optimizer").param_groups)
    assert optimized == len(list(run.network_def.fine.parameters()))
    (domain,) = read_json(root / "models" / "facts.json")["domains"].values()
    assert (domain["coarse_size"], domain["spatial_size"]) == ([24, 32, 16], [32, 32, 32])


def test_init_head_continues_with_the_whole_network(trained, tmp_path):
    root, given, *_ = trained
    path = root / "models" / "model.pt"
    run = workflow(FINE, "train", **{**given, **places(FINE, tmp_path), "init": str(path), "init_head": True})
    state = torch.load(path, weights_only=True)
    network = run.parser.get_parsed_content("network")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("classes", [2, 3])
def test_three_classes_keep_the_tumor_and_two_merge_it(trained, classes, tmp_path):
    run = workflow(FINE, "train", **{**trained[1], **places(FINE, tmp_path), "num_classes": classes})
    label = next(iter(run.parser.get_parsed_content("train::dataloader")))["label"]
    assert set(label.unique().tolist()) == set(range(classes))


@pytest.mark.parametrize("method", ["cascade", "coarse", "sliding"])
def test_the_cascade_and_each_stage_alone_are_evaluated_side_by_side(method, trained):
    root, given, *_ = trained
    given = {key: value for key, value in given.items() if key != "spatial_size"}
    run_bundle(FINE, "train", "evaluate", method=method, **given)
    folder = root / "eval" / ("test" if method == "cascade" else f"test_{method}")
    (metrics,) = read_json(folder / "summary.json")["domains"].values()
    assert set(metrics) == {"val_mean_dice", "val_assd_mm", "val_roi_recall", "val_roi_share"}
    assert 0 < metrics["val_roi_share"]["mean"] <= 1
    assert list(folder.glob("overlay_*.png"))


@pytest.fixture
def segment(tmp_path, caplog):
    """The label map of a NIfTI file by networks that say the same everywhere: liver if positive."""

    def run(path, coarse=1.0, fine=1.0):
        network = TwoStageSegmenter(Segmenter(), aspp_network(widths=(8, 4)))
        with torch.no_grad():
            for head, value in ((network.coarse.head, coarse), (network.fine.head, fine)):
                head.weight.zero_()
                head.bias.copy_(torch.tensor([0.0, value]))
        write_weights(tmp_path / "models" / "model.pt", network, coarse_size=[32, 32, 16])
        caplog.set_level(logging.INFO)
        run_bundle(FINE, "inference", dataset_dir=str(path), widths=[8, 4], device="cpu", **places(FINE, tmp_path))
        return nibabel.load(next((tmp_path / "eval").iterdir()))

    return run


def scan(*shape):
    return np.full(shape, -1000, np.int16)


def test_a_scan_without_liver_gives_an_empty_map_and_a_warning(segment, nifti, tmp_path, caplog):
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    found = segment(nifti(tmp_path / "head.nii.gz", scan(40, 36, 20), affine), coarse=-1.0, fine=-1.0)
    assert found.shape == (40, 36, 20) and not np.asarray(found.dataobj).any()
    assert caplog.text.count("The coarse network found nothing") == 1
    assert "The fine network found nothing: the label map is empty." in caplog.text


@pytest.mark.parametrize("slices", [10, 2])
def test_few_slices_are_segmented(slices, segment, nifti, tmp_path):
    found = segment(nifti(tmp_path / "few.nii.gz", scan(40, 36, slices), np.diag([2.0, 2.0, 5.0, 1.0])))
    assert found.shape == (40, 36, slices) and np.asarray(found.dataobj).all()


def test_a_file_without_spacing_takes_that_of_the_training(segment, nifti, tmp_path):
    found = segment(nifti(tmp_path / "zero.nii.gz", scan(20, 20, 20), pixdim=(0.0, 0.0, 0.0)))
    assert found.header.get_zooms() == (2.0, 2.0, 4.0)


def test_a_single_slice_is_refused_in_one_sentence(segment, nifti, tmp_path):
    path = nifti(tmp_path / "slice.nii.gz", scan(40, 36, 1), np.eye(4))
    with pytest.raises(RuntimeError) as caught:
        segment(path)
    assert (input_error_message(caught.value) or "").startswith(f"'{path}' is not a 3D volume")


def test_a_speck_is_no_liver_in_inference_and_evaluation_alike_and_small_organs_stay():
    minima = {merged(FINE, *names)["minimum_ml"] for names in (("inference",), ("train", "evaluate"))}
    assert len(minima) == 1 and 0.025 < minima.pop() < 0.9  # a head had 0.017 ml, the least of the test bodies has 0.96

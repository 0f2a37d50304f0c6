"""MONAI Label really started: each bundle served by the stock app, asked over REST as 3D Slicer and OHIF ask.

Opt-in, for it needs an environment of its own (``make label-test``): pytest does not collect a file of this name unless
it is named. The interpreter of that environment is ``LABEL_PYTHON``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from patients import KINDS, LABELLED, REPOSITORY, install_bundle, make_studies, phantom_patients, run_bundle, train
from server import LabelServer, label_environment

PYTHON = os.environ.get("LABEL_PYTHON", str(REPOSITORY / ".venv-label" / "bin" / "python"))
BUNDLES = sorted(path.parents[1].name for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
SEGMENTATIONS = [name for name in BUNDLES if name in KINDS]


@pytest.fixture(scope="module", params=SEGMENTATIONS)
def served(request, tmp_path_factory):
    """A bundle with weights of one epoch, a folder of studies, and the server over both."""
    name, root = request.param, tmp_path_factory.mktemp(request.param)
    apps = ["-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", str(root)]
    subprocess.run([PYTHON, *apps], env=label_environment(), check=True, capture_output=True)
    bundle = install_bundle(name, root / "monaibundle")
    data, images = phantom_patients(name, root / "phantoms")
    train(bundle, data, root / "before")
    studies = make_studies(images, root / "studies")
    with LabelServer(PYTHON, root / "monaibundle", root / "studies", name, free_port()) as server:
        yield SimpleNamespace(name=name, root=root, bundle=bundle, studies=studies, server=server)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def metadata(served):
    return json.loads((served.bundle / "configs" / "metadata.json").read_text())


def image_id(path):
    return path.name.removesuffix(".nii.gz")


def segment(served, image, **sent):
    """The label map that the server answers with, as a file."""
    content = served.server.infer(served.name, "image", **(sent or {"image": image_id(image)}))
    path = served.root / f"answer_{image_id(image)}.nii.gz"
    path.write_bytes(content)
    return nibabel.load(path)


def voxels(label):
    return np.asarray(label.dataobj)


def check_grid(label, image):
    reference = nibabel.load(image)
    assert label.shape == reference.shape[:3]
    np.testing.assert_allclose(label.affine, reference.affine, atol=1e-3)


def run_here(served, name):
    """The same images segmented by ``monai.bundle run``, outside the server."""
    folder = served.root / name
    run_bundle(served.bundle, "inference", "--dataset_dir", served.root / "studies", "--output_dir", folder)
    return {path: nibabel.load(folder / path.name.replace(".nii", "_seg.nii")) for path in served.studies}


def test_the_server_lists_the_model_and_its_labels(served):
    info = served.server.get("info/")
    model = info["models"][served.name]
    channels = metadata(served)["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert model["type"] == "segmentation"
    assert model["labels"] == {label: int(value) for value, label in channels.items() if label != "background"}
    assert model["version"] == metadata(served)["version"]
    assert list(info["trainers"]) == [served.name]


def test_an_answer_lies_on_the_images_grid_and_is_twice_the_same(served):
    for image in served.studies:
        first, second = segment(served, image), segment(served, image)
        check_grid(first, image)
        assert np.array_equal(voxels(first), voxels(second))


def test_an_image_that_is_sent_along_gives_the_same(served):
    image = served.studies[0]
    sent = segment(served, image, file=image)
    assert np.array_equal(voxels(sent), voxels(segment(served, image)))


def test_the_server_answers_what_the_command_line_writes(served):
    for image, label in run_here(served, "command").items():
        differing = voxels(label) != voxels(segment(served, image))
        assert differing.mean() < 1e-4, f"{differing.sum()} voxels of {image.name}"


def test_a_batch_labels_the_images_without_label(served):
    options = {"device": "cpu", "multi_gpu": False, "label_tag": "original", "save_label": True, "max_workers": 1}
    served.server.post(f"batch/infer/{served.name}?images=unlabeled&run_sync=true", options)
    labelled = sorted((served.root / "studies" / "labels" / "original").glob("*.nii.gz"))
    assert [path.name for path in labelled] == [path.name for path in served.studies[LABELLED:]]
    check_grid(nibabel.load(labelled[0]), served.studies[LABELLED])


def test_a_training_gives_new_weights_that_are_served(served):
    models = served.bundle / "models"
    before = torch.load(models / "model.pt", weights_only=True)
    facts = json.loads((models / "facts.json").read_text())["domains"]
    details = served.server.train(served.name, max_epochs=1)
    assert not any("Traceback" in line for line in details)
    after = torch.load(models / "model.pt", weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    check_facts(facts, json.loads((models / "facts.json").read_text())["domains"])
    seen = json.loads((models / "card.json").read_text())["cases"]["training"]
    assert all(len(case["sha256"]) == 64 for case in seen)
    assert {path.name for path in served.studies[:LABELLED]} <= {case["image"] for case in seen}
    for image, label in run_here(served, "new_weights").items():
        differing = voxels(label) != voxels(segment(served, image))
        assert differing.mean() < 1e-4, f"{differing.sum()} voxels of {image.name}"


def check_facts(before, after):
    """New weights are normalized as those that they come from, not as the phantoms would be."""
    assert after.keys() == before.keys()
    for name, facts in before.items():
        for fact in ("hu_window", "intensity_range", "spacing_mean", "classes", "spatial_size"):
            assert after[name].get(fact) == facts.get(fact), f"{name}: {fact}"

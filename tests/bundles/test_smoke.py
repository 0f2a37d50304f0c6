"""Each bundle trains, evaluates and infers on small phantoms, in this process, and leaves what it promises."""

from __future__ import annotations

import csv
import json
import shutil
from functools import cache
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import BUNDLES, SMALL, images_of, is_classifier, key_metric, run_bundle, workflow
from monai.data import MetaTensor
from monai.utils import set_determinism

from med3d_ext.io.label_maps import read_label_names
from med3d_ext.networks import Segmenter
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.weights.initial import InitialWeights

PNG = b"\x89PNG"
EPOCHS = 2
ORIENTATIONS = {"lits_coarse": 6, "lits_fine": 6, "lung_segmentation": 2, "pretrain_3dseg8": 2}

pytestmark = [
    pytest.mark.usefixtures("clean_process"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """A bundle trained for two epochs, evaluated, and run on the images that it was trained on."""

    @cache
    def run(bundle):
        root, data = tmp_path_factory.mktemp(bundle.name), phantoms(bundle)
        folders = {"bundle_root": str(bundle), "output_dir": str(root / "eval"), "ckpt_dir": str(root / "models")}
        options = {"dataset_dir": str(data), "epochs": EPOCHS, "val_interval": 1}
        training = run_bundle(bundle, "train", **options, **SMALL, **folders)
        run_bundle(bundle, "train", "evaluate", dataset_dir=str(data), device="cpu", **folders)
        images = images_of(data)
        branch = {} if images.parent == data else {"branch": images.parent.name}
        folders["output_dir"] = str(root / "inference")
        run_bundle(bundle, "inference", dataset_dir=str(images), device="cpu", **branch, **folders)
        set_determinism(None)
        return SimpleNamespace(bundle=bundle, root=root, data=data, images=images, training=training)

    return run


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def run(request, runs):
    return runs(request.param)


@pytest.fixture(params=[bundle for bundle in BUNDLES if not is_classifier(bundle)], ids=lambda path: path.name)
def segmentation(request, runs):
    return runs(request.param)


@pytest.fixture(params=[bundle for bundle in BUNDLES if is_classifier(bundle)], ids=lambda path: path.name)
def classification(request, runs):
    return runs(request.param)


@pytest.fixture
def pretraining(runs):
    return runs(next(bundle for bundle in BUNDLES if bundle.name == "pretrain_3dseg8"))


def read(path):
    return json.loads(path.read_text())


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_leaves_weights_that_carry_their_facts(run):
    models = run.root / "models"
    state = torch.load(models / "model.pt", weights_only=True)
    run.training.network_def.load_state_dict(state)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert torch.load(models / "training_state.pt", weights_only=True)["epoch"] == EPOCHS
    card = read(models / "card.json")
    init = "scratch" if run.bundle.name == "pretrain_3dseg8" else "med3d"
    assert (card["epochs"], card["network"], card["init"]) == (EPOCHS, "resnet10", init)
    assert card["cases"]["training"]
    assert ("initial_weights" in card["cases"]) == (init == "med3d")
    assert all(len(case["sha256"]) == 64 for case in card["cases"]["training"])
    for domain in read(models / "facts.json")["domains"].values():
        assert domain["spatial_size"] == [32, 32, 32]


def test_a_training_leaves_its_record_and_its_curves(run):
    folder = run.root / "eval"
    record = read(folder / "run.json")
    assert (record["status"], record["epochs"]) == ("completed", EPOCHS)
    assert str(run.root) not in json.dumps(record["data"])
    history = rows(folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    name = key_metric(run.bundle)
    assert all(float(row["loss"]) > 0 and 0 <= float(row[name]) <= 1 for row in history)
    assert len(rows(folder / "loss.csv")) == record["iterations"]
    for picture in ("loss.png", "auc.png" if is_classifier(run.bundle) else "dice.png"):
        assert (folder / picture).read_bytes().startswith(PNG)
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert not list(run.root.rglob("*.tmp"))


def test_an_evaluation_leaves_figures_and_pictures_of_the_test_cases(run):
    folder = run.root / "eval" / "test"
    test_cases = run.training.parser.get_parsed_content("data").test
    summary = read(folder / "summary.json")
    cases = rows(folder / "cases.csv")
    assert (summary["split"], summary["n"], len(cases)) == ("test", len(test_cases), len(test_cases))
    assert set(summary["domains"]) == {item["domain"] for item in test_cases}
    for metrics in summary["domains"].values():
        assert metrics[key_metric(run.bundle)]["n"] > 0
    if is_classifier(run.bundle):
        pictures = [folder / "reliability.png", folder / "roc.png"]
    else:
        pictures = list(folder.glob("overlay_*.png"))
        assert 0 < len(pictures) <= len(test_cases)
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)


def test_no_test_case_was_trained_on(run):
    card = read(run.root / "models" / "card.json")["cases"]
    seen = {case["sha256"] for cases in card.values() for case in cases}
    assert seen.isdisjoint(item["sha256"] for item in run.training.parser.get_parsed_content("data").test)


def test_classes_come_as_a_table_with_a_row_per_image(classification):
    cases = read(classification.root / "inference" / "predictions.json")["cases"]
    assert [case["case"] for case in cases] == sorted(path.name for path in classification.images.iterdir())
    assert all(0 <= case["probability"] <= 1 for case in cases)
    table = rows(classification.root / "inference" / "predictions.csv")
    assert [row["prediction"] for row in table] == [case["prediction"] for case in cases]


def test_a_point_in_a_scan_is_classified_as_the_cube_around_it(classification, tmp_path):
    image = sorted(classification.images.iterdir())[0]
    header = nibabel.load(image)
    middle = header.affine[:3, :3] @ (np.array(header.shape) / 2 - 0.5) + header.affine[:3, 3]
    points = [f"middle,{middle[0]},{middle[1]},{middle[2]}", f"aside,{middle[0]},{middle[1] + 9},{middle[2]}"]
    (tmp_path / "points.csv").write_text("\n".join(["name,x,y,z", *points]))
    weights = shutil.copytree(classification.root / "models", tmp_path / "models") / "model.pt"
    state = torch.load(weights, weights_only=True)
    # After two epochs the probabilities are often 0 or 1 to the last digit, whatever the cube.
    torch.save({name: value / 100 if name.startswith("head.") else value for name, value in state.items()}, weights)
    given = {"device": "cpu", "dataset_dir": str(image), "ckpt_dir": str(weights.parent)}
    given["bundle_root"] = str(classification.bundle)
    run_bundle(classification.bundle, "inference", output_dir=str(tmp_path / "cube"), **given)
    points = {"points": str(tmp_path / "points.csv"), "output_dir": str(tmp_path / "out")}
    run_bundle(classification.bundle, "inference", **points, **given)
    middle_row, aside_row = read(tmp_path / "out" / "predictions.json")["cases"]
    (cube,) = read(tmp_path / "cube" / "predictions.json")["cases"]
    assert middle_row["name"] == "middle" and middle_row["case"] == cube["case"]
    assert middle_row["probability"] == pytest.approx(cube["probability"], abs=1e-4)
    assert aside_row["probability"] != pytest.approx(cube["probability"], abs=1e-4)


def test_a_labelling_server_gets_a_score_per_class(classification):
    """It runs the transforms one by one on its request, then reads ``pred.array`` and must find no image."""
    folders = {"bundle_root": str(classification.bundle), "ckpt_dir": str(classification.root / "models")}
    made = workflow(classification.bundle, "inference", device="cpu", **folders)
    network = made.network_def.eval()
    network.load_state_dict(torch.load(classification.root / "models" / "model.pt", weights_only=True))
    path = str(sorted(classification.images.iterdir())[0])
    data = {"image": path, "image_path": path, "device": "cpu", "model": classification.bundle.name}
    for transform in made.preprocessing.transforms:
        data = transform(data)
    with torch.inference_mode():
        data["pred"] = made.inferer(data["image"][None], network)[0]
    for transform in made.postprocessing.transforms:
        data = transform(data)
    cube = read(classification.root / "inference" / "predictions.json")["cases"][0]
    np.testing.assert_allclose(data["pred"].array, [1 - cube["probability"], cube["probability"]], atol=1e-4)
    assert "image" not in data and data["image_path"] == path


def test_label_maps_lie_on_the_grid_of_their_images(segmentation):
    run = segmentation
    images = sorted(run.images.iterdir())
    orientations = set()
    for path in images:
        image = nibabel.load(path)
        segmented = nibabel.load(run.root / "inference" / path.name.replace(".nii", "_seg.nii"))
        assert segmented.shape == image.shape[:3]
        np.testing.assert_allclose(segmented.affine, image.affine, atol=1e-4)
        assert segmented.get_data_dtype() == np.uint8
        names = read_label_names(segmented.get_filename())
        assert names and set(np.unique(np.asarray(segmented.dataobj)).tolist()) <= {0, *names}
        orientations.add("".join(nibabel.aff2axcodes(image.affine)))
    assert len(orientations) == ORIENTATIONS[run.bundle.name]


def without_domains(training):
    """The items as a labelling server sends them."""
    return [
        {key: item[key] for key in ("image", "label")} for item in training.parser.get_parsed_content("data").training
    ]


def test_items_of_a_labelling_server_train(run, tmp_path):
    items = without_domains(run.training)[:2]
    if run.bundle.name == "pretrain_3dseg8":  # 4D images name their channel: the server's are 3D
        spleens = sorted((run.data / "Task09_Spleen" / "imagesTr").iterdir())
        items = [{"image": str(path), "label": str(path).replace("imagesTr", "labelsTr")} for path in spleens]
    folders = {
        "bundle_root": str(run.bundle),
        "output_dir": str(tmp_path / "eval"),
        "ckpt_dir": str(tmp_path / "models"),
    }
    data = {"train::dataset::data": items, "validate::dataset::data": items, "train::trainer::max_epochs": 1}
    trained = run_bundle(run.bundle, "train", dataset_dir=str(run.data), **data, **SMALL, **folders)
    assert trained.trainer.state.epoch == 1
    card = read(tmp_path / "models" / "card.json")
    assert [case["image"] for case in card["cases"]["training"]] == [item["image"].rpartition("/")[2] for item in items]


def test_the_pretrained_encoder_goes_into_the_liver_network_whole(pretraining):
    path = pretraining.root / "models" / "encoder.pt"
    state = torch.load(path, weights_only=True)
    ResNetEncoder("resnet10").load_state_dict(state, strict=True)
    network = Segmenter("resnet10", in_channels=1, num_classes=2, output_stride=8)
    initial = InitialWeights(network, str(path))
    assert (initial.report.share, initial.learning_rate) == (1.0, 0.001)
    best = torch.load(pretraining.root / "models" / "model.pt", weights_only=True)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, best[f"encoder.{name}"]), name


def test_every_domain_has_its_own_loss_and_dice_from_the_first_epoch(pretraining):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    domains = read(pretraining.root / "models" / "facts.json")["domains"]
    assert len(domains) == 8
    first = rows(pretraining.root / "eval" / "history.csv")[0]
    assert all(float(first[f"loss/{domain}"]) > 0 for domain in domains)
    assert all(0 <= float(first[f"val_mean_dice/{domain}"]) <= 1 for domain in domains)
    folder = next((pretraining.root / "eval" / "tensorboard").rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    for domain in domains:
        for name in (f"loss/{domain}", f"val_mean_dice/{domain}"):
            assert name in tags
            assert [event.step for event in events.Scalars(name)] == [1, 2]


each_liver_bundle = pytest.mark.parametrize(
    "bundle", [each for each in BUNDLES if each.name.startswith("lits")], ids=lambda path: path.name
)


@each_liver_bundle
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_samples_is_cut_to_a_part_of_its_slices(bundle, share, phantoms, folders):
    run = workflow(bundle, "train", dataset_dir=str(phantoms(bundle)), cut_share=share, init="scratch", **folders)
    cut = run.parser.get_parsed_content("train::dataset").transform.transforms[-2]
    cut.set_random_state(0)
    volume = MetaTensor(torch.arange(100.0).expand(1, 2, 2, 100), affine=torch.eye(4))
    samples = [cut({"image": volume, "label": volume}) for _ in range(40)]
    slices = [sample["image"].shape[3] for sample in samples]
    assert 0.7 * share <= sum(count < 100 for count in slices) / 40 <= 1.3 * share
    assert all(30 <= count <= 100 for count in slices)
    for sample in samples:  # image and label are cut alike, and the affine tells where
        first = float(sample["image"][0, 0, 0, 0])
        assert torch.equal(sample["image"].as_tensor(), sample["label"].as_tensor())
        assert sample["image"].affine[2, 3] == first


@each_liver_bundle
def test_scans_without_a_liver_are_trained_on_and_stand_in_the_card(bundle, phantoms, folders, tmp_path, nifti):
    nifti(tmp_path / "negatives" / "head.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 10)).astype(np.float32))
    options = {"dataset_dir": str(phantoms(bundle)), "negatives": str(tmp_path / "negatives"), "init": "scratch"}
    training = run_bundle(bundle, "train", epochs=1, val_interval=1, **options, **SMALL, **folders)
    data = training.parser.get_parsed_content("train::dataset").data
    seen = read(tmp_path / "models" / "card.json")["cases"]
    assert len(seen["training"]) == len(data) == len(training.parser.get_parsed_content("data").training) + 1
    assert seen["training"][-1]["image"] == "head.nii.gz"
    assert "head.nii.gz" not in {case["image"] for case in seen["validation"]}

"""Each bundle trains, evaluates and infers on small phantoms, in this process, and leaves what it promises."""

from __future__ import annotations

import json
import shutil
from functools import cache
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_files import BUNDLES, SMALL, each_of, images_of, is_classifier, merged, places, rows, run_bundle, workflow
from monai.data import MetaTensor
from monai.utils import set_determinism

from med3d_ext.io.files import read_json
from med3d_ext.io.label_maps import read_label_names
from med3d_ext.networks import Segmenter
from med3d_ext.networks.resnet import ResNetEncoder
from med3d_ext.weights.initial import InitialWeights

EPOCHS = 2
ORIENTATIONS = {"lits_coarse": 6, "lits_fine": 6, "lung_segmentation": 2, "pretrain_3dseg8": 2}

pytestmark = [pytest.mark.usefixtures("clean_process"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def runs(phantoms, tmp_path_factory):
    """A bundle trained for two epochs, evaluated, and run on the images that it was trained on."""

    @cache
    def run(bundle):
        root, data = tmp_path_factory.mktemp(bundle.name), phantoms(bundle)
        folders = {**places(bundle, root), "dataset_dir": str(data), "device": "cpu"}
        training = run_bundle(bundle, "train", **{**folders, **SMALL}, epochs=EPOCHS, val_interval=1)
        run_bundle(bundle, "train", "evaluate", **folders)
        images, branch = images_of(data)
        given = {**folders, "output_dir": str(root / "inference"), "dataset_dir": str(images), **branch}
        inference = run_bundle(bundle, "inference", **given)
        set_determinism(None)
        return SimpleNamespace(
            bundle=bundle, root=root, data=data, images=images, training=training, inference=inference, given=given
        )

    return run


def trained(*bundles):
    return pytest.fixture(params=bundles, ids=lambda path: path.name)(lambda request, runs: runs(request.param))


run = trained(*BUNDLES)
segmentation = trained(*(bundle for bundle in BUNDLES if not is_classifier(bundle)))
classification = trained(*(bundle for bundle in BUNDLES if is_classifier(bundle)))
pretraining = trained(*(bundle for bundle in BUNDLES if bundle.name == "pretrain_3dseg8"))


def key_metric(bundle):
    """The metric that picks the best epoch."""
    return next(iter(merged(bundle, "train")["validate"]["key_metric"]))


def are_pictures(*paths):
    return all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_a_training_leaves_weights_that_carry_their_facts_and_no_test_case(run):
    models = run.root / "models"
    state = torch.load(models / "model.pt", weights_only=True)
    run.training.network_def.load_state_dict(state)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert torch.load(models / "training_state.pt", weights_only=True)["epoch"] == EPOCHS
    card = read_json(models / "card.json")
    init = "scratch" if run.bundle.name == "pretrain_3dseg8" else "med3d"
    assert (card["epochs"], card["network"], card["init"]) == (EPOCHS, "resnet10", init)
    assert card["cases"]["training"] and ("initial_weights" in card["cases"]) == (init == "med3d")
    seen = {case["sha256"] for cases in card["cases"].values() for case in cases}
    assert all(len(digest) == 64 for digest in seen)
    assert seen.isdisjoint(item["sha256"] for item in run.training.parser.get_parsed_content("data").test)
    for domain in read_json(models / "facts.json")["domains"].values():
        assert domain["spatial_size"] == [32, 32, 32]


def test_a_training_leaves_its_record_and_its_curves(run):
    folder = run.root / "eval"
    record = read_json(folder / "run.json")
    assert (record["status"], record["epochs"]) == ("completed", EPOCHS)
    assert str(run.root) not in json.dumps(record["data"])
    history = rows(folder / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row[key_metric(run.bundle)]) <= 1 for row in history)
    assert len(rows(folder / "loss.csv")) == record["iterations"]
    assert are_pictures(folder / "loss.png", folder / ("auc.png" if is_classifier(run.bundle) else "dice.png"))
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert not list(run.root.rglob("*.tmp"))


def test_an_evaluation_leaves_figures_and_pictures_of_the_test_cases(run):
    folder = run.root / "eval" / "test"
    test_cases = run.training.parser.get_parsed_content("data").test
    summary, cases = read_json(folder / "summary.json"), rows(folder / "cases.csv")
    assert (summary["split"], summary["n"], len(cases)) == ("test", len(test_cases), len(test_cases))
    assert set(summary["domains"]) == {item["domain"] for item in test_cases}
    assert all(metrics[key_metric(run.bundle)]["n"] > 0 for metrics in summary["domains"].values())
    overlays = list(folder.glob("overlay_*.png"))
    assert is_classifier(run.bundle) or 0 < len(overlays) <= len(test_cases)
    assert are_pictures(*([folder / "reliability.png", folder / "roc.png"] if is_classifier(run.bundle) else overlays))


def test_label_maps_are_on_the_grid_of_their_images(segmentation):
    orientations = set()
    for path in segmentation.images.iterdir():
        image = nibabel.load(path)
        segmented = nibabel.load(segmentation.root / "inference" / path.name.replace(".nii", "_seg.nii"))
        assert segmented.shape == image.shape[:3]
        np.testing.assert_allclose(segmented.affine, image.affine, atol=1e-4)
        assert segmented.get_data_dtype() == np.uint8
        names = read_label_names(segmented.get_filename())
        assert names and set(np.unique(np.asarray(segmented.dataobj)).tolist()) <= {0, *names}
        orientations.add("".join(nibabel.aff2axcodes(image.affine)))
    assert len(orientations) == ORIENTATIONS[segmentation.bundle.name]


def test_classes_come_as_a_table_with_a_row_per_image(classification):
    cases = read_json(classification.root / "inference" / "predictions.json")["cases"]
    assert [case["case"] for case in cases] == sorted(path.name for path in classification.images.iterdir())
    assert all(0 <= case["probability"] <= 1 for case in cases)
    table = rows(classification.root / "inference" / "predictions.csv")
    assert [row["prediction"] for row in table] == [case["prediction"] for case in cases]


def test_a_point_in_a_scan_is_classified_as_the_cube_around_it(classification, tmp_path):
    image = sorted(classification.images.iterdir())[0]
    header = nibabel.load(image)
    x, y, z = header.affine[:3, :3] @ (np.array(header.shape) / 2 - 0.5) + header.affine[:3, 3]
    (tmp_path / "points.csv").write_text(f"name,x,y,z\nmiddle,{x},{y},{z}\naside,{x},{y + 9},{z}")
    weights = shutil.copytree(classification.root / "models", tmp_path / "models") / "model.pt"
    state = torch.load(weights, weights_only=True)
    # After two epochs the probabilities are often 0 or 1 to the last digit, whatever the cube.
    torch.save({name: value / 100 if name.startswith("head.") else value for name, value in state.items()}, weights)
    given = {**classification.given, "dataset_dir": str(image), "ckpt_dir": str(weights.parent)}
    found = []
    for name, points in (("cube", {}), ("points", {"points": str(tmp_path / "points.csv")})):
        run_bundle(classification.bundle, "inference", **{**given, **points, "output_dir": str(tmp_path / name)})
        found += read_json(tmp_path / name / "predictions.json")["cases"]
    cube, middle, aside = found
    assert middle["name"] == "middle" and middle["case"] == cube["case"]
    assert middle["probability"] == pytest.approx(cube["probability"], abs=1e-4)
    assert aside["probability"] != pytest.approx(cube["probability"], abs=1e-4)


def test_a_labelling_servers_request_gives_what_inference_gives(run):
    """MONAI Label runs the transforms one by one on an item with the path under two keys, and saves by itself."""
    made, path = run.inference, sorted(run.images.iterdir())[0]
    item = {"image": str(path), "image_path": str(path), "device": "cpu", "model": run.bundle.name}
    for transform in made.preprocessing.transforms:
        item = transform(item)
    with torch.inference_mode():
        item["pred"] = made.inferer(item["image"][None], made.network_def.eval())[0]
    for transform in made.postprocessing.transforms:
        item = item if type(transform).__name__ == "SaveImaged" else transform(item)
    assert item["image_path"] == str(path)
    if is_classifier(run.bundle):
        (cube, *_) = read_json(run.root / "inference" / "predictions.json")["cases"]
        np.testing.assert_allclose(item["pred"].array, [1 - cube["probability"], cube["probability"]], atol=1e-4)
        assert "image" not in item  # it would bring the scores to the image's grid
        return
    saved = nibabel.load(run.root / "inference" / path.name.replace(".nii", "_seg.nii"))
    assert item["pred"].shape[1:] == saved.shape == tuple(item["image"].meta["spatial_shape"].tolist())
    np.testing.assert_allclose(item["pred"].affine.numpy(), saved.affine, atol=1e-4)


def test_items_of_a_labelling_server_train(run, tmp_path):
    """They have no domain."""
    items = run.training.parser.get_parsed_content("data").training[:2]
    items = [{key: item[key] for key in ("image", "label")} for item in items]
    if run.bundle.name == "pretrain_3dseg8":  # 4D images name their channel: the server's are 3D
        spleens = sorted((run.data / "Task09_Spleen" / "imagesTr").iterdir())
        items = [{"image": str(path), "label": str(path).replace("imagesTr", "labelsTr")} for path in spleens]
    data = {"train::dataset::data": items, "validate::dataset::data": items, "train::trainer::max_epochs": 1}
    given = {**places(run.bundle, tmp_path), "dataset_dir": str(run.data), **SMALL, **data}
    assert run_bundle(run.bundle, "train", **given).trainer.state.epoch == 1
    card = read_json(tmp_path / "models" / "card.json")
    assert [case["image"] for case in card["cases"]["training"]] == [item["image"].rpartition("/")[2] for item in items]


def test_the_pretrained_encoder_goes_into_the_liver_network_whole(pretraining):
    path = pretraining.root / "models" / "encoder.pt"
    ResNetEncoder("resnet10").load_state_dict(torch.load(path, weights_only=True), strict=True)
    network = Segmenter("resnet10", in_channels=1, num_classes=2, output_stride=8)
    initial = InitialWeights(network, str(path))
    assert (initial.report.share, initial.learning_rate) == (1.0, 0.001)
    best = torch.load(pretraining.root / "models" / "model.pt", weights_only=True)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, best[f"encoder.{name}"]), name


def test_every_domain_has_its_own_loss_and_dice_from_the_first_epoch(pretraining):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    domains = read_json(pretraining.root / "models" / "facts.json")["domains"]
    assert len(domains) == 8
    first = rows(pretraining.root / "eval" / "history.csv")[0]
    folder = next((pretraining.root / "eval" / "tensorboard").rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(folder)).Reload()
    for domain in domains:
        assert float(first[f"loss/{domain}"]) > 0 and 0 <= float(first[f"val_mean_dice/{domain}"]) <= 1
        for name in (f"loss/{domain}", f"val_mean_dice/{domain}"):
            assert [event.step for event in events.Scalars(name)] == [1, 2]


@each_of("lits_coarse", "lits_fine")
def test_a_share_of_the_samples_is_cut_to_a_part_of_its_slices(bundle, on_phantoms):
    volume = MetaTensor(torch.arange(100.0).expand(1, 2, 2, 100), affine=torch.eye(4))
    for share in (0.0, 0.5, 1.0):
        cut = workflow(bundle, "train", **on_phantoms, cut_share=share).parser.get_parsed_content("train::cut")
        cut.set_random_state(0)
        samples = [cut({"image": volume, "label": volume}) for _ in range(40)]
        slices = [sample["image"].shape[3] for sample in samples]
        assert 0.7 * share <= sum(count < 100 for count in slices) / 40 <= 1.3 * share
        assert all(30 <= count <= 100 for count in slices)
        for sample in samples:  # image and label are cut alike, and the affine says where
            assert torch.equal(sample["image"].as_tensor(), sample["label"].as_tensor())
            assert sample["image"].affine[2, 3] == float(sample["image"][0, 0, 0, 0])


@each_of("lits_coarse", "lits_fine")
def test_scans_without_a_liver_are_trained_on_and_listed_in_the_card(bundle, on_phantoms, tmp_path, nifti):
    nifti(tmp_path / "negatives" / "head.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 10)).astype(np.float32))
    options = {**on_phantoms, **SMALL, "negatives": str(tmp_path / "negatives")}
    get = run_bundle(bundle, "train", epochs=1, val_interval=1, **options).parser.get_parsed_content
    seen = read_json(tmp_path / "models" / "card.json")["cases"]
    assert len(seen["training"]) == len(get("train::dataset").data) == len(get("data").training) + 1
    assert seen["training"][-1]["image"] == "head.nii.gz"
    assert "head.nii.gz" not in {case["image"] for case in seen["validation"]}

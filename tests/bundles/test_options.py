"""Every option of every bundle does what it says, or is refused in a sentence. Nothing is trained."""

from __future__ import annotations

import json
import os

import pytest
import torch
from bundle_files import BUNDLES, checkpointing_id, merged, workflow
from monai.bundle import ConfigParser, ConfigWorkflow

from med3d_ext.data.loader import chosen_workers
from med3d_ext.errors import InputError
from med3d_ext.networks import ResNetEncoder
from med3d_ext.run.one_line import input_error_message, user_message
from med3d_ext.run.options import OPTIONS, check_options
from med3d_ext.weights.initial import encoder_of

pytestmark = pytest.mark.usefixtures("clean_process")
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def handler(get, name):
    return next(one for one in get("train::handlers") if type(one).__name__ == name)


def parameters(network):
    return sum(each.numel() for each in network.parameters())


# Id, value, and what the built objects have of it: the value itself if nothing else is stated.
EFFECTS = {
    "epochs": (3, lambda get: get("train::trainer").state.max_epochs),
    "network_name": (
        "resnet18",
        lambda get: (
            "resnet18"
            if parameters(encoder_of(get("network_def"))) == parameters(ResNetEncoder("resnet18", 1, 16))
            else "other"
        ),
    ),
    "output_stride": (16, lambda get: encoder_of(get("network_def")).output_stride),
    "num_workers": (1, lambda get: get("train::dataloader").num_workers),
    "seed": (11, lambda get: get("train::sampler").seed),
    "resume": (False, lambda get: handler(get, "ResumableCheckpoint").resume),
    "batch_size": (3, lambda get: batch_size(get("train::dataloader"))),
    "learning_rate": (0.5, lambda get: get("optimizer").param_groups[0]["lr"]),
    "head_lr_multiplier": (3.0, lambda get: get("optimizer").param_groups[1]["lr"] / 0.5),
    "heads_first_epochs": (2, lambda get: handler(get, "FreezeEncoder").epochs),
    "val_interval": (4, lambda get: handler(get, "EpochValidation").interval),
    "samples_per_domain": (5, lambda get: get("train::sampler").samples_per_domain),
    "crop_spacing": ([2.0, 2.0, 3.0], lambda get: list(get("train::random_transforms::0").spacing)),
    "accumulate": (2, lambda get: get("train::trainer").accumulation_steps),
    "max_gradient_norm": (1.5, lambda get: get("train::trainer::iteration_update").max_gradient_norm),
    "share": (0.5, lambda get: get("data").share),
    "spatial_size": ([40, 32, 24], lambda get: get_size(get)),
    "margin_mm": (7.0, lambda get: get_margin(get)),
    "channel": (0, lambda get: get("data::options")["channel"]),
    "hu_window": ([-100.0, 200.0], lambda get: list(get("domain")["hu_window"])),
    "cut_share": (0.25, lambda get: get("train::random_transforms::0").weights[0]),
    "widths": ([16, 8], lambda get: [16, 8] if "widths" in merged_text(get) else None),
    "folds": (2, lambda get: get("data::options")["folds"]),
    "fold": (1, lambda get: get("data::options")["fold"]),
    "ties": ("benign", lambda get: get("data::options")["ties"]),
    "skip_bad": (True, lambda get: get("data::options")["skip_bad"]),
    "cube_mm": (28.0, lambda get: get("domain")["cube_mm"]),
    "coarse_output_stride": (32, lambda get: encoder_of(get("network_def").coarse).output_stride),
    "branch": ("Task04_Hippocampus", lambda get: get("train::preprocessing_transforms::0").domain),
    "main_process": (False, lambda get: any("TensorBoard" in type(one).__name__ for one in get("train::handlers"))),
}
# Ids that name files: a wrong one is refused as soon as it is needed.
REFUSED = {
    "init": ("nowhere.pt", "network"),
    "negatives": ("/nowhere", "train::dataset"),
    "coarse_weights": ("/nowhere.pt", "coarse_stage"),
    "domains": (["Task99"], "data"),
    "coarse_network_name": ("resnet11", "network_def"),
    "init_head": (True, "initial_weights"),
}
# What the fixtures of these tests set, what MONAI's tracking reads, and what test_lits_fine and test_lung try.
ELSEWHERE = {"bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "device", "save_execute_config", "num_classes"}
ELSEWHERE |= {"store_dir"}  # a test of its own below


def batch_size(loader):
    return loader.batch_size or loader.batch_sampler.batch_size


def get_size(get):
    part = get("validate::resize") if "resize" in get("validate") else get("validate::crop")
    sizes = getattr(part, "spatial_size", None)
    return list(next(iter(sizes.values())) if isinstance(sizes, dict) else sizes)


def get_margin(get):
    if "crop" in get("validate"):
        return get("validate::crop").margin_mm
    return get("validate::additional_metrics")["val_roi_recall"].metric_fn.margin_mm


def merged_text(get):
    convolutions = [one for one in get("network_def").fine.modules() if isinstance(one, torch.nn.Conv3d)]
    return "widths" if {16, 8} <= {one.out_channels for one in convolutions} else ""


@each_bundle
def test_every_option_has_an_effect(bundle, folders, phantoms):
    config = merged(bundle, "train")
    literal = {name for name, value in config.items() if not isinstance(value, dict)}
    literal -= {"imports", "initialize", "run", "finalize"}
    derived = {"domain", "network", "default_domain", "grid", "grids"}
    assert literal - derived <= EFFECTS.keys() | REFUSED.keys() | ELSEWHERE, "an option without a probe"
    mine = {name: value for name, (value, _) in EFFECTS.items() if name in literal}
    source = str(phantoms(bundle))
    run = workflow(bundle, "train", **{**folders, "dataset_dir": source, "device": "cpu", "init": "scratch", **mine})
    get = run.parser.get_parsed_content
    found = {name: EFFECTS[name][1](get) for name in mine}
    assert found == mine
    assert get("lr_scheduler").T_max == 3


@each_bundle
def test_the_store_is_where_it_is_asked_for_and_every_reader_of_volumes_has_it(bundle, folders, phantoms, tmp_path):
    options = {**folders, "dataset_dir": str(phantoms(bundle)), "init": "scratch", "store_dir": str(tmp_path / "here")}
    get = workflow(bundle, "train", **options).parser.get_parsed_content
    store = get("train::dataset").store
    assert store.folder == tmp_path / "here"
    assert get("train::preprocessing_transforms")[0].store is store
    assert list(store.folder.glob("*.volume.pt"))  # the preparation's


@each_bundle
def test_gradient_checkpointing_is_an_option_of_every_encoder(bundle, folders, phantoms):
    options = {**folders, "dataset_dir": str(phantoms(bundle)), "init": "scratch", checkpointing_id(bundle): True}
    assert encoder_of(workflow(bundle, "train", **options).parser.get_parsed_content("network_def")).checkpointing


@each_bundle
def test_workers_are_chosen_by_the_machine_if_none_are_asked_for(bundle, folders, phantoms):
    get = workflow(
        bundle, "train", **{**folders, "dataset_dir": str(phantoms(bundle)), "init": "scratch", "device": "cpu"}
    ).parser.get_parsed_content
    assert get("train::dataloader").num_workers == chosen_workers("cpu")


@each_bundle
def test_the_ids_that_a_monai_user_expects_have_an_effect(bundle, folders, phantoms):
    given = {
        "optimizer::lr": 0.125,
        "optimizer::weight_decay": 0.5,
        "head_lr_multiplier": 4.0,
        "train::trainer::amp": "false",  # as a command line passes it on
        "train::trainer::max_epochs": 5,
        "train::trainer::epoch_length": 2,
        "train::trainer::accumulation_steps": 3,
        "train::trainer::optim_set_to_none": False,
        "train::dataloader::num_workers": 1,
    }
    run = workflow(bundle, "train", **{**folders, "dataset_dir": str(phantoms(bundle)), "init": "scratch", **given})
    get = run.parser.get_parsed_content
    assert [group["lr"] for group in get("optimizer").param_groups] == [0.125, 0.5]
    assert {group["weight_decay"] for group in get("optimizer").param_groups} == {0.5}
    trainer = get("train::trainer")
    assert (trainer.amp, trainer.state.max_epochs, trainer.state.epoch_length) == (False, 5, 2)
    assert (trainer.accumulation_steps, trainer.optim_set_to_none) == (3, False)
    assert get("lr_scheduler").T_max == 5
    assert type(get("train::trainer::iteration_update")).__name__ == "TrainingIteration"


@each_bundle
@pytest.mark.parametrize("name", REFUSED)
def test_a_name_of_nothing_is_refused(bundle, name, folders, phantoms):
    if name not in merged(bundle, "train"):
        return
    value, where = REFUSED[name]
    options = {**folders, "dataset_dir": str(phantoms(bundle)), "init": "scratch", name: value}
    with pytest.raises(Exception) as caught:  # noqa: PT011  MONAI wraps it
        workflow(bundle, "train", **options).parser.get_parsed_content(where)
    assert input_error_message(caught.value) is not None


@each_bundle
def test_every_value_out_of_range_is_refused_before_anything_is_built(bundle, folders, tmp_path):
    for names in (("train",), ("train", "evaluate"), ("inference",)):
        config = merged(bundle, *names)
        options = {name for name in OPTIONS if has(config, name)} - {"bundle_root"}
        assert {"dataset_dir", "output_dir", "device"} <= options
        for name in options:
            for bad in {0, -1, 1.5, True, "", float("nan"), "zzz"} if name != "domains" else {0, ""}:
                if OPTIONS[name].fits(bad) or (OPTIONS[name].rule == "a path" and bad in (0, -1, True)):
                    continue  # a folder may be called 0
                with pytest.raises(InputError, match=f"^{name} must be "):
                    check_options({name: bad})
        message = refusal(bundle, *names, **{**folders, "device": "cuda:99"})  # the table is asked at the door
        assert message.startswith("device must be "), message
    assert os.listdir(tmp_path) == []


def refusal(bundle, *names, make=None, **options):
    """The sentence that stops a workflow, empty where nothing does."""
    try:
        make() if make else workflow(bundle, *names, **options)
    except RuntimeError as error:
        return input_error_message(error) or ""
    return ""


def has(config, name):
    for key in name.split("::"):
        if not isinstance(config, dict) or key not in config:
            return False
        config = config[key]
    return True


@each_bundle
def test_a_misspelt_key_is_refused_wherever_it_is_written(bundle, folders, tmp_path):
    assert "did you mean 'epochs'?" in refusal(bundle, "train", epoch=3, **folders)
    overlay = tmp_path / "overlay.json"
    for content in ({"epoch": 3}, {"validate::evaluater": 3}, {"validat": {"x": "@epochs"}}):
        overlay.write_text(json.dumps(content))
        message = refusal(bundle, make=lambda: laid_over(bundle, overlay, folders))
        assert "has no effect" in message and "did you mean" in message, (content, message)


def laid_over(bundle, overlay, folders):
    files = [str(bundle / "configs" / "train.json"), str(overlay)]
    made = ConfigWorkflow(files, logging_file=False, **folders)
    made.initialize()
    return made


@each_bundle
def test_an_overlay_may_add_what_it_refers_to_and_notes(bundle, folders, tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"mine": 0.25, "optimizer::lr": "@mine", "_note": "x", "learning_rate": None}))
    assert laid_over(bundle, overlay, folders).parser.get_parsed_content("optimizer::lr") == 0.25


@each_bundle
@pytest.mark.parametrize("run_id", ["train", "training", "network", "epochs", "initialize"])
def test_what_runs_nothing_is_refused(bundle, run_id, folders):
    assert refusal(bundle, "train", run_id=run_id, **folders).startswith(f"'{run_id}' is not something to run")


@pytest.mark.parametrize("bundle", BUNDLES[:1])
def test_another_id_that_runs_something_is_legal(bundle, folders):
    workflow(bundle, "train", "evaluate", run_id="mine", mine=["$@validate::evaluator.run()"], **folders)


@each_bundle
def test_home_and_variables_in_paths_are_expanded(bundle, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    paths = {"output_dir": "~/a", "ckpt_dir": "$HOME/$PLACE/b", "dataset_dir": "${HOME}/c"}
    parser = workflow(bundle, "train", **{**folders, **paths}).parser
    found = {name: parser.get_parsed_content(name) for name in paths}
    assert found == {name: str(tmp_path / end) for name, end in zip(paths, ("a", "here/b", "c"))}
    message = refusal(bundle, "train", **{**folders, "output_dir": "~nobody_of_that_name/x"})
    assert "that this machine does not know" in message


def failed(expression, cause):
    """As MONAI wraps an error."""
    error = RuntimeError(f'Failed to evaluate ConfigExpression: \n"{expression}"')
    error.__cause__ = cause
    return error


def test_what_cannot_be_built_is_a_sentence_and_what_fails_in_a_run_is_a_fault():
    with pytest.raises(RuntimeError) as caught:
        ConfigParser({"o": {"_target_": "torch.optim.Adam", "params": 3}}).get_parsed_content("o")
    assert (user_message(caught.value) or "").startswith("The config's 'torch.optim.Adam' cannot be built (TypeError: ")
    nested = failed("$@train::trainer.run()", failed("$1/0", ZeroDivisionError("division by zero")))
    assert "$1/0" in (user_message(nested) or "")
    assert user_message(failed("$@train::trainer.run()", ZeroDivisionError("a fault"))) is None
    with pytest.raises(ValueError, match="not defined") as lost:
        ConfigParser({"a": "@b"}).get_parsed_content("a")
    assert "the referring item `@b` is not defined" in (user_message(lost.value) or "")

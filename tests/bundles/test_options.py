"""Every option of every bundle does what it says, or is refused in a sentence. Nothing is trained."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from bundle_files import checkpointing_id, each_bundle, each_of, merged, workflow
from monai.bundle import ConfigParser, ConfigWorkflow

from med3d_ext.data.loader import chosen_workers
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.networks import ResNetEncoder
from med3d_ext.run.one_line import input_error_message, user_message
from med3d_ext.run.options import OPTIONS, check_options
from med3d_ext.run.start import effective_config
from med3d_ext.weights.initial import encoder_of

pytestmark = pytest.mark.usefixtures("clean_process")


def handler(get, name):
    return next(one for one in get("train::handlers") if type(one).__name__ == name)


def network_name(get):
    found, wanted = (sum(p.numel() for p in each.parameters()) for each in (encoder_of(get("network_def")), DEEPER))
    return "resnet18" if found == wanted else "another"


def grid(get):
    part = get("validate::resize") if "resize" in get("validate") else get("validate::crop")
    sizes = part.spatial_size
    return list(next(iter(sizes.values())) if isinstance(sizes, dict) else sizes)


def margin(get):
    crop = get("validate").get("crop")
    return (crop or get("validate::additional_metrics")["val_roi_recall"].metric_fn).margin_mm


def widths(get):
    found = {one.out_channels for one in get("network_def").fine.modules() if isinstance(one, torch.nn.Conv3d)}
    return [width for width in (16, 8) if width in found]


DEEPER = ResNetEncoder("resnet18")
# Id, value, and what the built objects have of it: the value itself if nothing else is stated.
EFFECTS = {
    "epochs": (3, lambda get: get("train::trainer").state.max_epochs),
    "network_name": ("resnet18", network_name),
    "output_stride": (16, lambda get: encoder_of(get("network_def")).output_stride),
    "num_workers": (1, lambda get: get("train::dataloader").num_workers),
    "seed": (11, lambda get: get("train::sampler").seed),
    "resume": (False, lambda get: handler(get, "ResumableCheckpoint").resume),
    "batch_size": (3, lambda get: get("train::dataloader").batch_size or get("train::batches").batch_size),
    "learning_rate": (0.5, lambda get: get("optimizer").param_groups[0]["lr"]),
    "head_lr_multiplier": (3.0, lambda get: get("optimizer").param_groups[1]["lr"] / 0.5),
    "heads_first_epochs": (2, lambda get: handler(get, "FreezeEncoder").epochs),
    "val_interval": (4, lambda get: handler(get, "EpochValidation").interval),
    "samples_per_domain": (5, lambda get: get("train::sampler").samples_per_domain),
    "crop_spacing": ([2.0, 2.0, 3.0], lambda get: list(get("train::crop").spacing)),
    "accumulate": (2, lambda get: get("train::trainer").accumulation_steps),
    "max_gradient_norm": (1.5, lambda get: get("train::trainer::iteration_update").max_gradient_norm),
    "share": (0.5, lambda get: get("data").share),
    "spatial_size": ([40, 32, 24], grid),
    "margin_mm": (7.0, margin),
    "hu_window": ([-100.0, 200.0], lambda get: list(get("domain")["hu_window"])),
    "cut_share": (0.25, lambda get: get("train::cut").weights[0]),
    "widths": ([16, 8], widths),
    "cube_mm": (28.0, lambda get: get("domain")["cube_mm"]),
    "coarse_output_stride": (32, lambda get: encoder_of(get("network_def").coarse).output_stride),
    "branch": ("Task04_Hippocampus", lambda get: get("train::load").domain),
    "main_process": (False, lambda get: any("TensorBoard" in type(one).__name__ for one in get("train::handlers"))),
    "channel": (0, lambda get: get("data::options")["channel"]),
    "folds": (2, lambda get: get("data::options")["folds"]),
    "fold": (1, lambda get: get("data::options")["fold"]),
    "ties": ("benign", lambda get: get("data::options")["ties"]),
    "skip_bad": (True, lambda get: get("data::options")["skip_bad"]),
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
# What the fixtures of these tests set, what MONAI's tracking reads, and what tests of their own try.
ELSEWHERE = {"bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "device", "save_execute_config", "num_classes"}
ELSEWHERE |= {"store_dir"}


@each_bundle
def test_every_option_has_an_effect(bundle, on_phantoms):
    literal = {name for name, value in merged(bundle, "train").items() if not isinstance(value, dict)}
    literal -= {"imports", "initialize", "run", "finalize", "domain", "network", "default_domain", "grid", "grids"}
    assert literal <= EFFECTS.keys() | REFUSED.keys() | ELSEWHERE, "an option without a probe"
    mine = {name: value for name, (value, _) in EFFECTS.items() if name in literal}
    get = workflow(bundle, "train", **{**on_phantoms, **mine}).parser.get_parsed_content
    assert {name: EFFECTS[name][1](get) for name in mine} == mine
    assert get("lr_scheduler").T_max == 3


@each_bundle
def test_without_data_the_values_of_phantoms_are_taken_unless_others_are_asked_for(bundle, folders):
    table = {name: value for name, value in merged(bundle, "train")["phantoms"].items() if name != "_desc_"}
    run = ("monai/bundle/__main__.py", "run", "--config_file", str(bundle / "configs" / "train.json"))
    for options, changed in (({}, {}), ({"epochs": 60}, {"epochs": 60}), ({"dataset_dir": "/data"}, None)):
        expected = table | changed if changed is not None else {name: merged(bundle, "train")[name] for name in table}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        found = effective_config([*run, *words])  # of the command, for the records of a run
        assert {name: found[name] for name in expected} == expected and "phantoms" not in found
    config = workflow(bundle, "train", epochs=61, **folders).parser.config
    assert {name: config[name] for name in table} == table | {name: 61 for name in table if name == "epochs"}


@each_bundle
def test_what_no_table_can_say_of_the_usual_objects(bundle, on_phantoms, tmp_path):
    """The store is the one of every reader of volumes; the machine chooses the workers; any encoder checkpoints."""
    given = {**on_phantoms, "store_dir": str(tmp_path / "here"), checkpointing_id(bundle): True}
    get = workflow(bundle, "train", **given).parser.get_parsed_content
    store = get("train::dataset").store
    assert store.folder == tmp_path / "here" and get("train::load").store is store
    assert list(store.folder.glob("*.volume.pt"))  # the preparation's
    assert get("train::dataloader").num_workers == chosen_workers("cpu")
    assert encoder_of(get("network_def")).checkpointing


@each_bundle
def test_the_ids_that_a_monai_user_expects_have_an_effect(bundle, on_phantoms):
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
        "train::crop::rotate_degrees": 30,
    }
    get = workflow(bundle, "train", **on_phantoms, **given).parser.get_parsed_content
    assert [group["lr"] for group in get("optimizer").param_groups] == [0.125, 0.5]
    assert {group["weight_decay"] for group in get("optimizer").param_groups} == {0.5}
    trainer = get("train::trainer")
    assert (trainer.amp, trainer.state.max_epochs, trainer.state.epoch_length) == (False, 5, 2)
    assert (trainer.accumulation_steps, trainer.optim_set_to_none) == (3, False)
    assert get("lr_scheduler").T_max == 5
    assert type(get("train::trainer::iteration_update")).__name__ == "TrainingIteration"
    assert 30 in [getattr(each, "rotate_degrees", 0) for each in get("train::preprocessing").transforms]


@each_of("lits_coarse")
def test_a_bundle_of_version_0_1_whose_transforms_have_no_names_is_built_the_same(bundle, on_phantoms, tmp_path):
    shutil.copytree(bundle / "configs", tmp_path / "old" / "configs")
    path = tmp_path / "old" / "configs" / "train.json"
    config = read_json(path)
    for name in ("preprocessing_transforms", "random_transforms"):
        config["train"][name] = [config["train"].pop(each.rpartition("::")[2]) for each in config["train"][name]]
    path.write_text(json.dumps(config))
    found = []
    for folder in (bundle, tmp_path / "old"):
        get = workflow(folder, "train", **on_phantoms).parser.get_parsed_content
        found.append([type(each).__name__ for each in get("train::preprocessing").transforms])
    assert found[0] == found[1] and len(found[0]) == 6


@each_bundle
def test_a_name_of_nothing_is_refused(bundle, on_phantoms):
    for name in REFUSED.keys() & merged(bundle, "train").keys():
        value, where = REFUSED[name]
        with pytest.raises(Exception) as caught:  # noqa: PT011  MONAI wraps it
            workflow(bundle, "train", **{**on_phantoms, name: value}).parser.get_parsed_content(where)
        assert input_error_message(caught.value) is not None, name


@each_bundle
def test_every_value_out_of_range_is_refused_before_anything_is_built(bundle, folders, tmp_path):
    for names in (("train",), ("train", "evaluate"), ("inference",)):
        parser = ConfigParser(merged(bundle, *names))
        options = {name for name in OPTIONS if name in parser} - {"bundle_root"}
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


def refusal(bundle, *names, overlay=None, **options):
    """The sentence that stops a workflow, empty if nothing does."""
    try:
        workflow(bundle, *names, **options) if overlay is None else laid_over(bundle, overlay, options)
    except RuntimeError as error:
        return input_error_message(error) or ""
    return ""


def laid_over(bundle, overlay, options):
    made = ConfigWorkflow([str(bundle / "configs" / "train.json"), str(overlay)], logging_file=False, **options)
    made.initialize()
    return made


@each_bundle
def test_a_key_without_effect_is_refused_wherever_it_is_written_and_an_overlay_may_add_what_it_uses(
    bundle, folders, tmp_path
):
    assert "did you mean 'epochs'?" in refusal(bundle, "train", epoch=3, **folders)
    overlay = tmp_path / "overlay.json"
    for content in ({"epoch": 3}, {"validate::evaluater": 3}, {"validat": {"x": "@epochs"}}):
        overlay.write_text(json.dumps(content))
        message = refusal(bundle, overlay=overlay, **folders)
        assert "has no effect" in message and "did you mean" in message, (content, message)
    overlay.write_text(json.dumps({"mine": 0.25, "optimizer::lr": "@mine", "_note": "x", "learning_rate": None}))
    assert laid_over(bundle, overlay, folders).parser.get_parsed_content("optimizer::lr") == 0.25


@each_bundle
def test_what_runs_nothing_is_refused_and_another_id_that_runs_something_is_legal(bundle, folders):
    for run_id in ("train", "training", "network", "epochs", "initialize"):
        message = refusal(bundle, "train", run_id=run_id, **folders)
        assert message.startswith(f"'{run_id}' is not something to run")
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


def test_what_cannot_be_built_is_a_sentence_and_what_fails_in_a_run_is_a_fault():
    def failed(expression, cause):
        """As MONAI wraps an error."""
        error = RuntimeError(f'Failed to evaluate ConfigExpression: \n"{expression}"')
        error.__cause__ = cause
        return error

    with pytest.raises(RuntimeError) as caught:
        ConfigParser({"o": {"_target_": "torch.optim.Adam", "params": 3}}).get_parsed_content("o")
    assert (user_message(caught.value) or "").startswith("The config's 'torch.optim.Adam' cannot be built (TypeError: ")
    nested = failed("$@train::trainer.run()", failed("$1/0", ZeroDivisionError("division by zero")))
    assert "$1/0" in (user_message(nested) or "")
    assert user_message(failed("$@train::trainer.run()", ZeroDivisionError("a fault"))) is None
    with pytest.raises(ValueError, match="not defined") as lost:
        ConfigParser({"a": "@b"}).get_parsed_content("a")
    assert "the referring item `@b` is not defined" in (user_message(lost.value) or "")

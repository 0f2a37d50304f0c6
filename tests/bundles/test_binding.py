"""Every config of every bundle is whole: what it names exists and fits. Nothing is built."""

from __future__ import annotations

import ast
import json
import re

import pytest
from bundle_files import BUNDLES, COMBINATIONS, config_files, merged
from monai.bundle import ReferenceResolver

from med3d_ext.run.overrides import texts, walk
from med3d_ext.tools.check.configs import (
    components,
    expressions,
    lost_references,
    unknown_arguments,
    unknown_names,
    wrong_components,
)

ROOT = "$next((p for p in sys.path[1:] if os.path.isfile(p + '/configs/metadata.json')), '.')"
FOUND_BY_MONAI = {"run", "initialize", "finalize"}  # what `monai.bundle run` itself looks for

each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
each_file = pytest.mark.parametrize("name", ["train", "evaluate", "multi_gpu_train", "multi_gpu_evaluate", "inference"])
each_overlay = pytest.mark.parametrize("overlay", ["evaluate", "multi_gpu_train", "multi_gpu_evaluate"])


@pytest.fixture(params=COMBINATIONS, ids="+".join)
def names(request):
    return request.param


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def config(request, names):
    return merged(request.param, *names)


def test_there_are_bundles_and_their_configs_hold_components():
    assert {"lits_coarse", "nodule_classification", "pretrain_3dseg8"} <= {bundle.name for bundle in BUNDLES}
    for bundle in BUNDLES:
        assert len(components(merged(bundle, "train"))) > 30


def test_every_target_exists_and_takes_its_arguments(config):
    assert wrong_components(config) == {}


def test_a_wrong_target_or_argument_would_be_found():
    from monai.data import DataLoader

    assert unknown_arguments(DataLoader, {"dataset": 1, "batch_sampler": 1}) is None
    assert unknown_arguments(DataLoader, {"dataset": 1, "batchsize": 1}) == "batchsize"
    assert "dataset" in unknown_arguments(DataLoader, {"num_workers": 1})
    assert "unexpected" in unknown_arguments(ReferenceResolver, {"x": 1})


def test_every_reference_names_an_id(config):
    assert lost_references(config) == {}


def test_every_expression_parses_is_short_and_has_no_lambda(config):
    found = list(expressions(config))
    assert len(found) > 5
    assert [name for name, text, _ in found if len(text) >= 100] == []
    assert [name for name, _, tree in found if any(isinstance(node, ast.Lambda) for node in ast.walk(tree))] == []


def test_every_name_in_an_expression_is_imported(config):
    assert unknown_names(config) == {}


def test_the_imports_work_in_a_packed_bundle(config):
    """A zip that carries med3d_ext is on the path only after the imports were done; its classes are found later."""
    assert [text for text in config["imports"] if not text.startswith("$import ") or "med3d" in text] == []


def test_the_folder_is_found_as_the_contract_says_and_not_needed_to_initialize(config):
    assert config["bundle_root"] == ROOT
    assert [text for text in config["initialize"] if "bundle_root" in text or "_dir" in text] == []


def test_a_run_begins_with_the_check_of_its_overrides(config):
    assert config["run"][0] == {"_target_": "med3d_ext.run.StartRun"}
    assert re.fullmatch(r"\$@[\w:]+\.run\(\)", config["run"][-1])


@each_bundle
def test_the_options_of_a_training_stand_at_the_top(bundle):
    config = merged(bundle, "train")
    assert {"epochs", "network_name", "init", "num_workers", "dataset_dir", "output_dir"} <= config.keys()
    assert (config["network_name"], config["dataset_dir"]) == ("resnet10", None)
    assert config["train"]["trainer"]["max_epochs"] == "@epochs"


@each_bundle
def test_everything_is_written_inside_the_bundle(bundle):
    for names in COMBINATIONS:
        config = merged(bundle, *names)
        folders = {key: config[key] for key in ("output_dir", "ckpt_dir")}
        assert all(folder.startswith("$@bundle_root + '/") for folder in folders.values()), folders


@each_bundle
def test_inference_stands_alone(bundle):
    """Tools that read inference.json alone set neither the metadata nor another file."""
    config = texts(merged(bundle, "inference"))
    assert [text for _, text in config if re.search(r"\b_meta_", text) or text.startswith("%")] == []


@each_bundle
@each_overlay
def test_every_id_of_an_overlay_has_an_effect(bundle, overlay):
    base = {name for name, _ in walk(merged(bundle, "train"))}
    config = merged(bundle, "train", overlay)
    used = {ref for _, text in texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
    content = json.loads((bundle / "configs" / f"{overlay}.json").read_text())
    # A new argument of a component has an effect, too: test_every_target_... says whether it takes it.
    is_argument = {key for key in content if key.rpartition("::")[0] in components(config)}
    assert set(content) - base - used - FOUND_BY_MONAI - is_argument == set()


@each_bundle
@each_file
def test_no_id_is_written_twice_in_a_file(bundle, name):
    """JSON takes the second one without a word."""

    def refuse_twins(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), keys
        return dict(pairs)

    (path,) = config_files(bundle, name)
    with open(path, encoding="utf-8") as file:
        json.load(file, object_pairs_hook=refuse_twins)


@each_bundle
def test_a_labelling_server_can_exchange_the_training_data(bundle):
    config = merged(bundle, "train")
    assert "data" in config["train"]["dataset"]
    assert "data" in config["validate"]["dataset"]
    assert all("_target_" in handler for handler in config["train"]["handlers"])

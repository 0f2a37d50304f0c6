"""Every config of every bundle is whole: what it names exists and fits. Nothing is built."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict

import pytest
from bundle_files import BUNDLES, COMBINATIONS, config_files, each_bundle, merged
from monai.bundle import ReferenceResolver

from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json
from med3d_ext.run.options import check_options, on_phantoms
from med3d_ext.run.overrides import check_overrides, texts, walk
from med3d_ext.tools.check.configs import (
    components,
    expressions,
    lost_references,
    unknown_names,
    wrong_components,
)

ROOT = "$next((p for p in sys.path[1:] if os.path.isfile(p + '/configs/metadata.json')), '.')"
FOUND_BY_MONAI = {"run", "initialize", "finalize"}  # what `monai.bundle run` itself looks for
DIFFERENT = {
    "train": "batch_size data epochs init initial_weights learning_rate loss network_def num_classes optimizer "
    "phantoms spatial_size val_interval train::cast train::crop train::dataloader train::dataset train::handlers "
    "train::load train::merge_labels train::normalize train::preprocessing train::preprocessing_transforms "
    "train::random_transforms train::sampler train::select train::trainer validate::additional_metrics "
    "validate::crop validate::dataloader validate::evaluator validate::key_metric validate::postprocessing "
    "validate::preprocessing validate::resize",
    "evaluate": "evaluated fold folds num_classes validate::dataset validate::handlers "
    "validate::postprocessing::transforms",
    "inference": "dataset domain handlers inferer label_names label_values load network_def normalize num_classes "
    "postprocessing preprocessing resize",
}
"""The ids in which bundles differ because their tasks do; all others are the same wherever they occur."""

each_overlay = pytest.mark.parametrize("overlay", ["evaluate", "multi_gpu_train", "multi_gpu_evaluate"])


@pytest.fixture(params=COMBINATIONS, ids="+".join)
def names(request):
    return request.param


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def config(request, names):
    return merged(request.param, *names)


@pytest.mark.parametrize("faults", [wrong_components, lost_references, unknown_names])
def test_every_class_argument_reference_and_name_exists(config, faults):
    assert faults(config) == {}


def test_every_expression_parses_is_short_and_has_no_lambda(config):
    found = list(expressions(config))
    assert len(found) > 5
    assert [name for name, text, _ in found if len(text) >= 100] == []
    assert [name for name, _, tree in found if any(isinstance(node, ast.Lambda) for node in ast.walk(tree))] == []


def test_a_run_begins_and_finds_its_folder_in_a_packed_bundle_too(config):
    """A zip that carries med3d_ext is on the path only after the imports were done; its classes are found later."""
    assert [text for text in config["imports"] if not text.startswith("$import ") or "med3d" in text] == []
    assert config["bundle_root"] == ROOT
    assert [text for text in config["initialize"] if "bundle_root" in text or "_dir" in text] == []
    assert all(config[name].startswith("$@bundle_root + '/") for name in ("output_dir", "ckpt_dir"))
    assert config["run"][0] == {"_target_": "med3d_ext.run.StartRun"}
    assert re.fullmatch(r"\$@[\w:]+\.run\(\)", config["run"][-1])


def test_every_transform_has_a_name(config):
    """So that an override says what it changes, whatever comes before it in the list."""
    for name, value in walk(config):
        if name.endswith("transforms") and isinstance(value, list):
            unnamed = {str(each.get("_target_")) for each in value if isinstance(each, dict)}
            assert unnamed <= {"Identityd"}, name  # one side of a draw, without any option


@each_bundle
@pytest.mark.parametrize("name", ["rotate_degrees", "scale"])
def test_an_index_of_version_0_1_is_refused_with_the_name(bundle, name):
    with pytest.raises(InputError, match=f"did you mean 'train::crop::{name}'"):
        check_overrides(merged(bundle, "train"), {f"train::random_transforms::0::{name}": 1})


@pytest.mark.parametrize("file", DIFFERENT)
def test_blocks_that_are_equal_in_all_bundles_stay_equal(file):
    found = defaultdict(set)
    for bundle in BUNDLES:
        config = read_json(bundle / "configs" / f"{file}.json")
        sections = {name: config.pop(name, {}) for name in ("train", "validate")}
        inner = {f"{name}::{key}": value for name, section in sections.items() for key, value in section.items()}
        for name, value in {**config, **inner}.items():
            found[name].add(re.sub(r'"_desc_": "[^"]*",? ?', "", json.dumps(value)))
    assert len(found) > 15
    assert {name for name, values in found.items() if len(values) > 1} == set(DIFFERENT[file].split())


@each_bundle
def test_defaults_are_values_and_those_of_phantoms_are_in_one_table(bundle):
    config = merged(bundle, "train")
    assert {"epochs", "network_name", "init", "num_workers", "dataset_dir", "output_dir"} <= config.keys()
    assert (config["network_name"], config["dataset_dir"]) == ("resnet10", None)
    assert config["train"]["trainer"]["max_epochs"] == "@epochs"
    assert [name for name, text in texts(config) if "if @dataset_dir" in text] == []
    table = {name: value for name, value in config["phantoms"].items() if name != "_desc_"}
    assert table and all(config[name] != value for name, value in table.items())
    check_options(table)
    assert on_phantoms(config, config) == table
    assert on_phantoms({**config, "dataset_dir": "/data"}, config) == {}
    name = next(iter(table))
    asked = {**config, name: "another"}
    assert name not in on_phantoms(asked, config)  # an overlay's, and an override of any value:
    assert name not in on_phantoms(config, config, [name])


@each_bundle
def test_inference_needs_no_other_file(bundle):
    """Tools that read inference.json alone set neither the metadata nor another file."""
    config = texts(merged(bundle, "inference"))
    assert [text for _, text in config if re.search(r"\b_meta_", text) or text.startswith("%")] == []


@each_bundle
@each_overlay
def test_every_id_of_an_overlay_has_an_effect(bundle, overlay):
    base = {name for name, _ in walk(merged(bundle, "train"))}
    config = merged(bundle, "train", overlay)
    used = {ref for _, text in texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
    content = read_json(bundle / "configs" / f"{overlay}.json")
    # A new argument of a component has an effect, too; whether it takes it, the first test of this file says.
    is_argument = {key for key in content if key.rpartition("::")[0] in components(config)}
    assert set(content) - base - used - FOUND_BY_MONAI - is_argument == set()


@each_bundle
def test_no_id_is_written_twice_in_a_file(bundle):
    """JSON takes the second one without a word."""

    def refuse_twins(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), keys
        return dict(pairs)

    for path in config_files(bundle, "train", "evaluate", "multi_gpu_train", "multi_gpu_evaluate", "inference"):
        with open(path, encoding="utf-8") as file:
            json.load(file, object_pairs_hook=refuse_twins)


@each_bundle
def test_a_labelling_server_can_exchange_the_training_data(bundle):
    config = merged(bundle, "train")
    assert all("data" in config[section]["dataset"] for section in ("train", "validate"))
    assert all("_target_" in handler for handler in config["train"]["handlers"])

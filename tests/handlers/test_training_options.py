"""Of a config, what a resumed training must have in common with the one that it resumes."""

from __future__ import annotations

import copy
import json
import random
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from med3d_ext.run.overrides import HARMLESS, MAY_CHANGE, differences, set_by_id, split_id, training_options

BUNDLES = sorted(Path(__file__).parents[2].glob("bundles/*/configs/train.json"))


@pytest.fixture(params=BUNDLES, ids=lambda path: path.parts[-3])
def config(request):
    return json.loads(request.param.read_text())


def changed(config, **overrides):
    config = copy.deepcopy(config)
    for name, value in overrides.items():
        set_by_id(config, split_id(name), value)
    return config


def leaves(node, prefix=""):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}::{key}" if prefix else key)
    elif isinstance(node, list) and any(isinstance(each, dict) for each in node):
        for number, value in enumerate(node):
            yield from leaves(value, f"{prefix}::{number}")
    else:
        yield prefix


def is_harmless(config, name):
    node = config
    for key in name.split("::"):
        if isinstance(node, dict) and node.get("_target_", "").rpartition(".")[2] in HARMLESS:
            return True
        node = node[int(key)] if isinstance(node, list) else node[key]
    return False


def test_a_change_of_any_id_is_named_unless_the_table_lets_it_change(config):
    before = training_options(config)
    generator = random.Random(0)
    names = [name for name in leaves(config) if not (is_harmless(config, name) and name.endswith("_target_"))]
    for name in generator.sample(names, 60):
        found = differences(before, training_options(changed(config, **{name: "something else"})))
        may = any(fnmatchcase(name, pattern) for pattern in MAY_CHANGE) or is_harmless(config, name)
        if name == "dataset_dir":
            assert found == ["dataset_dir (null -> a folder)"]
        else:
            assert (found == []) == may, name
        assert len(found) <= 1


MAY = ("epochs", "num_workers", "val_interval", "output_dir", "ckpt_dir", "device", "resume", "data::output_dir")
MAY += ("train::trainer::max_epochs", "train::dataloader::num_workers", "train::dataset::cache_dir", "loss::_desc_")
MUST = (
    "init",
    "learning_rate",
    "batch_size",
    "seed",
    "spatial_size",
    "network_name",
    "share",
    "init_head",
    "data::kind",
)
MUST += ("optimizer::lr", "loss::_target_", "train::trainer::iteration_update::amp", "lr_scheduler::T_max")


def test_length_folders_workers_intervals_and_devices_may_change_and_what_makes_the_weights_may_not(config):
    before = training_options(config)
    for name in (*MAY, *MUST):
        found = differences(before, training_options(changed(config, **{name: "other"})))
        assert [line.partition(" (")[0] for line in found] == [name] * (name in MUST)


def test_a_data_set_may_be_moved_and_phantoms_are_another_one(config):
    here, there = (training_options(changed(config, dataset_dir=folder)) for folder in ("/a/b", "/c"))
    assert differences(here, there) == []
    assert differences(here, training_options(config)) == ["dataset_dir (a folder -> null)"]


def test_numbers_and_lists_are_compared_by_value_and_handlers_that_write_may_come_and_go(config):
    one, other = changed(config, seed=1, spatial_size=[8, 8, 8]), changed(config, seed=1.0, spatial_size=(8, 8, 8))
    assert differences(training_options(one), training_options(other)) == []
    more = copy.deepcopy(config)
    more["train"]["handlers"].insert(0, {"_target_": "StatsHandler", "name": "x"})
    more["train"]["handlers"] = [each for each in more["train"]["handlers"] if "Curves" not in each["_target_"]]
    assert differences(training_options(config), training_options(more)) == []
    more["train"]["handlers"].append({"_target_": "EarlyStopHandler", "patience": 3})
    assert differences(training_options(config), training_options(more))

"""Of a config, what a resumed training must have in common with the one that it resumes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from med3d_ext.run.overrides import differences, set_by_id, split_id, training_options

BUNDLES = sorted(Path(__file__).parents[2].glob("bundles/*/configs/train.json"))
MAY = (
    *("epochs", "num_workers", "val_interval", "output_dir", "ckpt_dir", "device", "resume", "data::output_dir"),
    *("train::trainer::max_epochs", "train::dataloader::num_workers", "train::dataset::cache_dir", "loss::_desc_"),
)
MUST = (
    *("init", "learning_rate", "batch_size", "seed", "spatial_size", "network_name", "share", "init_head"),
    *("data::kind", "optimizer::lr", "loss::_target_", "train::trainer::iteration_update::amp", "lr_scheduler::T_max"),
)


@pytest.fixture(params=BUNDLES, ids=lambda path: path.parts[-3])
def config(request):
    return json.loads(request.param.read_text())


def changed(config, **overrides):
    config = copy.deepcopy(config)
    for name, value in overrides.items():
        set_by_id(config, split_id(name), value)
    return config


def changes(config, other):
    return differences(training_options(config), training_options(other))


def test_length_folders_workers_intervals_and_devices_may_change_and_what_makes_the_weights_may_not(config):
    for name in (*MAY, *MUST):
        found = changes(config, changed(config, **{name: "other"}))
        assert {line.partition(" (")[0] for line in found} == ({name} if name in MUST else set())


def test_a_data_set_may_be_moved_and_phantoms_are_another_one(config):
    here, there = (changed(config, dataset_dir=folder) for folder in ("/a/b", "/c"))
    assert changes(here, there) == []
    assert changes(here, config) == ["dataset_dir (a folder -> null)"]


def test_numbers_and_lists_are_compared_by_value_and_handlers_that_write_may_come_and_go(config):
    one, other = changed(config, seed=1, spatial_size=[8, 8, 8]), changed(config, seed=1.0, spatial_size=(8, 8, 8))
    assert changes(one, other) == []
    more = copy.deepcopy(config)
    more["train"]["handlers"].insert(0, {"_target_": "StatsHandler", "name": "x"})
    more["train"]["handlers"] = [each for each in more["train"]["handlers"] if "Curves" not in each["_target_"]]
    assert changes(config, more) == []
    more["train"]["handlers"].append({"_target_": "EarlyStopHandler", "patience": 3})
    assert changes(config, more)

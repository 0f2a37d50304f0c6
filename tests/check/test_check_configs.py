"""Files, options, ids and classes: what is wrong is named, what is right is one line."""

from __future__ import annotations

import json

import pytest

from med3d_ext.tools.check.configs import (
    COMMANDS,
    check_classes,
    check_files,
    check_ids,
    check_options,
    expressions,
    lost_references,
    unknown_names,
    wrong_components,
)

every_command = pytest.mark.parametrize("command", list(COMMANDS))


def levels(findings):
    return [finding.level for finding in findings]


def test_a_whole_bundle_has_all_files(configs):
    (finding,) = check_files(configs())
    assert finding.level == "ok"
    assert finding.text.endswith("version 0.1.0")


def test_a_missing_file_is_an_error_or_a_warning(configs, bundle):
    (bundle / "configs" / "inference.json").unlink()
    (bundle / "LICENSE").unlink()
    found = list(check_files(configs()))
    assert levels(found) == ["error", "warning"]
    assert "inference.json' is missing" in found[0].text


def test_a_version_without_a_line_in_the_changelog_is_told(configs, edit):
    edit("metadata", lambda content: content.update(version="0.9.0"))
    assert levels(check_files(configs())) == ["warning", "ok"]


def test_options_are_told_with_the_commands_that_they_change(configs):
    (finding,) = check_options(configs(epochs=3, dataset_dir="x"))
    assert finding.text == "with effect: epochs (train, evaluate), dataset_dir (train, evaluate, inference)"


def test_an_option_without_effect_names_the_nearest(configs):
    first, second = check_options(configs(epoch=3, epochs=3))
    assert (first.level, second.level) == ("error", "ok")
    assert first.text.endswith("did you mean 'epochs'?")


def test_options_of_one_command_do_not_disturb_the_others(configs):
    made = configs(epochs=3, **{"train::trainer::max_epochs": 4})
    assert made.merged("train")["train"]["trainer"]["max_epochs"] == 4
    assert "epochs" not in made.merged("inference")


@every_command
def test_the_ids_and_classes_of_a_bundle_are_right(command, configs):
    assert levels(check_ids(configs(), command)) == ["ok"]
    assert levels(check_classes(configs(), command)) == ["ok"]


def test_a_lost_reference_and_a_missing_property_are_told(configs, edit):
    edit("train", lambda content: content.update(extra="@nothing"))
    edit("train", lambda content: content["train"].pop("inferer"))
    texts = [finding.text for finding in check_ids(configs(), "train") if finding.level == "error"]
    assert any("'extra' refers to 'nothing'" in text for text in texts)
    assert any("property 'train_inferer'" in text for text in texts)


def test_a_renamed_property_is_told(configs, edit):
    edit("train", lambda content: content["validate"]["evaluator"].update(key_val_metric="@validate::metric"))
    edit("train", lambda content: content["validate"].update(metric=content["validate"].pop("key_metric")))
    texts = [finding.text for finding in check_ids(configs(), "train")]
    assert any("'val_key_metric'" in text for text in texts)


def test_a_wrong_class_argument_or_name_is_told(configs, edit):
    edit("inference", lambda content: content["inferer"].update(_target_="SimpleInfererer"))
    edit("inference", lambda content: content["evaluator"].update(devise="cpu"))
    edit("inference", lambda content: content.update(extra="$math.pi"))
    texts = [finding.text for finding in check_classes(configs(), "inference")]
    assert len(texts) == 3
    assert "SimpleInfererer: no such class" in texts[0]
    assert "devise" in texts[1]
    assert "'extra' uses math" in texts[2]


def test_an_expression_that_is_no_python_is_told(configs, edit):
    edit("inference", lambda content: content.update(extra="$1 +"))
    (finding,) = check_classes(configs(), "inference")
    assert (finding.level, "is not Python" in finding.text) == ("error", True)


def test_a_file_that_is_no_json_is_named(configs, bundle):
    (bundle / "configs" / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"train\.json' is not valid JSON"):
        list(check_files(configs()))


def test_bindings_by_hand():
    config = {
        "imports": ["$import os"],
        "a": {"_target_": "torch.nn.Linear", "in_features": 2, "out_feature": 1},
        "b": "$[x + sys.argv[0] for x in @a]",
        "c": "%d",
        "e": {"_target_": "slice", "_args_": "none"},
    }
    assert set(wrong_components(json.loads(json.dumps(config)))) == {"a"}
    assert lost_references(config) == {"c": "%d"}
    assert unknown_names(config) == {"b": {"sys"}}
    assert [name for name, _, _ in expressions(config)] == ["imports::0", "b"]


def test_a_value_out_of_range_is_an_error_as_it_is_at_the_door_of_a_run(configs):
    (finding,) = check_options(configs(epochs=0))
    assert (finding.level, finding.text) == ("error", "epochs must be a whole number of at least 1, got 0.")

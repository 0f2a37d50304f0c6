"""Files, options, ids, classes and versions: what is wrong is named, what is right is one line."""

from __future__ import annotations

import pytest

from med3d_ext.tools.check import configs as module
from med3d_ext.tools.check.configs import (
    COMMANDS,
    check_classes,
    check_files,
    check_ids,
    check_options,
    check_versions,
    expressions,
    lost_references,
    unknown_names,
    wrong_components,
)


def lines(findings) -> list[str]:
    return [f"{finding.level} {finding.text}" for finding in findings]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_whole_bundle_is_one_line_a_topic(command, configs):
    for check, arguments in ((check_files, ()), (check_ids, (command,)), (check_classes, (command,))):
        (line,) = lines(check(configs(), *arguments))
        assert line.startswith("ok ")


def test_missing_files_and_a_version_without_a_line_in_the_changelog_are_named(configs, bundle, edit):
    (bundle / "configs" / "inference.json").unlink()
    (bundle / "LICENSE").unlink()
    edit("metadata", lambda content: content.update(version="0.9.0"))
    missing, unshared, version = lines(check_files(configs()))
    assert missing.startswith("error") and "inference.json' is missing" in missing
    assert unshared.startswith("warning") and version.startswith("warning version 0.9.0 has no line")
    (bundle / "configs" / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"train\.json' is not valid JSON"):
        list(check_files(configs()))


def test_options_are_told_with_the_commands_that_they_change_or_with_what_is_wrong(configs):
    (found,) = lines(check_options(configs(epochs=3, dataset_dir="x")))
    assert found == "ok with effect: epochs (train, evaluate), dataset_dir (train, evaluate, inference)"
    unknown, accepted = lines(check_options(configs(epoch=3, epochs=3)))
    assert unknown.startswith("error") and unknown.endswith("did you mean 'epochs'?") and accepted.startswith("ok")
    out_of_range = lines(check_options(configs(epochs=0)))
    assert out_of_range == ["error epochs must be a whole number of at least 1, got 0."]
    made = configs(epochs=3, **{"train::trainer::max_epochs": 4})
    assert made.merged("train")["train"]["trainer"]["max_epochs"] == 4 and "epochs" not in made.merged("inference")


@pytest.mark.parametrize(
    ("check", "file", "change", "named"),
    [
        (check_ids, "train", lambda c: c.update(extra="@nothing"), "'extra' refers to 'nothing'"),
        (check_ids, "train", lambda c: c["train"].pop("inferer"), "property 'train_inferer' is missing"),
        (
            check_ids,
            "train",
            lambda c: c["validate"].update(
                metric=c["validate"].pop("key_metric"),
                evaluator={**c["validate"]["evaluator"], "key_val_metric": "@validate::metric"},
            ),
            "property 'val_key_metric'",
        ),
        (check_classes, "inference", lambda c: c["inferer"].update(_target_="Simple"), "Simple: no such class"),
        (check_classes, "inference", lambda c: c["evaluator"].update(devise="cpu"), "devise"),
        (check_classes, "inference", lambda c: c.update(extra="$math.pi"), "'extra' uses math"),
        (check_classes, "inference", lambda c: c.update(extra="$1 +"), "is not Python"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(configs, edit, check, file, change, named):
    edit(file, change)
    errors = [line for line in lines(check(configs(), file)) if line.startswith("error")]
    assert any(named in line for line in errors), errors


def test_bindings_by_hand():
    config = {
        "imports": ["$import os"],
        "a": {"_target_": "torch.nn.Linear", "in_features": 2, "out_feature": 1},
        "b": "$[x + sys.argv[0] for x in @a]",
        "c": "%d",
        "e": {"_target_": "slice", "_args_": "none"},
    }
    assert set(wrong_components(config)) == {"a"}
    assert lost_references(config) == {"c": "%d"}
    assert unknown_names(config) == {"b": {"sys"}}
    assert [name for name, _, _ in expressions(config)] == ["imports::0", "b"]


@pytest.mark.parametrize(
    ("package", "have", "level", "named"),
    [
        ("torch", "2.7.1", "error", "got 2.7.1"),
        ("monai", "1.5.0", "error", "got 1.5.0"),
        ("monai", "1.7.0", "error", "got 1.7.0"),
        ("numpy", "1.26.4", "warning", "numpy 1.26.4 is older"),
        ("scipy", "99.0", "ok", "monai "),
    ],
)
def test_versions_are_compared_with_the_range_and_the_tested_ones(configs, monkeypatch, package, have, level, named):
    real = module.version
    monkeypatch.setattr(module, "version", lambda name: have if name == package else real(name))
    first, *rest = lines(check_versions(configs()))
    assert first.startswith(level) and named in first and len(rest) == (level != "ok")


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(configs, edit):
    edit("metadata", lambda content: content["required_packages_version"].update({"no-such-package": "1.2.3"}))
    assert "`pip install no-such-package==1.2.3`" in lines(check_versions(configs()))[0]

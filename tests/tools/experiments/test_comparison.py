"""A comparison runs equal arms, each once, mixes nothing, and leaves everything to judge it by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from experiment_stubs import TRAIN
from matplotlib import image as images

from med3d_ext.errors import InputError
from med3d_ext.tools.experiments.compare import snapshot_epochs

quiet = pytest.mark.usefixtures("no_pictures")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@quiet
def test_scratch_is_run_at_both_rates_and_everything_else_is_equal(make, runner, encoder, tmp_path) -> None:
    make().run()
    names = ["scratch_0.01", "scratch_0.001", "med3d"]
    arms = [f"{name}_seed{seed}" for seed in (0, 1) for name in names]
    assert runner.steps == [f"{step} {arm}" for arm in arms for step in ("train", "evaluate")]
    trainings = [arguments for step, arguments in runner.calls if step == "train"]
    varied = {"init", "learning_rate", "seed", "output_dir", "ckpt_dir"}
    assert len({json.dumps({k: v for k, v in one.items() if k not in varied}) for one in trainings}) == 1
    starts = [("scratch", 0.01), ("scratch", 0.001), (str(encoder), 0.001)]
    assert [(one["init"], one["learning_rate"]) for one in trainings[:3]] == starts
    assert all(one["dataset_dir"] == str(tmp_path / "split_of_mine") for one in trainings)
    files = {step: [Path(file).name for file in arguments["config_file"]] for step, arguments in runner.calls}
    assert files == {"train": ["train.json", "snapshots.json"], "evaluate": ["train.json", "evaluate.json"]}
    assert read(tmp_path / "out" / "snapshots.json")["+validate::handlers"][0]["epochs"] == [2, 4]


@quiet
def test_nothing_is_run_twice_seeds_can_be_added_and_all_may_be_moved(make, runner, tmp_path) -> None:
    first = make(seeds=[0]).run()
    runner.calls.clear()
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert make(seeds=[0], output=tmp_path / "moved").run()["results"] == first["results"]
    assert runner.calls == []
    record = make(seeds=[0, 1], output=tmp_path / "moved", keep_weights=False).run()
    assert {step.rpartition("_")[2] for step in runner.steps} == {"seed1"} and record["seeds"] == [0, 1]
    kept = {path.parents[1].name.rpartition("_")[2] for path in (tmp_path / "moved").rglob("model.pt")}
    assert kept == {"seed0"} and not list((tmp_path / "moved").rglob("training_state.pt"))
    runner.calls.clear()
    make(seeds=[0, 1], output=tmp_path / "moved", keep_weights=False).run()
    assert runner.calls == []


@quiet
def test_after_a_failure_the_same_command_resumes(make, runner, tmp_path) -> None:
    runner.fail = "evaluate med3d_seed1"
    with pytest.raises(InputError, match="the comparison stopped: evaluate of med3d_seed1 failed"):
        make().run()
    unfinished = read(tmp_path / "out" / "comparison.json")
    assert (unfinished["complete"], unfinished["seeds"]) == (False, [0])
    assert "unfinished" in (tmp_path / "out" / "table.md").read_text()
    runner.fail = None
    runner.calls.clear()
    record = make().run()
    assert runner.steps == ["evaluate med3d_seed1"] and (record["complete"], record["seeds"]) == (True, [0, 1])


def other_data(tmp_path, bundle) -> dict:
    path = tmp_path / "split_of_mine" / "datalist.json"
    path.write_text(path.read_text().replace("hash05", "another"))
    return {}


def edited_config(tmp_path, bundle) -> dict:
    (bundle / "configs" / "train.json").write_text(json.dumps({**TRAIN, "batch_size": 3}))
    return {}


def other_weights(tmp_path, bundle) -> dict:
    (tmp_path / "other.pt").write_text("other tensors")
    return {"inits": ["scratch", f"med3d={tmp_path / 'other.pt'}"]}


@quiet
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda *_: {"options": {"epochs": 6}}, "epochs not given, now 6"),
        (lambda *_: {"options": {"batch_size": 4}, "seeds": [5]}, "batch_size not given, now 4"),
        (other_data, "other data"),
        (edited_config, "train.json has changed"),
        (other_weights, "other initial weights"),
    ],
)
def test_arms_of_other_settings_data_configs_or_weights_are_not_mixed_in(
    make, runner, tmp_path, bundle, change, difference
) -> None:
    make(seeds=[0]).run()
    runner.calls.clear()
    with pytest.raises(InputError, match=difference):
        make(**{"seeds": [0], **change(tmp_path, bundle)})
    assert runner.calls == []


@quiet
def test_each_fold_has_its_own_data_and_every_case_is_tested_once(make, runner, tmp_path) -> None:
    record = make(folds=5, seeds=[0, 1]).run()
    assert len(record["runs"]) == 5 * 2 * 3 and "train med3d_fold4_seed1" in runner.steps
    folders = {arguments["fold"]: arguments["dataset_dir"] for _, arguments in runner.calls}
    assert folders == {fold: str(tmp_path / "out" / f"fold{fold}" / "split") for fold in range(5)}
    assert {arguments["folds"] for _, arguments in runner.calls} == {5}
    assert {arm["n"] for entry in record["results"] for arm in entry["arms"].values()} == {20}
    assert [test["n"] for test in record["data"]["test"].values()] == [4] * 5
    with pytest.raises(InputError, match="folds must test every case once"):
        make(folds=5, options={"dataset_dir": str(tmp_path / "split_of_mine")})  # which keeps its split


@quiet
def test_shares_are_compared_each_by_itself(make, runner) -> None:
    record = make(shares=[0.25, 1.0], seeds=[0]).run()
    assert "train med3d_share0.25_seed0" in runner.steps
    assert {budget["share"]: budget["training_cases"] for budget in record["budgets"]} == {0.25: 4, 1.0: 14}
    assert [entry["share"] for entry in record["results"]] == [0.25, 1.0]
    arms = [arm.folder.name for arm in make(shares=[0.25, 0.2500001], seeds=[1000000, 1000001]).arms()]
    assert len(set(arms)) == len(arms) == 12


@pytest.mark.parametrize("name", ["share", "folds", "fold", "init", "learning_rate"])
def test_what_a_bundle_lacks_is_said_in_one_sentence(make, bundle, name) -> None:
    content = {key: value for key, value in TRAIN.items() if key != name}
    (bundle / "configs" / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"bundle 'small' has no '{name}' at the top of its train.json"):
        make(shares=[0.5], folds=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"epoch": 3}}, "override 'epoch' matches no id of train.json; did you mean 'epochs'"),
        ({"options": {"seed": 3}}, "sets seed of each arm itself; give --seeds"),
        ({"options": {"train#dataset#cache_dir": "x"}}, "the arms share a cache"),
        ({"options": {"epochs": 0}}, "epochs must be"),
        ({"options": {"initial_weights::scratch_learning_rate": "fast"}}, "rate of bundle 'small' must"),
        ({"inits": ["med3d"]}, "inits must include scratch"),
        ({"inits": ["scratch", "kinetics"]}, "init 'kinetics' needs a file"),
        ({"inits": ["scratch", "missing.pt"]}, "'missing.pt' is not a file"),
        ({"inits": ["scratch", "a b=missing.pt"]}, "the name of letters and digits"),
        ({"inits": ["scratch", "x=scratch"]}, "must give weights as NAME=PATH, got 'x=scratch'"),
        ({"inits": ["scratch", "scratch"]}, "inits must have different names, got 'scratch' twice"),
        ({"seeds": []}, "seeds of a comparison must be"),
        ({"seeds": [0, 0]}, "seeds of a comparison must be"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"shares": [0.5, 0.5]}, "shares of a comparison must be"),
        ({"shares": [2.0]}, "share must be"),
        ({"folds": 1}, "folds must be"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(make, runner, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)
    assert runner.calls == []


def test_several_processes_and_two_files_of_one_name_are_refused(make, encoder, monkeypatch) -> None:
    with pytest.raises(InputError, match="got 'encoder' twice; name a file as NAME=PATH"):
        make(inits=["scratch", str(encoder), f"encoder={encoder}"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        make()


def test_weights_of_another_network_are_refused_and_equal_rates_make_one_arm_from_scratch(make, real_encoder) -> None:
    inits, rate = ["scratch", f"med3d={real_encoder}"], {"initial_weights::scratch_learning_rate": 0.001}
    assert [start.name for start in make(inits=inits, options=rate).starts] == ["scratch_0.001", "med3d"]
    with pytest.raises(InputError, match="resnet18"):
        make(inits=inits, options={"network_name": "resnet18"})


@quiet
def test_test_cases_that_the_weights_have_seen_count_in_no_arm(make, encoder, tmp_path, caplog) -> None:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    (folder / "encoder.pt").symlink_to(encoder)
    card = {"cases": {"training": [{"image": "x.nii", "domain": "CT", "sha256": f"hash{n}"} for n in ("00", "17")]}}
    (folder / "card.json").write_text(json.dumps(card))
    record = make(seeds=[0], inits=["scratch", f"med3d={folder / 'encoder.pt'}"]).run()
    assert record["excluded_test_cases"] == record["starts"]["med3d"]["seen_test_cases"] == ["case_17.nii"]
    assert {arm["n"] for entry in record["results"] for arm in entry["arms"].values()} == {3}
    assert "so counted in no arm: case_17.nii" in caplog.text
    assert "Not counted in any arm, seen in pretraining: case_17.nii" in (tmp_path / "out" / "table.md").read_text()


@quiet
def test_unequal_budgets_and_training_cases_are_refused(make, runner, tmp_path) -> None:
    make(seeds=[0]).run()
    card = tmp_path / "out" / "arms" / "med3d_seed0" / "models" / "card.json"
    card.write_text(card.read_text().replace("hash05", "another"))
    with pytest.raises(InputError, match="training cases must be equal, and 'scratch_0.01_seed0' and 'med3d_seed0'"):
        make(seeds=[0]).run()
    runner.extra_iterations["med3d_seed1"] = 1
    with pytest.raises(InputError, match="must be equal, and 'scratch_0.01_seed1' made 56 .*, 'med3d_seed1' made 57"):
        make(seeds=[1]).run()


def cut(text: str) -> str:
    return "\n".join(text.splitlines()[:-1]) + "\n"


@quiet
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("test/cases.csv", cut, "does not contain each of the 4 test cases once"),
        ("test/cases.csv", lambda text: text.replace("case_17", "case_18"), "does not contain each"),
        ("test/cases.csv", lambda text: text.replace("case_17", "case_01"), "does not contain each"),
        ("test/cases.csv", lambda text: text + text.splitlines()[-1] + "\n", "does not contain each"),
        ("test/cases.csv", lambda text: "case,domain\n", "does not contain each"),
        ("test/cases.csv", lambda text: "", "cases.csv' cannot be read"),
        ("loss.csv", None, "loss.csv' cannot be read"),
        ("run.json", lambda text: text.replace("hash17", "another"), "has other test cases of liver"),
    ],
)
def test_files_of_an_arm_that_are_not_its_own_are_refused(make, tmp_path, file, change, message) -> None:
    make(seeds=[0]).run()
    path = tmp_path / "out" / "arms" / "med3d_seed0" / file
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        make(seeds=[0]).run()


@quiet
def test_test_cases_of_one_file_name_in_several_folders_are_all_counted(make, tmp_path) -> None:
    for name in ("datalist.json", "fingerprint.json"):
        path = tmp_path / "split_of_mine" / name
        content = path.read_text()
        for number in (16, 17):
            content = content.replace(f"./case_{number}.nii", f"./patient_{number}/image_5.nii")
        path.write_text(content)
    for arm in make(seeds=[0]).run()["results"][0]["arms"].values():
        twins = [name for name in arm["cases"] if name.startswith("image_5.nii (hash1")]
        assert (arm["n"], twins) == (4, ["image_5.nii (hash16)", "image_5.nii (hash17)"])


@quiet
def test_an_evaluation_may_group_its_cases_otherwise_than_the_data(make, tmp_path) -> None:
    make(seeds=[0]).run()
    for path in (tmp_path / "out" / "arms").glob("*/test/cases.csv"):
        path.write_text(path.read_text().replace("liver", "CT"))
    assert [entry["domain"] for entry in make(seeds=[0]).run()["results"]] == ["CT"]


@pytest.mark.parametrize(
    ("epochs", "interval", "expected"),
    [(60, 2, [8, 14, 30, 60]), (8, 1, [1, 2, 4, 8]), (3, 2, [2, 3]), (1, 5, [1]), (5, 100, [5])],
)
def test_snapshots_are_of_validated_epochs(epochs, interval, expected) -> None:
    assert snapshot_epochs(epochs, interval) == expected


def test_a_comparison_leaves_everything_to_judge_it_by(make, tmp_path) -> None:
    record = make().run()
    out = tmp_path / "out"
    assert read(out / "comparison.json") == record
    assert {"command", "versions", "git", "options", "seeds", "data", "starts", "budgets", "runs"} <= record.keys()
    assert (record["bundle"], record["complete"], record["metric"]) == ("small", True, "val_mean_dice")
    assert record["budgets"] == [{"share": None, "fold": None, "iterations": 56, "epochs": 4, "training_cases": 14}]
    assert record["data"]["test"]["test"]["n"] == 4 and record["starts"]["med3d"]["seen_test_cases"] is None
    assert str(tmp_path) not in json.dumps(record["data"])
    (entry,) = record["results"]
    assert {arm: figures["n"] for arm, figures in entry["arms"].items()} == dict.fromkeys(record["starts"], 4)
    loss, dice = record["iterations_to_reach"]
    assert (loss["quantity"], dice["quantity"]) == ("training loss", "val_mean_dice")
    for reach in (loss, dice):
        assert reach["reference"] == "scratch_0.01" and reach["arms"]["med3d"]["times_faster"] > 1
        assert reach["arms"]["scratch_0.001"]["iteration"] is None
    for name in ("curves.png", "overlays.png"):  # what is on them: test_figures.py
        assert images.imread(out / name).std() > 0
    table = (out / "table.md").read_text()
    assert "every arm made 56 iterations (4 epochs) on 14 training cases" in table
    assert next(line for line in table.splitlines() if line.startswith("| med3d | 0.001 | 4 |")).count("[") == 2
    assert "test: Wilcoxon signed-rank; 4 differing pairs: fewer than 6 cannot reach p < 0.05." in table
    assert "| scratch_0.001 | never | 56 |" in table and "whether it has seen test cases is unknown" in table


@quiet
def test_a_classifier_is_compared_by_the_auc_of_all_folds(make, runner, tmp_path) -> None:
    runner.task = "classification"
    record = make(folds=5).run()
    assert record["metric"] == "val_auc"
    assert [entry["metric"] for entry in record["results"]] == ["val_brier", "auc"]
    auc = record["results"][1]["arms"]["med3d"]
    assert auc["n"] == 20 and auc["interval_95"][0] <= auc["mean"] <= auc["interval_95"][1]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "DeLong" in table and "val_brier (lower is better)" in table and "auc (lower" not in table


@quiet
def test_the_metric_is_the_best_epochs_or_the_one_that_was_given(make, tmp_path) -> None:
    with pytest.raises(InputError, match="one of val_mean_dice, got val_dice"):
        make(metric="val_dice", seeds=[0]).run()
    for path in (tmp_path / "out" / "arms").glob("*/run.json"):
        path.write_text(json.dumps({key: value for key, value in read(path).items() if key != "best"}))
    with pytest.raises(InputError, match="names no best metric; choose one with --metric"):
        make(seeds=[0]).run()
    assert make(seeds=[0], metric="val_mean_dice").run()["metric"] == "val_mean_dice"

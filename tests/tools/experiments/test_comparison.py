"""A comparison runs equal arms, each once, and mixes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from experiment_stubs import TRAIN, write_split

from med3d_ext.errors import InputError
from med3d_ext.tools.experiments.compare import snapshot_epochs

pytestmark = pytest.mark.usefixtures("no_pictures")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_scratch_is_run_at_both_rates_and_everything_else_is_equal(make, runner, encoder, tmp_path) -> None:
    make().run()
    names = ["scratch_0.01", "scratch_0.001", "med3d"]
    arms = [f"{name}_seed{seed}" for seed in (0, 1) for name in names]
    assert runner.steps == [f"{step} {arm}" for arm in arms for step in ("train", "evaluate")]
    trainings = [arguments for step, arguments in runner.calls if step == "train"]
    varied = {"init", "learning_rate", "seed", "output_dir", "ckpt_dir"}
    assert len({json.dumps({k: v for k, v in one.items() if k not in varied}) for one in trainings}) == 1
    assert [(one["init"], one["learning_rate"]) for one in trainings[:3]] == [
        ("scratch", 0.01),
        ("scratch", 0.001),
        (str(encoder), 0.001),
    ]
    assert all(one["dataset_dir"] == str(tmp_path / "split_of_mine") for one in trainings)


def test_only_trainings_keep_snapshots(make, runner, tmp_path) -> None:
    make(seeds=[0]).run()
    files = {step: [Path(file).name for file in arguments["config_file"]] for step, arguments in runner.calls}
    assert files == {"train": ["train.json", "snapshots.json"], "evaluate": ["train.json", "evaluate.json"]}
    (handler,) = read(tmp_path / "out" / "snapshots.json")["+validate::handlers"]
    assert handler["epochs"] == [2, 4]


def test_nothing_is_run_twice_and_seeds_can_be_added(make, runner) -> None:
    first = make(seeds=[0]).run()
    runner.calls.clear()
    again = make(seeds=[0]).run()
    assert runner.calls == []
    assert again["results"] == first["results"]
    record = make(seeds=[0, 1]).run()
    assert {step.rpartition("_")[2] for step in runner.steps} == {"seed1"}
    assert record["seeds"] == [0, 1]


def test_after_a_failure_the_same_command_goes_on(make, runner, tmp_path) -> None:
    runner.fail = "evaluate med3d_seed1"
    with pytest.raises(InputError, match="the comparison stopped: evaluate of med3d_seed1 failed"):
        make().run()
    unfinished = read(tmp_path / "out" / "comparison.json")
    assert (unfinished["complete"], unfinished["seeds"]) == (False, [0])
    assert "unfinished" in (tmp_path / "out" / "table.md").read_text()
    runner.fail = None
    runner.calls.clear()
    record = make().run()
    assert runner.steps == ["evaluate med3d_seed1"]
    assert (record["complete"], record["seeds"]) == (True, [0, 1])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"options": {"epochs": 6}}, "epochs not given, now 6"),
        ({"options": {"batch_size": 4}, "seeds": [5]}, "batch_size not given, now 4"),
    ],
)
def test_arms_of_other_settings_are_not_mixed_in(make, runner, changes, difference) -> None:
    make(seeds=[0]).run()
    runner.calls.clear()
    with pytest.raises(InputError, match=difference):
        make(**changes)
    assert runner.calls == []


def test_other_data_is_not_mixed_in(make, tmp_path) -> None:
    make(seeds=[0]).run()
    path = tmp_path / "split_of_mine" / "datalist.json"
    path.write_text(path.read_text().replace("hash05", "another"))
    with pytest.raises(InputError, match="other data"):
        make(seeds=[0])


def test_an_edited_config_is_not_mixed_in(make, bundle) -> None:
    make(seeds=[0]).run()
    (bundle / "configs" / "train.json").write_text(json.dumps({**TRAIN, "batch_size": 3}))
    with pytest.raises(InputError, match="train.json has changed"):
        make(seeds=[0])


def test_other_weights_of_the_same_name_are_not_mixed_in(make, tmp_path) -> None:
    make(seeds=[0]).run()
    other = tmp_path / "other.pt"
    other.write_text("other tensors")
    with pytest.raises(InputError, match="other initial weights"):
        make(seeds=[0], inits=["scratch", f"med3d={other}"])


def test_weights_are_kept_unless_told_otherwise(make, runner, tmp_path) -> None:
    make(seeds=[0]).run()
    make(seeds=[0, 1], keep_weights=False).run()
    kept = {path.parents[1].name.rpartition("_")[2] for path in (tmp_path / "out").rglob("model.pt")}
    assert kept == {"seed0"}
    assert not list((tmp_path / "out").rglob("training_state.pt"))
    runner.calls.clear()
    make(keep_weights=False).run()
    assert runner.calls == []


def test_several_processes_are_refused(make, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        make()


def test_a_comparison_may_be_moved(make, runner, tmp_path) -> None:
    make(seeds=[0]).run()
    shutil.move(tmp_path / "out", tmp_path / "moved")
    runner.calls.clear()
    make(seeds=[0], output=tmp_path / "moved").run()
    assert runner.calls == []


def test_each_fold_has_its_own_data_and_every_case_is_tested_once(make, runner, tmp_path) -> None:
    record = make(folds=5, seeds=[0, 1]).run()
    assert len(record["runs"]) == 5 * 2 * 3
    assert "train med3d_fold4_seed1" in runner.steps
    folders = {arguments["fold"]: arguments["dataset_dir"] for _, arguments in runner.calls}
    assert folders == {fold: str(tmp_path / "out" / f"fold{fold}" / "split") for fold in range(5)}
    assert {arguments["folds"] for _, arguments in runner.calls} == {5}
    assert {arm["n"] for entry in record["results"] for arm in entry["arms"].values()} == {20}
    assert [test["n"] for test in record["data"]["test"].values()] == [4] * 5


def test_a_folder_that_keeps_its_split_cannot_be_folded(make, tmp_path) -> None:
    options = {"dataset_dir": str(write_split(tmp_path / "split_of_mine"))}
    with pytest.raises(InputError, match="folds must test every case once"):
        make(folds=5, options=options)


def test_shares_are_compared_each_by_itself(make, runner) -> None:
    record = make(shares=[0.25, 1.0], seeds=[0]).run()
    assert "train med3d_share0.25_seed0" in runner.steps
    assert {budget["share"]: budget["training_cases"] for budget in record["budgets"]} == {0.25: 4, 1.0: 14}
    assert [entry["share"] for entry in record["results"]] == [0.25, 1.0]


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
        ({"options": {"epochs": 0}}, "epochs must be a whole number of at least 1, got 0"),
        ({"options": {"initial_weights::scratch_learning_rate": "fast"}}, "rate of bundle 'small' must"),
        ({"inits": ["med3d"]}, "inits must include scratch"),
        ({"inits": ["scratch", "kinetics"]}, "init 'kinetics' needs a file"),
        ({"inits": ["scratch", "missing.pt"]}, "'missing.pt' is not a file"),
        ({"inits": ["scratch", "a b=missing.pt"]}, "the name of letters and digits"),
        ({"inits": ["scratch", "x=scratch"]}, "must give weights as NAME=PATH, got 'x=scratch'"),
        ({"inits": ["scratch", "scratch"]}, "inits must have different names, got 'scratch' twice"),
        ({"seeds": []}, "seeds of a comparison must be one or more"),
        ({"seeds": [0, 0]}, "seeds of a comparison must be one or more"),
        ({"seeds": [-1]}, "seeds must be a list of whole numbers"),
        ({"shares": [0.5, 0.5]}, "shares of a comparison must be one or more"),
        ({"shares": [2.0]}, "share must be a number above 0"),
        ({"folds": 1}, "folds must be a whole number of at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_training(make, runner, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)
    assert runner.calls == []


def test_two_files_of_one_name_are_asked_to_be_named(make, encoder) -> None:
    with pytest.raises(InputError, match="got 'encoder' twice; name a file as NAME=PATH"):
        make(inits=["scratch", str(encoder), f"encoder={encoder}"])


def test_weights_of_another_network_are_refused_before_any_training(make, runner, real_encoder) -> None:
    inits = ["scratch", f"med3d={real_encoder}"]
    assert [start.init for start in make(inits=inits).starts] == ["scratch", "scratch", str(real_encoder)]
    with pytest.raises(InputError, match="resnet18"):
        make(inits=inits, options={"network_name": "resnet18"})
    assert runner.calls == []


def test_equal_rates_make_one_arm_from_scratch(make, runner) -> None:
    rate = {"initial_weights::scratch_learning_rate": 0.001}
    assert [start.name for start in make(options=rate).starts] == ["scratch_0.001", "med3d"]


def test_test_cases_that_the_weights_have_seen_count_in_no_arm(make, encoder, tmp_path, caplog) -> None:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    (folder / "encoder.pt").symlink_to(encoder)
    card = {"cases": {"training": [{"image": "x.nii", "domain": "CT", "sha256": f"hash{n}"} for n in ("00", "17")]}}
    (folder / "card.json").write_text(json.dumps(card))
    record = make(seeds=[0], inits=["scratch", f"med3d={folder / 'encoder.pt'}"]).run()
    assert record["excluded_test_cases"] == ["case_17.nii"]
    assert record["starts"]["med3d"]["seen_test_cases"] == ["case_17.nii"]
    assert {arm["n"] for entry in record["results"] for arm in entry["arms"].values()} == {3}
    assert "so counted in no arm: case_17.nii" in caplog.text
    assert "Not counted in any arm, seen in pretraining: case_17.nii" in (tmp_path / "out" / "table.md").read_text()


def test_without_a_card_it_is_unknown_what_the_weights_have_seen(make, tmp_path) -> None:
    record = make(seeds=[0]).run()
    assert record["starts"]["med3d"]["seen_test_cases"] is None
    assert "whether it has seen test cases is unknown" in (tmp_path / "out" / "table.md").read_text()


def test_arms_of_close_shares_and_large_seeds_have_folders_of_their_own(make) -> None:
    arms = [arm.folder.name for arm in make(shares=[0.25, 0.2500001], seeds=[1000000, 1000001]).arms()]
    assert len(set(arms)) == len(arms) == 12


def test_unequal_budgets_are_refused(make, runner) -> None:
    runner.extra_iterations["med3d_seed0"] = 1
    with pytest.raises(InputError, match="must be equal, and 'scratch_0.01_seed0' made 56 .*, 'med3d_seed0' made 57"):
        make(seeds=[0]).run()


def test_unequal_training_cases_are_refused(make, tmp_path) -> None:
    make(seeds=[0]).run()
    card = tmp_path / "out" / "arms" / "med3d_seed0" / "models" / "card.json"
    card.write_text(card.read_text().replace("hash05", "another"))
    with pytest.raises(InputError, match="training cases must be equal, and 'scratch_0.01_seed0' and 'med3d_seed0'"):
        make(seeds=[0]).run()


def test_an_evaluation_that_lacks_a_case_is_refused(make, tmp_path) -> None:
    make(seeds=[0]).run()
    path = tmp_path / "out" / "arms" / "med3d_seed0" / "test" / "cases.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="does not contain each of the 4 test cases once"):
        make(seeds=[0]).run()


def test_an_evaluation_that_holds_a_case_twice_or_another_is_refused(make, tmp_path) -> None:
    make(seeds=[0]).run()
    path = tmp_path / "out" / "arms" / "med3d_seed0" / "test" / "cases.csv"
    before = path.read_text()
    twice, another = before.replace("case_17", "case_18"), before.replace("case_17", "case_01")
    more = before + before.splitlines()[-1] + "\n"
    for wrong in (twice, another, more, "case,domain\n", ""):
        path.write_text(wrong)
        with pytest.raises(InputError, match="does not contain each of the 4 test cases once|cannot be read"):
            make(seeds=[0]).run()


def test_test_cases_of_one_file_name_in_several_folders_are_all_counted(make, tmp_path) -> None:
    for name in ("datalist.json", "fingerprint.json"):
        path = tmp_path / "split_of_mine" / name
        content = path.read_text()
        for number in (16, 17):
            content = content.replace(f"./case_{number}.nii", f"./patient_{number}/image_5.nii")
        path.write_text(content)
    record = make(seeds=[0]).run()
    for arm in record["results"][0]["arms"].values():
        assert arm["n"] == 4
        assert [name for name in arm["cases"] if name.startswith("image_5.nii (hash1")] == [
            "image_5.nii (hash16)",
            "image_5.nii (hash17)",
        ]


def test_an_evaluation_may_group_its_cases_otherwise_than_the_data(make, tmp_path) -> None:
    make(seeds=[0]).run()
    for path in (tmp_path / "out" / "arms").glob("*/test/cases.csv"):
        path.write_text(path.read_text().replace("liver", "CT"))
    assert [entry["domain"] for entry in make(seeds=[0]).run()["results"]] == ["CT"]


def test_other_test_cases_than_the_datas_are_refused(make, tmp_path) -> None:
    make(seeds=[0]).run()
    path = tmp_path / "out" / "arms" / "med3d_seed0" / "run.json"
    path.write_text(path.read_text().replace("hash17", "another"))
    with pytest.raises(InputError, match="has other test cases of liver"):
        make(seeds=[0]).run()


@pytest.mark.parametrize(
    ("epochs", "interval", "expected"),
    [(60, 2, [8, 14, 30, 60]), (8, 1, [1, 2, 4, 8]), (3, 2, [2, 3]), (1, 5, [1]), (5, 100, [5])],
)
def test_snapshots_are_of_validated_epochs(epochs, interval, expected) -> None:
    assert snapshot_epochs(epochs, interval) == expected

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from experiment_stubs import Runner
from matplotlib.axes import Axes

import med3d_ext.tools.experiments.engine as engine
from med3d_ext.data import PreparedData
from med3d_ext.errors import InputError
from med3d_ext.metrics.intervals import describe_metric
from med3d_ext.tools.experiments import Study
from med3d_ext.tools.experiments.report import draw_study
from med3d_ext.tools.phantoms.dataset import phantom_dataset

CONFIGS = Path(__file__).parents[3] / "bundles" / "pretrain_3dseg8" / "configs"
SIZES = {"Task01_BrainTumour": ("brain", 20), "Task04_Hippocampus": ("hippocampus", 10), "Mine": ("Mine", 4)}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared folder; no file of it is ever opened here."""
    folder = tmp_path / "prepared_data"
    folder.mkdir()
    lists: dict[str, list] = {"training": [], "test": []}
    domains = {}
    for name, (organ, size) in SIZES.items():
        cases = []
        for number in range(size):
            split = "test" if number < 2 else "training"
            case = {"image": f"./{name}_{number}.nii", "label": f"./{name}_{number}_label.nii"}
            case |= {"sha256": f"{name}{number}"}
            lists[split].append({**case, "domain": name})
            cases.append({**case, "split": split})
        domains[name] = {"organ": organ, "cases": cases}
    (folder / "datalist.json").write_text(json.dumps(lists))
    (folder / "fingerprint.json").write_text(json.dumps({"domains": domains}))
    return folder


@pytest.fixture
def runner(monkeypatch) -> Runner:
    runner = Runner(make_data=partial(PreparedData, "3dseg8"))
    monkeypatch.setattr(engine, "run_bundle", runner)
    return runner


@pytest.fixture
def make(tmp_path: Path, prepared: Path):
    (tmp_path / "train.json").write_text(json.dumps({"epochs": 3, "share": 1.0, "domains": None, "seed": 0, "lr": 0.1}))
    (tmp_path / "study.json").write_text(json.dumps({"study": {}, "values": [], "seeds": []}))

    def make(option: str = "share", values=(0.5, 1.0), **changes) -> Study:
        arguments = {
            "name": option,
            "option": option,
            "values": list(values) if isinstance(values, tuple) else values,
            "output_dir": str(tmp_path / "eval"),
            "data": PreparedData("3dseg8", str(prepared), str(tmp_path / "eval")),
            "evaluation": "evaluate.json",
            "settings": {"epochs": 3},
            "config_files": [str(tmp_path / "train.json"), str(tmp_path / "study.json")],
            "overrides": {},
        }
        return Study(**{**arguments, **changes})

    return make


def test_each_value_and_seed_is_trained_and_evaluated_in_its_own_folder(make, runner, tmp_path) -> None:
    overrides = {"lr": 0.5, "epochs": 9, "values": [1], "seeds": 0, "study::metric": "x"}
    make(seeds=[0, 7], overrides=overrides).run()
    arms = ["share_0.5_seed0", "share_0.5_seed7", "share_1.0_seed0", "share_1.0_seed7"]
    assert runner.steps == [f"{step} {arm}" for arm in arms for step in ("train", "evaluate")]
    train, evaluate = runner.calls[2][1], runner.calls[3][1]
    assert train["config_file"] == [str(tmp_path / "train.json")]
    assert evaluate["config_file"] == [str(tmp_path / "train.json"), "evaluate.json"]
    assert (train["share"], train["seed"]) == (0.5, 7)
    assert train["ckpt_dir"] == str(tmp_path / "eval" / "share" / "share_0.5_seed7" / "models")
    assert {key: value for key, value in train.items() if key != "config_file"}.items() <= evaluate.items()
    for _, arguments in runner.calls:  # the user's options, but for those that are the study's own or that it fixes
        assert (arguments["lr"], arguments["epochs"]) == (0.5, 3)
        assert not {"values", "seeds", "study::metric"} & arguments.keys()


def test_the_json_has_a_row_per_arm_and_domain_with_n_and_interval(make, runner, tmp_path) -> None:
    record = make().run()
    text = (tmp_path / "eval" / "study_share.json").read_text()
    assert record == json.loads(text) and str(tmp_path) not in text
    assert {"study", "option", "command", "values", "seeds", "versions", "data", "settings"} <= record.keys()
    assert record["complete"]
    assert [(row["value"], row["organ"], row["training_cases"]) for row in record["rows"]] == [
        *((0.5, "brain", 9), (0.5, "hippocampus", 4), (0.5, "Mine", 1)),
        *((1.0, "brain", 18), (1.0, "hippocampus", 8), (1.0, "Mine", 2)),
    ]
    row = record["rows"][0]
    with open(tmp_path / "eval" / "share" / "share_0.5_seed0" / "test" / "cases.csv") as file:
        values = [float(case["val_mean_dice"]) for case in csv.DictReader(file) if "Brain" in case["domain"]]
    described = describe_metric(values)
    assert row["val_mean_dice"] == {key: described[key] for key in ("n", "mean", "interval_95")}
    assert row["val_mean_dice"]["n"] == record["data"]["test"]["Mine"]["n"] == 2
    assert (row["seed"], row["epochs"], row["seconds"], row["starts"]) == (0, 3, 1.5, 1)
    assert (tmp_path / "eval" / "study_share.png").read_bytes().startswith(b"\x89PNG")


def test_the_number_of_domains_changes_the_domains_of_the_rows(make, runner) -> None:
    record = make("domains", (1, 2, "Mine,hippocampus")).run()
    organs = [["brain"], ["brain", "hippocampus"], ["hippocampus", "Mine"]]
    for value, expected in zip(record["values"], organs):
        assert [row["organ"] for row in record["rows"] if row["value"] == value] == expected
    assert runner.steps[-1] == "evaluate domains_Mine+hippocampus_seed0"


def test_finished_arms_are_kept_and_more_values_only_run_the_new_ones(make, runner) -> None:
    first = make(values=0.5, seeds=0).run()  # one of each needs no list
    runner.calls.clear()
    assert make(values=(0.5,)).run() == first and runner.calls == []
    record = make(values=(0.5, 1.0)).run()
    assert runner.steps == ["train share_1.0_seed0", "evaluate share_1.0_seed0"] and len(record["rows"]) == 6


@pytest.fixture
def state_of(runner, tmp_path):
    """The checkpoint that each training finds."""
    found = []

    def train(folder, *rest) -> None:
        path = folder / "models" / "training_state.pt"
        found.append(path.read_text() if path.exists() else None)
        Runner.train(runner, folder, *rest)

    runner.train = train
    return found


def test_an_unfinished_arm_keeps_its_training_state(make, state_of, tmp_path) -> None:
    make(values=(1.0,)).run()
    arm = tmp_path / "eval" / "share" / "share_1.0_seed0"
    (arm / "test" / "summary.json").unlink()
    (arm / "run.json").write_text(json.dumps({**json.loads((arm / "run.json").read_text()), "status": "running"}))
    (arm / "models" / "training_state.pt").write_text("of epoch 2")
    make(values=(1.0,)).run()
    assert state_of == [None, "of epoch 2"]


@pytest.mark.parametrize("change", ["settings", "config", "data"])
def test_an_arm_of_other_settings_or_data_starts_anew(make, state_of, tmp_path, prepared, change) -> None:
    make(values=(1.0,)).run()
    if change == "config":
        (tmp_path / "train.json").write_text((tmp_path / "train.json").read_text().replace("0.1", "0.2"))
    elif change == "data":
        for file in ("datalist.json", "fingerprint.json"):
            (prepared / file).write_text((prepared / file).read_text().replace('"Mine0"', '"other"'))
    (tmp_path / "eval" / "share" / "share_1.0_seed0" / "models" / "training_state.pt").write_text("of before")
    make(values=(1.0,), **({"settings": {"epochs": 4}} if change == "settings" else {})).run()
    assert state_of == [None, None]


def test_a_failing_arm_stops_with_one_sentence_that_names_its_log_and_what_is_done_is_written(
    make, runner, tmp_path
) -> None:
    runner.fail = "train share_1.0_seed0"
    with pytest.raises(InputError) as caught:
        make().run()
    message = str(caught.value)
    assert "\n" not in message and "(the disk is full)" in message
    assert str(tmp_path / "eval" / "share" / "share_1.0_seed0" / "train.log") in message
    record = json.loads((tmp_path / "eval" / "study_share.json").read_text())
    assert not record["complete"] and {row["value"] for row in record["rows"]} == {0.5}


@pytest.mark.parametrize(
    ("option", "values", "changes", "message"),
    [
        ("share", (0.5, 1.5), {}, "share must be a number above 0"),
        ("share", ("half",), {}, "share must be a number"),
        ("domains", (1, 4), {}, "domains must be 1 to 3"),
        ("network_name", ("resnet10", "resnet11"), {}, "resnet11"),
        ("share", (), {}, "values of study 'share' must be one or more"),
        ("share", (0.5, 0.5), {}, "values of study 'share' must be one or more different"),
        ("share", (0.5,), {"seeds": [1, 1]}, "seeds of study"),
        ("share", (0.5,), {"seeds": ["a"]}, "seeds must be a list of whole numbers"),
        ("share", (0.5,), {"overrides": {"share": 0.1}}, "--share is what study 'share' varies"),
        ("share", (0.5,), {"config_files": []}, "needs its base config"),
        ("train::lr", (0.5,), {"overrides": {"train#lr": 0.1}}, "is what study 'train::lr' varies"),
        ("share", (0.5,), {"overrides": {"ckpt_dir": "x"}}, "sets ckpt_dir of each arm itself"),
        ("share", (0.5,), {"overrides": {"train#dataset#cache_dir": "x"}}, "sets train::dataset::cache_dir of each"),
        ("lr", ("a/b", "a b"), {}, "two arms that would both be written to 'lr_a\\+b_seed0'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(make, runner, option, values, changes, message) -> None:
    with pytest.raises(InputError, match=message):
        make(option, values, **changes).run()
    assert runner.calls == []


def test_a_metric_that_no_test_case_has_and_several_processes_are_refused(make, runner, monkeypatch) -> None:
    with pytest.raises(InputError, match="must be one of val_mean_dice, got val_dice"):
        make(metric="val_dice").run()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        make()


def test_a_domain_without_test_cases_has_no_row(make, runner, prepared) -> None:
    lists, facts = (json.loads((prepared / file).read_text()) for file in ("datalist.json", "fingerprint.json"))
    lists["test"] = [item for item in lists["test"] if item["domain"] != "Mine"]
    facts["domains"]["Mine"]["cases"] = facts["domains"]["Mine"]["cases"][2:]
    (prepared / "datalist.json").write_text(json.dumps(lists))
    (prepared / "fingerprint.json").write_text(json.dumps(facts))
    assert {row["organ"] for row in make().run()["rows"]} == {"brain", "hippocampus"}


def test_the_plot_has_a_line_per_domain_through_the_means_of_the_seeds(tmp_path, monkeypatch) -> None:
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda s, *a, **k: (drawn.append(list(map(list, a[:2]))), plot(s, *a, **k))[1])
    rows = [
        {"value": value, "organ": "liver", "dice": {"n": 3, "mean": mean}}
        for value, mean in ((0.1, 0.2), (0.1, 0.4), (1.0, 0.8), (1.0, None))
    ]
    record = {"study": "share", "option": "share", "values": [0.1, 1.0], "rows": rows}
    draw_study(record, "dice", tmp_path / "plot.png")
    assert drawn == [[[0, 1], [pytest.approx(0.3), 0.8]], [[0, 0, 1], [0.2, 0.4, 0.8]]]


@pytest.mark.parametrize(
    ("file", "option", "number"), [("share", "share", 5), ("domains", "domains", 4), ("depth", "network_name", 8)]
)
def test_the_overlays_vary_options_of_the_training(file, option, number) -> None:
    overlay = json.loads((CONFIGS / f"study_{file}.json").read_text())
    base = json.loads((CONFIGS / "train.json").read_text())
    assert overlay["study"]["option"] == option
    assert option in base
    assert len(overlay["values"]) == number
    assert overlay["study"]["settings"].keys() <= base.keys()
    own = {"values", "seeds", "study"}
    assert set(overlay) - own <= base.keys()


@pytest.mark.slow
def test_a_study_runs_on_phantoms_and_runs_nothing_twice(tmp_path) -> None:
    data = phantom_dataset("3dseg8", tmp_path / "phantoms", cases=3)
    files = f"['{CONFIGS / 'train.json'}','{CONFIGS / 'study_domains.json'}']"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--dataset_dir", str(data)]
    command += ["--output_dir", str(tmp_path / "eval"), "--epochs", "1", "--samples_per_domain", "2"]
    command += ["--values", "[1,'hippocampus,prostate']", "--spatial_size", "[16,16,16]"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    path = tmp_path / "eval" / "study_domains.json"
    record = json.loads(path.read_text())
    assert [row["organ"] for row in record["rows"]] == ["brain", "hippocampus", "prostate"]
    assert all(row["epochs"] == 1 and row["val_mean_dice"]["n"] == 1 for row in record["rows"])
    assert record["command"].startswith("python -m monai.bundle run")
    arms = sorted((tmp_path / "eval" / "domains").glob("domains_*/models/model.pt"))
    times = [arm.stat().st_mtime_ns for arm in arms]
    assert len(times) == 2
    again = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert again.returncode == 0, again.stderr
    assert [arm.stat().st_mtime_ns for arm in arms] == times
    assert json.loads(path.read_text()) == record

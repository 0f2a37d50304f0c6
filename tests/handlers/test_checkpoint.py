from __future__ import annotations

import copy
import json
import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from med3d_ext.errors import InputError
from med3d_ext.handlers import base
from med3d_ext.handlers import checkpoint as module
from med3d_ext.handlers.checkpoint import MODEL_NAME, PREVIOUS_NAME, STATE_NAME, unwrapped
from med3d_ext.run.overrides import set_by_id, split_id, training_options


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def load(path):
    return torch.load(path, weights_only=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def trained(training):
    training.trainer.run()
    return training


@pytest.mark.parametrize(("iteration", "workers"), [(5, 0), (7, 0), (12, 0), (5, 1)])  # middle, first, last of an epoch
def test_a_killed_training_continues_bit_for_bit(new_training, killed_training, tmp_path, caplog, iteration, workers):
    whole = trained(new_training(tmp_path / "whole", num_workers=workers))
    first = killed_training(tmp_path / "parts", iteration=iteration, num_workers=workers)
    with caplog.at_level(logging.INFO, logger="med3d_ext"):
        second = trained(new_training(tmp_path / "parts", num_workers=workers))
    done = (iteration - 1) // 3 * 3
    assert first.losses == whole.losses[: iteration - 1]
    assert second.losses == whole.losses[done:]
    assert second.learning_rates == whole.learning_rates[done:]
    assert equal(second.weights(), whole.weights())
    assert (second.trainer.state.epoch, second.trainer.state.iteration) == (4, 12)
    assert equal(load(tmp_path / "whole" / MODEL_NAME), load(tmp_path / "parts" / MODEL_NAME))
    said = [record.message for record in caplog.records if "med3d_ext" in record.name]
    assert said == [f"resuming after epoch {done // 3} of 4"]


def test_the_model_is_the_best_of_the_validations_also_across_a_kill(new_training, killed_training, tmp_path):
    scores = (0.1, 0.5, 0.3, 0.4)
    two = trained(new_training(tmp_path / "two", epochs=2, scores=scores))
    killed_training(tmp_path / "parts", scores=scores)
    second = trained(new_training(tmp_path / "parts", scores=scores))
    # 0.3 and 0.4 came after the restart and must not pass for new bests
    assert equal(load(tmp_path / "parts" / MODEL_NAME), two.weights())
    assert (second.evaluator.state.best_metric, second.evaluator.state.best_metric_epoch) == (0.5, 2)


@pytest.mark.parametrize("options", [{"validate": False}, {"val_interval": 3}])
def test_without_a_validation_the_model_is_the_latest(new_training, tmp_path, options):
    training = trained(new_training(tmp_path, epochs=2, **options))
    assert equal(load(tmp_path / MODEL_NAME), training.weights())


@pytest.mark.parametrize("cosine", ["cosine", "warm-up"])
def test_a_training_that_is_resumed_for_fewer_epochs_ends_with_its_learning_rate_at_zero(
    new_training, killed_training, tmp_path, caplog, cosine
):
    first = killed_training(tmp_path, epochs=6, cosine=cosine)
    shorter = new_training(tmp_path, epochs=4, cosine=cosine)
    with caplog.at_level(logging.INFO, logger="med3d_ext"):
        shorter.trainer.run()
    assert len(shorter.losses) == 2 * 3
    assert shorter.learning_rates[0] == first.learning_rates[-1] or cosine == "warm-up"
    assert shorter.trainer.optimizer.param_groups[0]["lr"] < 1e-9
    assert "within 4 epochs, not 6" in caplog.text


@pytest.mark.parametrize("cosine", [False, "cosine", "warm-up"])
def test_a_finished_training_is_lengthened_as_if_it_had_been_longer(new_training, tmp_path, cosine):
    whole = trained(new_training(tmp_path / "whole", epochs=5, cosine=cosine))
    first = trained(new_training(tmp_path / "parts", epochs=2, cosine=cosine))
    longer = trained(new_training(tmp_path / "parts", epochs=5, cosine=cosine))
    assert longer.learning_rates == pytest.approx(whole.learning_rates[6:])
    assert longer.trainer.state.lengths == [2, 5]
    assert not (tmp_path / "parts" / PREVIOUS_NAME).exists()
    if cosine:
        assert first.trainer.optimizer.param_groups[0]["lr"] < 1e-9
    else:  # bit for bit: the steps before were the same
        assert longer.losses == whole.losses[6:]
        assert equal(longer.weights(), whole.weights())
        assert equal(load(tmp_path / "whole" / MODEL_NAME), load(tmp_path / "parts" / MODEL_NAME))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_finished_training_is_not_begun_again_unless_it_is_asked_for(new_training, tmp_path, epochs):
    trained(new_training(tmp_path, epochs=2))
    before = contents(tmp_path)
    with pytest.raises(InputError, match="a finished training of 2 epochs .*`--epochs` above 2.*`--resume false`"):
        new_training(tmp_path, epochs=epochs).trainer.run()
    assert before == contents(tmp_path)
    again = trained(new_training(tmp_path, epochs=epochs, resume=False))
    assert len(again.losses) == 3 * epochs
    assert (tmp_path / PREVIOUS_NAME).read_bytes() == before[MODEL_NAME]
    assert min((path.name for path in tmp_path.iterdir()), key=len) == MODEL_NAME  # as MONAI Label needs it


@pytest.mark.parametrize("change", [{"options": {"lr": "2"}}, {"data": "other"}, {"files": {"init": "other.pt"}}])
def test_after_a_finished_training_another_one_starts_and_keeps_its_model(
    new_training, tmp_path, monkeypatch, caplog, change
):
    monkeypatch.chdir(tmp_path)
    for name in ("first.pt", "other.pt"):
        (tmp_path / name).write_text(name)
    same = {"options": {"lr": "1"}, "data": "this", "files": {"init": "first.pt"}}
    trained(new_training(tmp_path / "run", epochs=1, **same))
    former = load(tmp_path / "run" / MODEL_NAME)
    again = trained(new_training(tmp_path / "run", epochs=2, learning_rate=0.01, **{**same, **change}))
    assert len(again.losses) == 6 and again.trainer.state.lengths == [2]
    assert equal(load(tmp_path / "run" / PREVIOUS_NAME), former)
    assert not equal(load(tmp_path / "run" / MODEL_NAME), former)
    assert "is a different one, starting over: " in caplog.text


def test_a_training_whose_record_was_not_completed_is_completed_without_another_epoch(new_training, tmp_path):
    first = trained(new_training(tmp_path, epochs=2, output_dir=str(tmp_path)))
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    again = new_training(tmp_path, epochs=2, output_dir=str(tmp_path))
    ended = []
    again.trainer.add_event_handler(Events.COMPLETED, lambda engine: ended.append(engine.state.epoch))
    again.trainer.run()
    assert (again.losses, ended) == ([], [2])
    assert equal(again.weights(), first.weights())
    assert again.evaluator.state.metrics == {"val_mean_dice": 0.5}
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed"}))
    with pytest.raises(InputError, match="a finished training"):
        new_training(tmp_path, epochs=2, output_dir=str(tmp_path)).trainer.run()


def test_an_unfinished_training_may_end_where_it_is_and_not_before(new_training, killed_training, tmp_path):
    killed_training(tmp_path)
    with pytest.raises(InputError, match="an unfinished training of 2 epochs"):
        new_training(tmp_path, epochs=1).trainer.run()
    assert trained(new_training(tmp_path, epochs=2)).losses == []


@pytest.mark.parametrize("resume", [False, "false"])
def test_an_unfinished_training_is_left_when_asked(new_training, killed_training, tmp_path, resume):
    killed_training(tmp_path, data="this")
    former = load(tmp_path / MODEL_NAME)
    second = trained(new_training(tmp_path, data="other", epochs=3, resume=resume))
    assert len(second.losses) == 9
    assert equal(load(tmp_path / PREVIOUS_NAME), former)


CASES = [["a" * 32, "one (training)"], ["b" * 32, "two (training)"]]
REFUSED = {
    "an option": ({"options": {"lr": "2", "init": '"med3d"'}}, r"lr \(1 -> 2\)"),
    "an option that was not there": ({"options": {"lr": "1", "init": '"med3d"', "x": "3"}}, r"x \(not set -> 3\)"),
    "an option that is gone": ({"options": {"init": '"med3d"'}}, r"lr \(1 -> not set\)"),
    "a corrected label": ({"data": [CASES[0], ["c" * 32, "two (training)"]]}, r"changed cases: two \(training\)"),
    "a case more": ({"data": [*CASES, ["c" * 32, "three (training)"]]}, r"changed cases: three \(training\)"),
    "other initial weights": ({"files": {"init": "other.pt"}}, r"init \(content [0-9a-f]{12} -> content"),
    "all of it": ({"options": {"lr": "2"}, "data": []}, r"lr \(1 -> 2\).*; changed cases: one .*, two "),
    "another network": ({"channels": 5}, "7 tensors of other shapes"),
}


def test_an_unfinished_training_is_not_resumed_as_another_one(new_training, killed_training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("med3d.pt", "other.pt"):
        (tmp_path / name).write_text(name)
    same = {"options": {"lr": "1", "init": '"med3d"'}, "data": CASES, "files": {"init": "med3d.pt"}}
    killed_training(tmp_path / "run", **same)
    before = contents(tmp_path / "run")
    for change, message in REFUSED.values():
        with pytest.raises(InputError, match=f"{STATE_NAME} is of another .*{message}.*--resume false.*--ckpt_dir"):
            new_training(tmp_path / "run", **{**same, **change}).trainer.run()
        assert before == contents(tmp_path / "run")
    (tmp_path / "moved.pt").write_text("med3d.pt")  # the same content under another name
    moved = {"options": {"lr": "1", "init": '"moved.pt"'}, "files": {"init": "moved.pt"}}
    assert len(trained(new_training(tmp_path / "run", **{**same, **moved})).losses) == 6


@pytest.mark.parametrize("seed", range(10))
def test_whatever_differs_between_two_starts_is_refused_by_name_or_resumes_bit_for_bit(
    new_training, killed_training, tmp_path, seed
):
    generator = random.Random(seed)
    config = json.loads((Path(__file__).parents[2] / "bundles/lits_coarse/configs/train.json").read_text())
    may = ["epochs", "num_workers", "val_interval", "output_dir", "ckpt_dir", "device", "resume", "data::output_dir"]
    left = {*may, "bundle_root", "main_process", "dataset_dir", "save_execute_config", "negatives"}
    must = {name for name, value in config.items() if name not in left and not isinstance(value, dict | list)}
    must |= {"optimizer::lr", "loss::loss::_target_", "spatial_size"}
    name = generator.choice(may if seed % 2 else sorted(must))
    other = copy.deepcopy(config)
    set_by_id(other, split_id(name), "something else")
    whole = trained(new_training(tmp_path / "whole"))
    killed_training(tmp_path / "parts", options=training_options(config))
    second = new_training(tmp_path / "parts", options=training_options(other))
    if name in may:
        second.trainer.run()
        assert second.losses == whole.losses[6:] and equal(second.weights(), whole.weights())
    else:
        with pytest.raises(InputError, match=rf"of another training: {re.escape(name)} \(.* -> .something else.\)"):
            second.trainer.run()
        assert second.losses == []


def fewer_parameters(state):
    state["optimizer"]["param_groups"][0]["params"].pop()
    return state


CHANGED_STATES = {
    "another number of processes": (lambda state: {**state, "processes": 2}, r"processes \(2 -> 1\)"),
    "no options": (lambda state: {k: v for k, v in state.items() if k != "options"}, "written by an earlier version"),
    "another optimizer": (fewer_parameters, "is of another optimizer or scheduler"),
    "not a state": (lambda state: {"weights": 1}, "is not a training state"),
}


def test_a_state_that_cannot_be_resumed_is_refused_unless_it_is_not_wanted(new_training, killed_training, tmp_path):
    killed_training(tmp_path)
    path = tmp_path / STATE_NAME
    for change, message in CHANGED_STATES.values():
        kept = path.read_bytes()
        torch.save(change(load(path)), path)
        with pytest.raises(InputError, match=f"{message}.*--resume false"):
            new_training(tmp_path).trainer.run()
        path.write_bytes(kept)
    path.write_text("text")
    with pytest.raises(InputError, match="training_state.pt cannot be read"):
        new_training(tmp_path).trainer.run()
    trained(new_training(tmp_path, epochs=1, resume=False))
    assert load(path)["epoch"] == 1


def test_other_versions_are_warned_of_and_the_mark_of_a_stopped_run_is_passed_over(
    new_training, killed_training, tmp_path, caplog
):
    killed_training(tmp_path)
    state = load(tmp_path / STATE_NAME)
    torch.save({**state, "versions": {**state["versions"], "torch": "1.0"}}, tmp_path / STATE_NAME)
    trained(new_training(tmp_path))
    assert f"began with other versions (torch (1.0 -> {state['versions']['torch']}))" in caplog.text
    state.pop("options")
    torch.save({**state, "epoch": 0}, tmp_path / STATE_NAME)
    assert len(trained(new_training(tmp_path, epochs=1)).losses) == 3


@pytest.mark.parametrize("change", [{}, {"data": "other"}])
def test_in_a_labelling_server_nothing_is_refused(new_training, tmp_path, monkeypatch, change):
    monkeypatch.setenv("MONAI_LABEL_APP_DIR", str(tmp_path))
    trained(new_training(tmp_path / "run", epochs=1, data="this"))
    assert len(trained(new_training(tmp_path / "run", epochs=1, **{"data": "this", **change})).losses) == 3


def dying_at(training, name, epoch):
    """An ``os.replace`` that stops the training as it puts a file in its place."""
    replace = os.replace

    def put(source, target):
        if Path(target).name == name and training.trainer.state.epoch == epoch:
            raise KeyboardInterrupt
        replace(source, target)

    return put


@pytest.mark.parametrize("moment", ["first iteration", "between model and state"])
@pytest.mark.parametrize("resume", [True, False])
def test_kills_before_the_first_state_do_not_lose_the_former_model(
    new_training, killed_training, tmp_path, monkeypatch, moment, resume
):
    trained(new_training(tmp_path, epochs=1, options={"lr": "0.05"}))
    former = load(tmp_path / MODEL_NAME)
    other = {"epochs": 2, "learning_rate": 0.01, "resume": resume, "options": {"lr": "0.01"}}
    for _ in range(2):
        if moment == "first iteration":
            killed_training(tmp_path, iteration=1, **other)
            continue
        killed = new_training(tmp_path, **other)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", dying_at(killed, STATE_NAME, 1))
            killed.trainer.run()
    assert equal(load(tmp_path / PREVIOUS_NAME), former)


def test_a_kill_between_the_two_files_never_loses_the_best_model(new_training, tmp_path, monkeypatch):
    trained(new_training(tmp_path / "whole", epochs=2))
    torn = new_training(tmp_path / "parts", epochs=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", dying_at(torn, STATE_NAME, 2))
        torn.trainer.run()
    best = load(tmp_path / "whole" / MODEL_NAME)
    assert equal(load(tmp_path / "parts" / MODEL_NAME), best)
    assert load(tmp_path / "parts" / STATE_NAME)["epoch"] == 1
    trained(new_training(tmp_path / "parts", epochs=2))
    assert equal(load(tmp_path / "parts" / MODEL_NAME), best)


def test_a_diverged_training_stops_with_a_sentence_and_keeps_the_state_before(new_training, tmp_path):
    training = new_training(tmp_path / "loss")
    loss = training.trainer.loss_function
    training.trainer.loss_function = lambda pred, label: (
        loss(pred, label) * (float("nan") if training.trainer.state.iteration == 5 else 1)
    )
    with pytest.raises(InputError, match="the loss became nan in epoch 2, iteration 5 .*keeps epoch 1.*--resume false"):
        training.trainer.run()
    spoilt = new_training(tmp_path / "weights", epochs=2)
    weight = next(spoilt.network.parameters()).data
    spoilt.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), lambda: weight.fill_(float("inf")))
    with pytest.raises(InputError, match="a weight became infinite or NaN in epoch 2"):
        spoilt.trainer.run()
    assert load(tmp_path / "loss" / STATE_NAME)["epoch"] == load(tmp_path / "weights" / STATE_NAME)["epoch"] == 1


def test_other_ranks_write_nothing_and_restore(new_training, killed_training, tmp_path, monkeypatch):
    def as_rank(number):
        for one in (module, base):
            monkeypatch.setattr(one, "rank", lambda: number)

    as_rank(1)
    trained(new_training(tmp_path, epochs=1))
    assert list(tmp_path.iterdir()) == []
    as_rank(0)
    killed_training(tmp_path)
    as_rank(1)
    assert len(trained(new_training(tmp_path)).losses) == 6
    assert load(tmp_path / STATE_NAME)["epoch"] == 2


def test_wrappers_are_looked_through_and_a_resume_that_is_neither_true_nor_false_is_refused(new_training, tmp_path):
    network = new_training(tmp_path).network
    assert unwrapped(torch.nn.DataParallel(network)) is unwrapped(network) is network
    with pytest.raises(InputError, match="resume must be true or false, got 'maybe'"):
        new_training(tmp_path, resume="maybe")


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_both_continue(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch.distributed as dist; dist.init_process_group('gloo')\n"
        "from conftest import Killed, kill_at, make_training\n"
        "first = make_training(sys.argv[2], distributed=True)\n"
        "kill_at(first, 8)\n"
        "try: first.trainer.run()\n"
        "except Killed: dist.barrier()\n"
        "second = make_training(sys.argv[2], distributed=True)\n"
        "second.trainer.run()\n"
        "open(f'{sys.argv[2]}/rank{dist.get_rank()}.txt', 'w').write(str(len(second.losses)))\n"
        "dist.destroy_process_group()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run([*torchrun, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank{i}.txt").read_text() for i in (0, 1)] == ["6", "6"]
    assert load(tmp_path / STATE_NAME)["epoch"] == 4
    assert not any(key.startswith("module.") for key in load(tmp_path / MODEL_NAME))

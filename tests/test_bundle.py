from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from med3d_ext.errors import InputError
from med3d_ext.io.files import write_atomically
from med3d_ext.run import one_line
from med3d_ext.run.one_line import input_error_message, user_message
from med3d_ext.run.start import StartRun, check_overrides, effective_config, one_line_errors, run_arguments

MAIN = os.path.join("monai", "bundle", "__main__.py")
CONFIG = {
    "epochs": 3,
    "options": {"a": 1},
    "files": ["one", "two"],
    "network": {"_target_": "BasicUNet", "spatial_dims": 3},
    "free": {"_target_": "dict", "a": 1},
    "lost": {"_target_": "$@network.forward"},
    "train": {
        "trainer": {"_target_": "SupervisedTrainer", "max_epochs": "@epochs"},
        "handlers": [{"_target_": "StatsHandler", "name": "x"}],
    },
    "run": [{"_target_": "med3d_ext.run.StartRun"}],
}


@pytest.fixture
def train_json(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def process(monkeypatch):
    """Put back what the hook changes."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    yield monkeypatch
    logging.setLogRecordFactory(factory)


def as_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{MAIN}", *map(str, arguments)])


@pytest.mark.parametrize(
    ("words", "files", "overrides"),
    [
        ("--config_file a.json --epochs 3", ["a.json"], {"epochs": 3}),
        ("--config_file=a.json --lr=1e-3 --name=x=y", ["a.json"], {"lr": 0.001, "name": "x=y"}),
        ("training --config_file ['a.json','b.json']", ["a.json", "b.json"], {}),
        ("--config_file a.json,b.json", ["a.json", "b.json"], {}),
        ("--config_file a.json --a::b::c 2 --net#channels [1,2]", ["a.json"], {"a::b::c": 2, "net#channels": [1, 2]}),
        ("--config_file a.json --amp --noresume --x -1", ["a.json"], {"amp": True, "resume": False, "x": -1}),
        ("--run_id test --config_file a.json --tracking mlflow", ["a.json"], {}),
    ],
)
def test_files_and_overrides_are_read_as_monai_bundle_reads_them(words, files, overrides):
    assert run_arguments([MAIN, "run", *words.split()]) == (files, overrides)


def test_the_arguments_file_gives_defaults(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"config_file": "a.json", "epochs": 5, "lr": 1, "logging_file": "log.conf"}))
    assert run_arguments([MAIN, "run", "--args_file", str(path), "--lr", "2"]) == (["a.json"], {"epochs": 5, "lr": 2})


@pytest.mark.parametrize(
    "argv", [[], ["pytest"], [MAIN], [MAIN, "download", "--name", "x"], ["run.py", "run", "--a=1"]]
)
def test_other_processes_have_no_run_arguments(argv):
    assert run_arguments(argv) == ([], {})
    assert effective_config(argv) == {}


def test_the_effective_config_is_the_one_that_monai_runs(train_json, tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"train::trainer::max_epochs": 7, "+files": ["three"], "new": 1}))
    argv = [MAIN, "run", "--config_file", f"['{train_json}','{overlay}']", "--options#b", "2", "--epochs", "9"]
    argv += ["--_meta_::version", "1"]
    parser = ConfigParser()
    parser.read_config([str(train_json), str(overlay)])
    parser.update({"options#b": 2, "epochs": 9})
    expected = {key: value for key, value in parser.get().items() if key != "_meta_"}
    assert effective_config(argv) == expected
    assert expected["files"] == ["one", "two", "three"]


@pytest.mark.parametrize(
    "name",
    [
        "epochs",
        "train::trainer::max_epochs",
        "train#trainer#max_epochs",
        "train::handlers::0::name",
        "files::1",
        "options::new",
        "network::features",  # an argument left at its default
        "network::_disabled_",
        "free::anything",  # its target takes any keyword
        "lost::anything",  # nobody can say
        "_meta_::version",
    ],
)
def test_an_override_with_an_effect_is_accepted(name):
    check_overrides(CONFIG, {name: 1})
    check_overrides(CONFIG, {"epochs": {"first": 1}, "epochs::first": 2})  # one may change what another one sets


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epoch", "did you mean 'epochs'?"),
        ("max_epoch", "did you mean 'epochs'?"),
        ("spatial_dims", "did you mean 'network::spatial_dims'?"),
        ("name", "did you mean 'train::handlers::0::name'?"),
        ("train::epochs", "did you mean 'epochs'?"),
        ("network::feature", "remove it, or add the id to the config."),
        ("network#spatial_dim", "did you mean 'network::spatial_dims'?"),
        ("files::2", "remove it, or add the id to the config."),
        ("epochs::x", "remove it, or add the id to the config."),
        ("zzz", "remove it, or add the id to the config."),
    ],
)
def test_an_override_without_effect_is_refused_with_the_nearest_id(name, hint):
    with pytest.raises(InputError) as caught:
        check_overrides(CONFIG, {name: 1}, "train.json")
    assert str(caught.value).startswith(f"override '{name}' matches no id of train.json; ")
    assert hint in str(caught.value)


@pytest.mark.parametrize("tracked", [True, False])
def test_settings_of_tracking_are_legal_where_a_run_is_tracked(train_json, process, tracked):
    tracking = ["--tracking", "mlflow"] if tracked else []
    as_command(process, "run", "--config_file", train_json, "--run_name", "a", *tracking)
    if tracked:
        StartRun()
    else:
        with pytest.raises(InputError, match="'run_name'"):
            StartRun()


def test_a_bundle_that_another_program_loads_changes_nothing(process):
    before = sys.excepthook, logging.getLogRecordFactory()
    process.setattr(sys, "argv", ["/usr/bin/monailabel", "start_server"])
    StartRun()
    one_line_errors()
    assert (sys.excepthook, logging.getLogRecordFactory()) == before


def fail(_):
    raise InputError("image 'a.nii.gz' is truncated; copy it again.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_message_is_found_behind_transforms_and_worker_processes(num_workers):
    data = Dataset([{"image": torch.zeros(1)}], Compose([fail]))
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(data, num_workers=num_workers))
    assert input_error_message(caught.value) == "image 'a.nii.gz' is truncated; copy it again."


def test_a_worker_of_a_plain_data_set_passes_its_input_error_on():
    with pytest.raises(InputError, match="Caught InputError") as caught:
        list(torch.utils.data.DataLoader([0], num_workers=1, collate_fn=fail))
    assert input_error_message(caught.value) == "image 'a.nii.gz' is truncated; copy it again."


def test_other_errors_have_no_message_of_this_kind():
    try:
        try:
            fail(0)
        except InputError:
            raise ValueError("another fault") from None
    except ValueError as error:
        assert input_error_message(error) is None
    assert input_error_message(None) is None


def test_the_hook_prints_one_line_and_leaves_other_exceptions_alone(process, capsys):
    others, waited = [], []
    process.setattr(sys, "excepthook", lambda *error: others.append(error))
    as_command(process, "run")
    one_line_errors()
    one_line_errors()  # a second call adds nothing
    error = RuntimeError("Failed to instantiate component")
    error.__cause__ = InputError("dataset_dir is empty; name a folder with images.")
    sys.excepthook(RuntimeError, error, None)
    process.setattr(one_line.time, "sleep", waited.append)
    process.setenv("RANK", "1")
    sys.excepthook(InputError, InputError("fault."), None)  # a rank above 0 lets the first speak
    assert capsys.readouterr().err == "dataset_dir is empty; name a folder with images.\nfault.\n"
    assert (others, waited) == ([], [10])
    other = ValueError("x")
    sys.excepthook(ValueError, other, None)
    as_command(process, "run", "--debug")
    sys.excepthook(RuntimeError, error, None)
    assert others == [(ValueError, other, None), (RuntimeError, error, None)]


def test_error_logs_are_silent_only_while_an_input_error_passes(process, caplog):
    as_command(process, "run")
    one_line_errors()
    logger = logging.getLogger("engine")
    for error in (InputError("one"), ValueError("two")):
        try:
            raise error
        except ValueError as passing:
            logger.error("terminating: %s", passing)
            logger.warning("skipped: %s", passing)
    logger.error("three")
    assert [record.getMessage() for record in caplog.records] == [
        "skipped: one",
        "terminating: two",
        "skipped: two",
        "three",
    ]


def command(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300
    )


def test_the_command_ends_with_one_line_and_a_non_zero_exit(train_json):
    done = command("-W", "ignore", "-m", "monai.bundle", "run", "--config_file", train_json, "--epoch", "3")
    assert done.returncode == 1
    assert done.stderr == "override 'epoch' matches no id of train.json; did you mean 'epochs'?\n"
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_under_torchrun_the_line_is_said_once(train_json):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = command(*torchrun, "-m", "monai.bundle", "run", "--config_file", train_json, "--epoch", "3")
    assert done.returncode == 1
    assert done.stderr.count("did you mean 'epochs'?") == 1
    assert Path(train_json).is_file()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(28, "No space left on device", "/o/model.pt"),
            "'/o/model.pt' cannot be used (No space left on device)",
        ),
        (PermissionError(13, "Permission denied", "/o"), "'/o' cannot be used (Permission denied); check the path"),
        (MemoryError(), "RAM is full; lower batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory"), "GPU memory is full; lower batch_size"),
        (RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"), "A worker process was killed"),
        (KeyboardInterrupt(), "Interrupted"),
        (one_line.Terminated(), "Terminated"),
    ],
)
def test_what_the_machine_or_a_user_stops_is_a_sentence(error, sentence):
    wrapped = RuntimeError("Failed to evaluate ConfigExpression: '$@train::trainer.run()'")
    wrapped.__cause__ = error
    assert (user_message(error) or "").startswith(sentence)
    if isinstance(error, Exception):
        assert user_message(wrapped) == user_message(error)


def test_a_torch_file_that_the_disk_cuts_off_is_named_and_the_old_one_survives(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught, write_atomically(path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 0")
    assert (user_message(caught.value) or "").startswith(f"'{path}' cannot be used (No space left on device)")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def stopped(tmp_path, number):
    """Exit code and stderr of a command that a signal stops."""
    program = tmp_path / "monai" / "bundle" / "__main__.py"
    program.parent.mkdir(parents=True)
    program.write_text(
        "import time, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from med3d_ext.run.one_line import one_line_errors\none_line_errors()\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")])
def test_a_stopped_run_says_so_in_a_line_and_has_the_signals_exit_code(tmp_path, number, word):
    code, said = stopped(tmp_path, number)
    assert code == -number  # 128 + number in a shell
    assert said == f"{word}; the same command resumes a training after its last complete epoch.\n"


def test_a_training_does_not_end_because_nobody_reads_its_log():
    script = (
        "import sys, logging, time\nsys.argv = ['med3d_ext']\n"
        "from med3d_ext.run.one_line import one_line_errors\none_line_errors()\n"
        "logging.basicConfig(stream=sys.stdout, level=20)\n"
        "for n in range(2000): logging.info('line %d', n)\nprint('done', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "done\n"
    assert process.wait(timeout=60) == 0

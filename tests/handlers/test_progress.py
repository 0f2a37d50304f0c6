from __future__ import annotations

import io
import logging
import re
import sys

import pytest
from ignite.engine import Engine

from med3d_ext.handlers import progress
from med3d_ext.handlers.progress import ProgressBar

LINE = re.compile(
    r"epoch (\d)/3  loss (-?\d+\.\d{4})  val_mean_dice (0\.\d{4})  (\d:\d\d:\d\d) elapsed  (\d:\d\d:\d\d) left$"
)


@pytest.fixture(autouse=True)
def levels():
    """Put back the levels of the loggers that the bar quiets."""
    names = [name for name in logging.root.manager.loggerDict if "ngine" in name or "Stats" in name]
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def lines(text):
    return [LINE.match(line) for line in text.splitlines() if line.startswith("epoch")]


def test_without_a_terminal_each_epoch_is_one_line_with_its_own_validation(new_training, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    training = new_training(tmp_path, epochs=3, handlers=lambda evaluator: [ProgressBar(evaluator)])
    training.trainer.run()
    assert [record for record in caplog.records if "ngine" in record.name] == []
    found = lines(capsys.readouterr().err)
    assert [match[1] for match in found] == ["1", "2", "3"]
    assert [match[3] for match in found] == ["0.1000", "0.5000", "0.3000"]
    means = [sum(training.losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [match[2] for match in found] == [f"{mean:.4f}" for mean in means]
    assert found[-1][5] == "0:00:00"


def test_a_resumed_training_counts_from_where_it_is(new_training, killed_training, tmp_path, capsys, monkeypatch):
    killed_training(tmp_path, epochs=3, iteration=5)
    capsys.readouterr()
    clock = iter(range(0, 1000, 60))  # a minute between two looks: epochs 2 and 3 take one each
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    new_training(tmp_path, epochs=3, handlers=lambda evaluator: [ProgressBar(evaluator)]).trainer.run()
    assert [(match[1], match[4], match[5]) for match in lines(capsys.readouterr().err)] == [
        ("2", "0:01:00", "0:01:00"),
        ("3", "0:02:00", "0:00:00"),
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_a_bar_shows_the_epochs_loss_between_the_lines(new_training, tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    training = new_training(tmp_path, epochs=3, handlers=lambda evaluator: [ProgressBar(evaluator)])
    training.trainer.run()
    text = terminal.getvalue()
    assert re.search(rf"epoch \[2/3\].*loss={training.losses[3]:.3g}", text)
    printed = [line.rpartition("\r")[2] for line in text.split("\n")]
    assert [match[1] for match in map(LINE.match, printed) if match] == ["1", "2", "3"]


def test_an_engine_without_loss_and_validation_shows_its_epochs(capsys):
    engine = Engine(lambda engine, batch: None)
    ProgressBar().attach(engine)
    engine.run([1, 2], max_epochs=1)
    assert capsys.readouterr().err == "epoch 1/1  0:00:00 elapsed  0:00:00 left\n"

from __future__ import annotations

import csv
from types import SimpleNamespace

from ignite.engine import Engine, Events
from matplotlib.image import imread

from med3d_ext.handlers import curves
from med3d_ext.handlers.curves import Curves


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def with_curves(folder, **kwargs):
    return lambda evaluator: [Curves(str(folder), evaluator, **kwargs)]


def test_each_iteration_and_each_epoch_has_its_row(new_training, tmp_path):
    training = new_training(tmp_path / "ckpt", epochs=3, handlers=with_curves(tmp_path))
    training.trainer.run()
    losses = rows(tmp_path / "loss.csv")
    assert [float(row["loss"]) for row in losses] == training.losses
    assert [(row["iteration"], row["epoch"]) for row in losses] == [(str(i + 1), str(i // 3 + 1)) for i in range(9)]
    history = rows(tmp_path / "history.csv")
    assert [float(row["loss"]) for row in history] == [sum(training.losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [float(row["learning_rate"]) for row in history] == training.learning_rates[::3]
    assert [row["val_mean_dice"] for row in history] == ["0.1", "0.5", "0.3"]


def test_a_resumed_training_leaves_the_files_of_an_uninterrupted_one(new_training, killed_training, tmp_path):
    new_training(tmp_path / "whole", handlers=with_curves(tmp_path / "whole")).trainer.run()
    parts = tmp_path / "parts"
    killed_training(parts, iteration=9, handlers=with_curves(parts))
    assert len(rows(parts / "loss.csv")) == 8
    with open(parts / "loss.csv", "a") as file:
        file.write("9,")  # cut short
    new_training(parts, handlers=with_curves(parts)).trainer.run()
    for name in ("loss.csv", "history.csv"):
        assert (parts / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_new_training_starts_the_files_anew_and_epochs_without_validation_have_empty_cells(new_training, tmp_path):
    for epochs in (4, 3):
        options = {"epochs": epochs, "resume": False, "val_interval": 2, "handlers": with_curves(tmp_path)}
        new_training(tmp_path, **options).trainer.run()
    assert len(rows(tmp_path / "loss.csv")) == 9
    assert [row["val_mean_dice"] for row in rows(tmp_path / "history.csv")] == ["", "0.5", ""]


def test_every_domain_has_its_column_and_line(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "_draw", lambda path, label, lines: drawn.update({path.name: dict(lines)}))
    judge = SimpleNamespace(epoch=1, metrics={"val_mean_dice": {"liver": 0.5, "spleen": 0.25}, "val_recall": 1.0})
    handler = Curves(str(tmp_path), SimpleNamespace(state=judge))
    engine = Engine(lambda *_: {"loss": 1.5})
    handler.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update({"loss": {"liver": 2.0}}))
    engine.run([0], max_epochs=1)
    expected = {"loss": 1.5, "loss_liver": 2.0, "val_mean_dice_liver": 0.5, "val_mean_dice_spleen": 0.25}
    expected = {"epoch": 1, **expected, "val_recall": 1.0}
    assert rows(tmp_path / "history.csv") == [{name: str(value) for name, value in expected.items()}]
    assert drawn["loss.png"] == {"each iteration": [(1.0, 1.5)], "loss": [(1, 1.5)], "loss_liver": [(1, 2.0)]}
    assert drawn["dice.png"] == {"val_mean_dice_liver": [(1, 0.5)], "val_mean_dice_spleen": [(1, 0.25)]}
    handler.metrics = ["val_recall"]
    handler.draw()
    assert list(drawn["dice.png"]) == ["val_recall"]
    handler.metrics, handler._epochs = None, [{"epoch": 1, "auc": 0.5, "recall": 1.0}]
    judge.key_metric_name, judge.metrics = "auc", {"auc": 0.5}
    handler.draw()
    assert list(drawn["dice.png"]) == ["auc"]  # the key metric, if there is no Dice


def test_the_pictures_are_drawn_while_training_but_not_at_every_step(new_training, tmp_path, monkeypatch):
    seen = []
    draw = Curves.draw
    monkeypatch.setattr(Curves, "draw", lambda self: (seen.append(1), draw(self)))
    clock = iter(range(10_000))
    monkeypatch.setattr(curves.time, "monotonic", lambda: 1000 + next(clock))
    handlers = with_curves(tmp_path, redraw_seconds=5, metrics=["val_mean_dice"], picture="auc")
    training = new_training(tmp_path, epochs=3, handlers=handlers)
    during = []
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: during.append((tmp_path / "loss.png").is_file())
    )
    training.trainer.run()
    assert all(during)
    assert 2 <= len(seen) <= 4
    assert {path.name for path in tmp_path.glob("*.png")} == {"loss.png", "auc.png"}
    for name in ("loss.png", "auc.png"):
        picture = imread(tmp_path / name)
        assert picture.shape[:2] == (500, 800)
        assert picture.std() > 0.01  # not blank


def test_an_iteration_without_a_loss_has_no_row(tmp_path):
    engine = Engine(lambda *_: None)
    Curves(str(tmp_path)).attach(engine)
    engine.run([0], max_epochs=1)
    assert rows(tmp_path / "loss.csv") == []
    assert rows(tmp_path / "history.csv") == [{"epoch": "1"}]

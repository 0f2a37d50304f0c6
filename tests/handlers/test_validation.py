from __future__ import annotations

import pytest
from ignite.engine import Engine

from med3d_ext.handlers.validation import EpochValidation


class Recorder:
    """Stands in for an evaluator: keeps the epochs that it was run after."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def run(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize(
    ("interval", "epochs", "expected"),
    [(1, 3, [1, 2, 3]), (4, 11, [4, 8, 11]), (2, 4, [2, 4]), (10, 3, [3])],
)
def test_the_last_epoch_is_always_validated_and_none_twice(interval: int, epochs: int, expected: list[int]):
    handler, recorder = EpochValidation(interval), Recorder()
    handler.validator = recorder
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    engine.run([0, 0], max_epochs=epochs)
    assert recorder.epochs == expected


def test_without_cases_nothing_is_validated_and_that_is_said(caplog):
    recorder = Recorder()
    recorder.data_loader = []
    engine = Engine(lambda *_: None)
    handler = EpochValidation(1)
    handler.validator = recorder
    handler.attach(engine)
    engine.run([0, 0], max_epochs=3)
    assert recorder.epochs == []
    assert [record.message for record in caplog.records if "no case to validate on" in record.message] == [
        "no case to validate on: the weights are those of the last epoch"
    ]

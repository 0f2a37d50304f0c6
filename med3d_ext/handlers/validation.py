"""Validation every few epochs and after the last one, which a schedule that ends at zero makes the likely best."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events
from monai.handlers import ValidationHandler


class EpochValidation(ValidationHandler):
    """MONAI's ValidationHandler that never leaves out the last epoch.

    Args:
        interval: epochs between validations.
        validator: the evaluator.
    """

    def __init__(self, interval: int, validator: Any = None) -> None:
        super().__init__(interval, validator)

    def attach(self, engine: Any) -> None:
        """Register with the trainer."""

        def due(engine: Any, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)

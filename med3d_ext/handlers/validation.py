"""Validation every few epochs and after the last one, which a schedule that ends at zero makes the likely best."""

from __future__ import annotations

import logging
from typing import Any

from ignite.engine import Events
from monai.handlers import ValidationHandler

logger = logging.getLogger(__name__)


class EpochValidation(ValidationHandler):
    """MONAI's ValidationHandler that never leaves out the last epoch, and every one where there are no cases.

    A labelling server with one or two labeled images sends none to validate on; the weights of the last epoch are
    kept then.

    Args:
        interval: epochs between validations.
        validator: the evaluator.
    """

    def __init__(self, interval: int, validator: Any = None) -> None:
        super().__init__(interval, validator)

    def attach(self, engine: Any) -> None:
        """Register with the trainer."""

        def due(engine: Any, epoch: int) -> bool:
            last = epoch == engine.state.max_epochs
            if self._is_empty():
                if last:
                    logger.warning("no case to validate on: the weights are those of the last epoch")
                return False
            return epoch % self.interval == 0 or last

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)

    def _is_empty(self) -> bool:
        loader = getattr(self.validator, "data_loader", None)
        return loader is not None and len(loader) == 0

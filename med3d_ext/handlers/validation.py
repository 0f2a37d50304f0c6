"""Validation every few epochs and after the last one, which a schedule that ends at zero makes the likely best."""

from __future__ import annotations

import logging
from typing import Any

from monai.handlers import ValidationHandler

from med3d_ext.handlers.base import Handler

logger = logging.getLogger(__name__)


class EpochValidation(Handler, ValidationHandler):
    """MONAI's ValidationHandler that never leaves out the last epoch, and every one if there are no cases.

    A labelling server with one or two labeled images sends none to validate on; the weights of the last epoch are
    kept then.

    Args:
        interval: epochs between validations.
        validator: the evaluator.
    """

    every_rank = True

    def __init__(self, interval: int, validator: Any = None) -> None:
        super().__init__(interval, validator)

    def epoch_completed(self, engine: Any) -> None:
        loader = getattr(self.validator, "data_loader", None)
        last = engine.state.epoch == engine.state.max_epochs
        if loader is not None and len(loader) == 0:
            if last:
                logger.warning("no case to validate on: the weights are those of the last epoch")
        elif last or engine.state.epoch % self.interval == 0:
            self(engine)

"""Heads first: keep the encoder as it is for the first epochs."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from med3d_ext.weights.loading import encoder_of


class FreezeEncoder:
    """Freeze the encoder's parameters and BatchNorm statistics for the first ``epochs`` epochs.

    Whether it is frozen is decided at each epoch's start from the epoch's number, so that a resumed run goes on right.

    Args:
        network: an encoder or a network with one, see :func:`~med3d_ext.weights.initial.encoder_of`.
        epochs: how many; 0 never freezes, -1 always.
    """

    def __init__(self, network: nn.Module, epochs: int) -> None:
        if epochs < -1:
            raise ValueError(f"epochs must be -1 (always), 0 (never) or a number of epochs, got {epochs}.")
        self.encoder = encoder_of(network)
        self.epochs = epochs
        self._hook: RemovableHandle | None = None

    def attach(self, engine: Engine) -> None:
        """Act on each epoch of ``engine``, the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        frozen = self.epochs == -1 or engine.state.epoch <= self.epochs
        if frozen == (self._hook is not None):
            return
        for parameter in self.encoder.parameters():
            parameter.requires_grad = not frozen
            parameter.grad = None
        if frozen:
            # A trainer calls train() before each iteration, after every event: only the forward pass comes later.
            self._hook = self.encoder.register_forward_pre_hook(_stop_statistics)
        elif self._hook is not None:
            self._hook.remove()
            self._hook = None


def _stop_statistics(encoder: nn.Module, inputs: Any) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

"""Heads first: keep the encoder as it is for the first epochs."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from med3d_ext.handlers.base import Handler
from med3d_ext.run.overrides import truth
from med3d_ext.weights.loading import encoder_of


class FreezeEncoder(Handler):
    """Freeze the encoder's parameters and BatchNorm statistics for the first ``epochs`` epochs.

    Whether it is frozen is decided at each epoch's start from the epoch's number, so that a resumed run is right, too.

    Args:
        network: an encoder or a network with one, see :func:`~med3d_ext.weights.initial.encoder_of`.
        epochs: how many; 0 never freezes, -1 always.
        keep_statistics: whether the BatchNorm statistics stay those of the initial weights for the whole training, as
            small batches estimate them badly. Defaults to False: they adapt once the encoder is trained.
    """

    every_rank = True

    def __init__(self, network: nn.Module, epochs: int, keep_statistics: bool | str = False) -> None:
        if epochs < -1:
            raise ValueError(f"epochs must be -1 (always), 0 (never) or a number of epochs, got {epochs}.")
        self.epochs = epochs
        self.keep_statistics = truth("keep_statistics", keep_statistics)
        # A network of another kind has no encoder, and nothing of it is ever frozen.
        self.encoder = encoder_of(network) if epochs or self.keep_statistics else nn.Module()
        self._hook: RemovableHandle | None = None

    def epoch_started(self, engine: Engine) -> None:
        frozen = self.epochs == -1 or engine.state.epoch <= self.epochs
        for parameter in self.encoder.parameters():
            if parameter.requires_grad == frozen:
                parameter.requires_grad = not frozen
                parameter.grad = None
        if (frozen or self.keep_statistics) and self._hook is None:
            # A trainer calls train() before each iteration, after every event: only the forward pass comes later.
            self._hook = self.encoder.register_forward_pre_hook(stop_statistics)
        elif self._hook is not None and not (frozen or self.keep_statistics):
            self._hook.remove()
            self._hook = None


def stop_statistics(encoder: nn.Module, inputs: Any = None) -> None:
    """Let the encoder's BatchNorm layers compute with their running statistics, and keep them."""
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

"""The loss of each domain, epoch by epoch, and the encoder without its branches when all is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from med3d_ext.handlers.base import Handler
from med3d_ext.io.files import write_atomically
from med3d_ext.losses import MultiHeadLoss
from med3d_ext.networks import encoder_state_dict


@dataclass(eq=False)
class DomainLoss(Handler):
    """Put each domain's mean loss of the epoch into ``trainer.state.metrics`` as ``loss/<domain>``.

    Place it before the handlers that write metrics. With several processes the values are those of the first.

    Args:
        loss: the loss whose ``per_domain`` is read.
        domains: names of the domains, in the network's order.
    """

    every_rank = True

    loss: MultiHeadLoss
    domains: Sequence[str]

    def epoch_started(self, engine: Any) -> None:
        self.values: dict[str, list[torch.Tensor]] = defaultdict(list)

    def iteration_completed(self, engine: Any) -> None:
        for index, value in self.loss.per_domain.items():
            # On their device: reading them would stop a GPU at every iteration.
            self.values[self.domains[index]].append(value)

    def epoch_completed(self, engine: Any) -> None:
        for domain in self.domains:
            if self.values[domain]:
                engine.state.metrics[f"loss/{domain}"] = float(torch.stack(self.values[domain]).mean())


@dataclass(eq=False)
class EncoderExport(Handler):
    """Remove the decoder: write the encoder's own state dict when training completes (paper, section 3.2).

    The encoder is that of ``model.pt``, the best validation, if there is one.

    Args:
        ckpt_dir: folder of the weights; the file is ``encoder.pt``.
        network: the network.
    """

    ckpt_dir: str
    network: torch.nn.Module

    def completed(self, engine: Any) -> None:
        model = Path(self.ckpt_dir) / "model.pt"
        state = encoder_state_dict(self.network)
        if model.is_file():
            best = torch.load(model, map_location="cpu", weights_only=True)
            state = {key: best[f"encoder.{key}"] for key in state}
        with write_atomically(model.with_name("encoder.pt")) as file:
            torch.save({key: value.detach().cpu() for key, value in state.items()}, file)

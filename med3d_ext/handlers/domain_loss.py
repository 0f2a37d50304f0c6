"""The loss of each domain, epoch by epoch, and the encoder without its branches when all is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from med3d_ext.io.files import write_atomically
from med3d_ext.losses import MultiHeadLoss
from med3d_ext.networks import encoder_state_dict
from med3d_ext.run.rank import rank


class DomainLoss:
    """Put each domain's mean loss of the epoch into ``trainer.state.metrics`` as ``loss/<domain>``.

    Place it before the handlers that write metrics. With several processes the values are those of the first.

    Args:
        loss: the loss whose ``per_domain`` is read.
        domains: names of the domains, in the network's order.
    """

    def __init__(self, loss: MultiHeadLoss, domains: Sequence[str]) -> None:
        self.loss = loss
        self.domains = list(domains)
        self.values: dict[str, list[torch.Tensor]] = defaultdict(list)

    def attach(self, engine: Any) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.values.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.publish)

    def note(self, engine: Any) -> None:
        """Keep the losses of one batch, on their device: reading them would stop a GPU at every iteration."""
        for index, value in self.loss.per_domain.items():
            self.values[self.domains[index]].append(value)

    def publish(self, engine: Any) -> None:
        """Means of the epoch, in the domains' order."""
        for domain in self.domains:
            if self.values[domain]:
                engine.state.metrics[f"loss/{domain}"] = float(torch.stack(self.values[domain]).mean())


class EncoderExport:
    """Remove the decoder: write the encoder's own state dict when training completes (paper, section 3.2).

    The encoder is that of ``model.pt``, the best validation, if there is one.

    Args:
        ckpt_dir: folder of the weights; the file is ``encoder.pt``.
        network: the network.
    """

    def __init__(self, ckpt_dir: str, network: torch.nn.Module) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.network = network

    def attach(self, engine: Any) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Any) -> None:
        """Write ``encoder.pt`` atomically."""
        if rank() != 0:
            return
        model = self.ckpt_dir / "model.pt"
        state = encoder_state_dict(self.network)
        if model.is_file():
            best = torch.load(model, map_location="cpu", weights_only=True)
            state = {key: best[f"encoder.{key}"] for key in state}
        with write_atomically(self.ckpt_dir / "encoder.pt") as file:
            torch.save({key: value.detach().cpu() for key, value in state.items()}, file)

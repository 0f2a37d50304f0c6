"""Training where MONAI's falls short: mixed precision on CPU, gradient clipping, domains, two stages in one run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys

from med3d_ext.handlers.checkpoint import ResumableCheckpoint
from med3d_ext.run.rank import wait_for_all
from med3d_ext.weights.files import SERVER

# MONAI's trainer makes a gradient scaler of its own, which bfloat16 has no use for, and torch warns on a CPU.
warnings.filterwarnings("ignore", message=r".*GradScaler")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device is faster in bfloat16 than in float32; a CPU without its instructions takes 2.5 to 60 times.

    Of Intel's CPUs only those with AMX are: with AVX-512 alone a step took 1.2 to 1.7 times as long, AMD's 0.7 times.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return False
    facts: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch that runs this
    return torch.cpu._is_amx_tile_supported() or "Intel" not in facts.get("cpu_name", "")


class TrainingIteration:
    """``iteration_update`` of MONAI's SupervisedTrainer.

    MONAI's own step autocasts on CUDA alone, so ``amp`` does nothing on a CPU. Here the forward pass is in bfloat16 if
    the device :func:`computes_bfloat16`, the loss always in float32. Further keyword arguments of a batch (``domain``)
    reach the network and the loss. The trainer's ``amp_kwargs``, ``accumulation_steps`` (batches whose gradients are
    summed for one step), ``optim_set_to_none`` and ``compile`` hold, which gets tensors without metadata.

    Args:
        max_gradient_norm: clip the gradient's norm. Defaults to None.
    """

    def __init__(self, max_gradient_norm: float | None = None) -> None:
        self.max_gradient_norm = max_gradient_norm

    def __call__(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        inputs, targets, args, kwargs = batch if len(batch) == 4 else (*batch, (), {})
        if getattr(engine, "compile", False):
            inputs, targets = (each.as_tensor() if isinstance(each, MetaTensor) else each for each in (inputs, targets))
        engine.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets}
        engine.network.train()
        device = torch.device(engine.state.device)
        amp = engine.amp and computes_bfloat16(device)
        options = {"device_type": device.type, "dtype": torch.bfloat16, **engine.amp_kwargs, "enabled": amp}
        with torch.autocast(**options):
            prediction = engine.inferer(inputs, engine.network, *args, **kwargs)
        engine.state.output[CommonKeys.PRED] = prediction
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.output[CommonKeys.LOSS] = engine.loss_function(prediction.float(), targets, **kwargs)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        (engine.state.output[CommonKeys.LOSS] / engine.accumulation_steps).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        position = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        if position % engine.accumulation_steps == 0 or position == engine.state.epoch_length:
            if self.max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_gradient_norm)
            engine.optimizer.step()
            # To None in every bundle, not to zero: momentum and weight decay would move the branches of idle domains.
            engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class FirstStage:
    """A training that comes before another one in one run: once it is finished, a resumed run goes to the next at once.

    A labelling server trains the last stage alone; the first is that of the weights which it serves.

    Args:
        trainer: the first stage's trainer.
        checkpoint: its :class:`~med3d_ext.handlers.checkpoint.ResumableCheckpoint`.
    """

    def __init__(self, trainer: SupervisedTrainer, checkpoint: ResumableCheckpoint) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def run(self) -> None:
        """Train, unless this very training is finished."""
        if os.environ.get(SERVER) is None and not self.checkpoint.is_done(self.trainer):
            self.trainer.run()
            wait_for_all()  # rank 0 may still be writing what the next stage reads


class DomainBatch:
    """``prepare_batch`` for networks with a branch per domain: the batch's ``domain`` goes to the network and the loss.

    Args:
        domains: the network's domains, in its order. An item without a domain (a labelling server sends such items)
            belongs to the first.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = list(domains)

    def __call__(
        self, batchdata: dict[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, torch.Tensor]]:
        image = batchdata[CommonKeys.IMAGE].to(device=device, non_blocking=non_blocking, **kwargs)
        label = batchdata[CommonKeys.LABEL].to(device=device, non_blocking=non_blocking, **kwargs)
        names = batchdata.get("domain", [self.domains[0]] * len(image))
        return image, label, (), {"domain": torch.tensor([self.domains.index(name) for name in names], device=device)}

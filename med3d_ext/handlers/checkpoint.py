"""Checkpoints that continue a killed training exactly and never lose the best model."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.nn.parallel import DataParallel, DistributedDataParallel

from med3d_ext.errors import InputError
from med3d_ext.handlers.values import iteration_loss
from med3d_ext.io.files import write_atomically
from med3d_ext.run.overrides import truth
from med3d_ext.run.rank import rank, wait_for_all

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.pt"
MODEL_NAME = "model.pt"  # the shortest name in the folder: MONAI Label serves that one
PREVIOUS_NAME = "model_previous.pt"


class ResumableCheckpoint:
    """Write what a training needs to continue after each epoch, and continue from it.

    ``training_state.pt`` holds the network, optimizer, scheduler, epoch, best metric and random state;
    ``model.pt`` the flat state dict (CPU) of the best validation so far, or of the latest epoch where nothing
    validates. Each is replaced atomically, the model first: killed between the two, the epoch is repeated and
    writes the same model.

    When training starts with ``resume``, a state with epochs left is restored. Otherwise (no state, a finished one,
    other data, or ``resume=False``) training starts anew and the former model stays as ``model_previous.pt``.
    With :class:`~med3d_ext.handlers.seeding.EpochSeed` the continued run equals an uninterrupted one bit for bit
    on a CPU. All ranks restore, rank 0 writes.

    Args:
        ckpt_dir: folder of the checkpoints, made where missing.
        network: the network in training; wrappers for several processes are looked through.
        optimizer: its optimizer.
        lr_scheduler: its scheduler. Defaults to none.
        evaluator: the engine whose ``state.best_metric`` picks the model. Defaults to none: the latest epoch.
        resume: whether to continue an unfinished training of ``ckpt_dir``. Defaults to True.
        data: what the training reads, as a short text (a folder, a hash): a state of other data is not continued.
            Defaults to none, unchecked.

    Raises:
        InputError: at the start, the state cannot be read or is of another network; later, training diverged.
    """

    def __init__(
        self,
        ckpt_dir: str,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        evaluator: Any = None,
        resume: bool | str = True,
        data: str | None = None,
    ) -> None:
        self.folder = Path(ckpt_dir)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.resume = truth("resume", resume)
        self.data = data

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, wherever in its list of handlers."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check_loss)

    def start(self, engine: Engine) -> None:
        """Continue an unfinished training or begin a new one; then save after each epoch."""
        state = self._read()
        wait_for_all()  # rank 0 must not write before every rank has read
        if self.resume and state is not None and self._unfinished(state, engine):
            self._restore(state, engine)
        elif rank() == 0:
            self._begin(state, engine)
        # Added now, not in `attach`: after the validation and the scheduler, in whatever order they are listed.
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def check_loss(self, engine: Engine) -> None:
        """Stop a training that has diverged.

        Raises:
            InputError: the iteration's loss is not finite.
        """
        loss = iteration_loss(engine)
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}", engine)

    def _diverged(self, fault: str, engine: Engine) -> InputError:
        kept = f"{STATE_NAME} keeps epoch {engine.state.epoch - 1}" if engine.state.epoch > 1 else "nothing was saved"
        return InputError(
            f"training diverged: {fault} in epoch {engine.state.epoch}, iteration {engine.state.iteration} ({kept}); "
            "start again with a lower learning rate and `--resume false`."
        )

    def save(self, engine: Engine) -> None:
        """Write the model, where it is the best, and then the training state.

        Raises:
            InputError: a weight is not finite: the epoch's last step can diverge behind a finite loss.
        """
        model = {key: value.detach().cpu() for key, value in unwrapped(self.network).state_dict().items()}
        if not all(torch.isfinite(value).all() for value in model.values()):
            raise self._diverged("a weight became infinite or NaN", engine)
        if rank() != 0:
            return
        if self._is_best(engine):
            self._write(MODEL_NAME, model)
        self._write(STATE_NAME, self._state(engine, model))

    def _is_best(self, engine: Engine) -> bool:
        if self.evaluator is None:
            return True
        # -1 until the first validation: then the latest epoch is the best that there is.
        return self.evaluator.state.best_metric_epoch in (-1, engine.state.epoch)

    def _state(self, engine: Engine, model: dict[str, torch.Tensor]) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        best = getattr(self.evaluator, "state", None)
        return {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "data": self.data,
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "best_metric": None if best is None else float(best.best_metric),
            "best_metric_epoch": None if best is None else best.best_metric_epoch,
            "rng": torch.get_rng_state(),
        }

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with write_atomically(self.folder / name) as file:
            torch.save(content, file)

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / STATE_NAME
        if not path.is_file():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch makes of a broken file
            if not self.resume:
                return None  # nobody wants it
            raise self._refusal("cannot be read") from error
        if isinstance(state, dict) and {"epoch", "max_epochs", "data"} <= state.keys():
            return state
        if not self.resume:
            return None
        raise self._refusal("is no training state of this package")

    def _refusal(self, fault: str) -> InputError:
        return InputError(
            f"{self.folder / STATE_NAME} {fault}; start anew with `--resume false` or choose another `--ckpt_dir`."
        )

    def _unfinished(self, state: dict[str, Any], engine: Engine) -> bool:
        # Epoch 0 marks a run that was stopped before its first epoch ended: nothing to restore.
        if not 0 < state["epoch"] < min(state["max_epochs"], engine.state.max_epochs):
            return False
        if state["data"] != self.data:
            if rank() == 0:
                logger.warning(f"{STATE_NAME} is of a training on other data ({state['data']}): starting anew")
            return False
        return True

    def _restore(self, state: dict[str, Any], engine: Any) -> None:
        network = unwrapped(self.network)
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        if expected != {key: tuple(value.shape) for key, value in state["model"].items()}:
            raise self._refusal("is of another network")
        network.load_state_dict(state["model"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.lr_scheduler is not None:
                self._restore_scheduler(state["lr_scheduler"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._refusal("is of another optimizer or scheduler") from error
        if state["scaler"] is not None and getattr(engine, "scaler", None) is not None:
            engine.scaler.load_state_dict(state["scaler"])
        if self.evaluator is not None and state["best_metric"] is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        torch.set_rng_state(state["rng"])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * (engine.state.epoch_length or 0) or state["iteration"]
        if rank() == 0:
            logger.info(f"continuing after epoch {state['epoch']} of {engine.state.max_epochs}")

    def _restore_scheduler(self, state: dict[str, Any]) -> None:
        """Continue the schedule; its length is the config's: `--epochs` may shorten a training that is under way."""
        length = getattr(self.lr_scheduler, "T_max", None)
        self.lr_scheduler.load_state_dict(state)
        if length is not None and length != self.lr_scheduler.T_max:
            if rank() == 0:
                logger.info(f"the learning rate now falls within {length} epochs, not {self.lr_scheduler.T_max}")
            self.lr_scheduler.T_max = length

    def _begin(self, state: dict[str, Any] | None, engine: Engine) -> None:
        model = self.folder / MODEL_NAME
        # The mark of a run without an epoch says that the model there has been kept already.
        if model.is_file() and not (state is not None and state["epoch"] == 0):
            with open(model, "rb") as source, write_atomically(self.folder / PREVIOUS_NAME) as target:
                shutil.copyfileobj(source, target)
            logger.info(f"{MODEL_NAME} of the former training is kept as {PREVIOUS_NAME}")
        self._write(STATE_NAME, {"epoch": 0, "max_epochs": engine.state.max_epochs, "data": self.data})


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network itself, out of ``torch.compile`` and the wrappers for several processes or devices."""
    network = getattr(network, "_orig_mod", network)
    return network.module if isinstance(network, DataParallel | DistributedDataParallel) else network

"""Checkpoints that resume a killed training exactly, and only that training, and never lose the best model."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.nn.parallel import DataParallel, DistributedDataParallel

from med3d_ext.data.fingerprint import changed_cases, file_digest
from med3d_ext.errors import InputError
from med3d_ext.handlers.base import Handler, iteration_loss, scalar_metrics
from med3d_ext.io.files import hold, write_atomically
from med3d_ext.run.overrides import differences, training_options, truth
from med3d_ext.run.provenance import versions
from med3d_ext.run.rank import processes, rank, wait_for_all
from med3d_ext.run.start import effective_config
from med3d_ext.weights.files import SERVER, fit

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.pt"
MODEL_NAME = "model.pt"  # the shortest name in the folder: MONAI Label serves that one
PREVIOUS_NAME = "model_previous.pt"
RECORD_NAME = "run.json"
LOCK_NAME = ".training.lock"
LENGTHS = ("T_max", "total_iters", "total_steps", "t_total")  # what schedulers call their length
SOME = 5  # ids and cases that a message names
COMPUTING = ("med3d_ext", "monai", "torch", "numpy")


@dataclass(eq=False)
class ResumableCheckpoint(Handler):
    """Write what a training needs to continue after each epoch, and continue from it.

    ``training_state.pt`` holds the network, optimizer, scheduler, epoch, best metric and random state; ``model.pt``
    the flat state dict (CPU) of the best validation so far, or of the latest epoch if nothing validates. Each is
    replaced atomically, the model first: killed between the two, the epoch is repeated and writes the same model.

    The state also records what the training was asked for: the options of its config (see
    :func:`med3d_ext.run.overrides.training_options`), the content of its data and of the files it began with, and the
    number of processes. With ``resume``, an unfinished training is resumed if all of that is the same, and refused
    otherwise. A finished one with more epochs than before is lengthened, with the same number refused, and with other
    options or data followed by a new training, as with ``resume=False``; the former model is then kept as
    ``model_previous.pt``. In a labelling server nothing is refused: a new training starts.

    With :class:`~med3d_ext.handlers.seeding.EpochSeed` the resumed run equals an uninterrupted one bit for bit
    on a CPU. All ranks restore, rank 0 writes.

    Args:
        ckpt_dir: folder of the checkpoints, made if missing.
        network: the network in training; wrappers for several processes are looked through.
        optimizer: its optimizer.
        lr_scheduler: its scheduler. Defaults to none.
        evaluator: the engine whose ``state.best_metric`` picks the model. Defaults to none: the latest epoch.
        resume: whether to resume an unfinished training of ``ckpt_dir``. Defaults to True.
        data: the cases that the training reads, as :meth:`med3d_ext.data.PreparedData.digests` gives them, or a text
            that changes with them. Defaults to none, unchecked.
        files: files whose content the training depends on, by the option that names them; None for no file.
        output_dir: folder of the run's record, which says whether a training whose epochs are done was completed.
        options: the options to compare, as text by id. Defaults to those of the command's config.

    Raises:
        InputError: at the start, the state cannot be read or is of another training, or another one is running in a
            folder; later, training diverged.
    """

    every_rank = after_others = True

    ckpt_dir: str
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any = None
    evaluator: Any = None
    resume: bool | str = True
    data: Sequence[Sequence[str]] | str | None = None
    files: Mapping[str, str | os.PathLike | None] | None = None
    output_dir: str | None = None
    options: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.folder = Path(self.ckpt_dir)
        self.resume = truth("resume", self.resume)
        self.record = None if self.output_dir is None else Path(self.output_dir) / RECORD_NAME

    @cached_property
    def asked(self) -> dict[str, Any]:
        """All that must be the same when the training resumes, and the versions, which should be."""
        options = training_options(effective_config()) if self.options is None else dict(self.options)
        digests = {name: None if path is None else file_digest(path) for name, path in (self.files or {}).items()}
        found = {name: version for name, version in versions().items() if name in COMPUTING}
        return {"options": options, "files": digests, "processes": processes(), "versions": found, "data": self.data}

    def started(self, engine: Engine) -> None:
        if rank() == 0:
            self._keep_others_out(engine)
        state = self._read()
        wait_for_all()  # rank 0 must not write before every rank has read
        earlier = state if self.resume and state is not None and self._continues(state, engine) else None
        length = int(engine.state.max_epochs or 0)
        lengths = [*(n for n in (earlier or {}).get("lengths", []) if n != length), length]
        engine.state.lengths = lengths  # type: ignore[attr-defined]  # for the records
        if earlier is not None:
            self._restore(earlier, engine)
        elif rank() == 0:
            # The mark of a run without an epoch says that the model there has been kept already.
            model = self.folder / MODEL_NAME
            if model.is_file() and not (state is not None and state["epoch"] == 0):
                with open(model, "rb") as source, write_atomically(self.folder / PREVIOUS_NAME) as target:
                    shutil.copyfileobj(source, target)
                logger.info(f"{MODEL_NAME} of the former training is kept as {PREVIOUS_NAME}")
            self._write(STATE_NAME, {"epoch": 0, "max_epochs": engine.state.max_epochs, **self.asked})

    def is_done(self, engine: Engine) -> bool:
        """Whether the folder holds this very training, finished, and none is to begin anew."""
        state = self._read() if self.resume else None
        if state is None or state["epoch"] == 0:
            return False
        length = state["epoch"] == state["max_epochs"] == engine.state.max_epochs
        return length and not self._is_pending() and not self._other_than(state)

    def _keep_others_out(self, engine: Engine) -> None:
        """Hold the folders that are written until the training is completed or its process ends."""
        folders = {self.folder.resolve(), *([] if self.record is None else [self.record.parent.resolve()])}
        with ExitStack() as stack:
            for folder in sorted(folders):
                refusal = f"another training is running in '{folder}'; wait until it has ended, or choose another "
                stack.enter_context(hold(folder / LOCK_NAME, refusal + "--ckpt_dir and --output_dir."))
            held = stack.pop_all()
        # Added now, as the last handler: the records are written before the folders are let go.
        engine.add_event_handler(Events.COMPLETED, lambda: held.close())

    def iteration_completed(self, engine: Engine) -> None:
        loss = iteration_loss(engine)
        if loss is not None and not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}", engine)

    def _diverged(self, fault: str, engine: Engine) -> InputError:
        kept = f"{STATE_NAME} keeps epoch {engine.state.epoch - 1}" if engine.state.epoch > 1 else "nothing was saved"
        return InputError(
            f"training diverged: {fault} in epoch {engine.state.epoch}, iteration {engine.state.iteration} ({kept}); "
            "start again with a lower learning rate and `--resume false`."
        )

    def epoch_completed(self, engine: Engine) -> None:
        self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the model, if it is the best, and then the training state."""
        model = {key: value.detach().cpu() for key, value in unwrapped(self.network).state_dict().items()}
        if not all(torch.isfinite(value).all() for value in model.values()):
            # The epoch's last step can diverge behind a finite loss.
            raise self._diverged("a weight became infinite or NaN", engine)
        if rank() != 0:
            return
        best = getattr(self.evaluator, "state", None)
        # -1 until the first validation: then the latest epoch is the best that there is.
        if best is None or best.best_metric_epoch in (-1, engine.state.epoch):
            self._write(MODEL_NAME, model)
        scaler = getattr(engine, "scaler", None)
        state = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "lengths": engine.state.lengths,  # type: ignore[attr-defined]
            **self.asked,
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "best_metric": None if best is None else float(best.best_metric),
            "best_metric_epoch": None if best is None else best.best_metric_epoch,
            "metrics": {} if best is None else scalar_metrics(best.metrics),
            "rng": torch.get_rng_state(),
        }
        self._write(STATE_NAME, state)

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
        known = isinstance(state, dict) and {"epoch", "max_epochs", "data"} <= state.keys()
        if known and "options" in state:
            return dict(state)
        if not self.resume or (known and state["epoch"] == 0):
            return None
        fault = "was written by an earlier version, which recorded no options" if known else "is not a training state"
        raise self._refusal(fault)

    def _refusal(self, fault: str) -> InputError:
        ways = "start over with `--resume false` or choose another `--ckpt_dir`."
        return InputError(f"{self.folder / STATE_NAME} {fault}; {ways}")

    def _continues(self, state: dict[str, Any], engine: Engine) -> bool:
        """Whether the state is restored; False if a new training starts."""
        done, wanted = state["epoch"], engine.state.max_epochs
        if done == 0:  # the mark of a run that was stopped before its first epoch ended: nothing to restore
            return False
        faults = self._other_than(state)
        is_finished = done >= state["max_epochs"] and not self._is_pending()
        if os.environ.get(SERVER) is not None and (faults or wanted <= done):
            return False  # its users cannot type an option; each of their trainings begins from what is served
        if [each["options"].get("dataset_dir") for each in (state, self.asked)] == ["a folder", "null"]:
            raise self._refusal("is of a training on a data set, and no --dataset_dir is given: give it")
        if faults and not is_finished:
            raise self._refusal(f"is of another training: {faults}")
        if faults:
            _say(f"the finished training in {self.folder} is a different one, starting over: {faults}")
            return False
        if wanted < done or (wanted == done and is_finished):
            raise InputError(
                f"{self.folder} holds {'a finished' if is_finished else 'an unfinished'} training of {done} epochs "
                f"with these options; lengthen it with `--epochs` above {done}, or start over with `--resume false`."
            )
        if changed := differences(state["versions"], self.asked["versions"]):
            _say(f"the training began with other versions ({', '.join(changed)}): digits may differ")
        return True

    def _other_than(self, state: dict[str, Any]) -> str:
        """In which options and cases a state is of another training; empty if it is of this one."""
        now, then = self.asked["options"], state["options"]
        if not now or not then:
            if now or then:
                _say("only one of both starts was a monai.bundle command: their options are not compared")
            now = then = {}
        before = {**then, "processes": str(state["processes"])}
        after = {**now, "processes": str(self.asked["processes"])}
        for name, digest in self.asked["files"].items():
            old = state["files"].get(name)
            if old == digest:  # the same content, wherever it is
                before.pop(name, None), after.pop(name, None)
            elif before.get(name) == after.get(name):
                before[name], after[name] = (f"content {str(each)[:12]}" for each in (old, digest))
        faults = [_some(differences(before, after), "options")]
        if isinstance(self.data, str) or isinstance(state["data"], str):
            faults += ["the data"] if self.data != state["data"] else []
        else:
            cases = changed_cases(state["data"] or [], self.data or [])
            faults += [f"changed cases: {_some(cases, 'cases')}"] if cases else []
        return "; ".join(fault for fault in faults if fault)

    def _is_pending(self) -> bool:
        """Whether the run whose epochs are done was stopped before it was completed."""
        try:
            status = "" if self.record is None else json.loads(self.record.read_text(encoding="utf-8"))["status"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return status not in ("", "completed")

    def _restore(self, state: dict[str, Any], engine: Any) -> None:
        network = unwrapped(self.network)
        if faults := fit(state["model"], network.state_dict()):
            raise self._refusal(f"is of another network: it {faults[0]}")
        network.load_state_dict(state["model"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.lr_scheduler is not None:
                self._restore_scheduler(state["lr_scheduler"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._refusal("is of another optimizer or scheduler") from error
        if state["scaler"] and getattr(engine, "scaler", None) is not None:
            engine.scaler.load_state_dict(state["scaler"])
        if self.evaluator is not None and state["best_metric"] is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
            self.evaluator.state.metrics.update(state["metrics"])
        torch.set_rng_state(state["rng"])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * (engine.state.epoch_length or 0) or state["iteration"]
        _say(f"resuming after epoch {state['epoch']} of {engine.state.max_epochs}", logging.INFO)

    def _restore_scheduler(self, state: dict[str, Any]) -> None:
        """Resume the schedule; its length is the config's: `--epochs` may shorten or lengthen a training."""
        scheduler = self.lr_scheduler
        lengths = {name: value for name, value in vars(scheduler).items() if name in LENGTHS}
        scheduler.load_state_dict(state)
        for name, length in lengths.items():
            former = getattr(scheduler, name)
            if length == former:
                continue
            setattr(scheduler, name, length)
            _say(f"the learning rate now falls within {length} epochs, not {former}", logging.INFO)
            is_function = isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
            name_of_rates = "get_lr" if is_function else "_get_closed_form_lr"
            if scheduler.last_epoch >= former and hasattr(scheduler, name_of_rates):
                # At the end of a schedule the rate is 0, and the recursion would leave it there.
                scheduler._last_lr = getattr(scheduler, name_of_rates)()
                for group, rate in zip(self.optimizer.param_groups, scheduler._last_lr):
                    group["lr"] = rate


def _say(message: str, level: int = logging.WARNING) -> None:
    if rank() == 0:
        logger.log(level, message)


def _some(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - SOME} more {what}" if len(names) > SOME else ""
    return ", ".join(names[:SOME]) + more


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network itself, out of ``torch.compile`` and the wrappers for several processes or devices."""
    network = getattr(network, "_orig_mod", network)
    return network.module if isinstance(network, DataParallel | DistributedDataParallel) else network

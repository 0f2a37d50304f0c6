"""What a training starts from and an inference takes: what a config's ``init`` means, and a bundle's own weights."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import med3d_ext
from med3d_ext.errors import InputError
from med3d_ext.io.files import read_json, write_atomically
from med3d_ext.run.overrides import truth
from med3d_ext.run.rank import rank
from med3d_ext.weights.files import download_weights, fit, not_finite, read_checkpoint, weights_to_continue, write_state
from med3d_ext.weights.loading import adapt_stem, describe_weights, encoder_of, find_encoder, load_encoder, read_weights

__all__ = [
    "InitialWeights",
    "adapt_stem",
    "describe_weights",
    "download_weights",
    "encoder_of",
    "find_weights",
    "initial_weights_path",
    "load_encoder",
    "read_weights",
    "write_state",
]

logger = logging.getLogger("med3d_ext.weights")

PRETRAINING = "pretrain_3dseg8"


def find_weights(
    bundle_root: str | os.PathLike, ckpt_dir: str | os.PathLike | None = None, is_used: bool = True
) -> Path:
    """The weights that a bundle's inference takes: those of its last training, else the released ones.

    Args:
        bundle_root: the bundle's folder.
        ckpt_dir: where its training writes. Defaults to None: ``models`` in the bundle.
        is_used: whether they will be loaded and must be sound. Defaults to True.

    Returns:
        ``models/model.pt``, else ``weights/model.pt``; the log says which.

    Raises:
        InputError: there is neither, or the file is damaged, holds code or values that are not finite.
    """
    trained = Path(ckpt_dir or Path(bundle_root) / "models") / "model.pt"
    released = Path(bundle_root) / "weights" / "model.pt"
    came = "trained here" if trained.with_name("training_state.pt").is_file() else "they came with the bundle"
    for path, kind in ((trained, came), (released, "released")):
        if path.is_file():
            if is_used and (broken := not_finite(read_checkpoint(path)[0])):
                raise InputError(f"'{path}' holds values that are not finite in {broken[0]}; train or fetch it again.")
            logger.info(f"Weights: '{path}' ({kind}).")
            return path
    raise InputError(f"There is neither '{trained}' nor '{released}'; train the bundle or fetch its released weights.")


class InitialWeights:
    """What a training starts from, and the paper's learning rate for it (section 4.2).

    The weights are loaded when the component is built, and the report goes to the log. :meth:`write_report` is called
    when the training begins: one that is refused leaves the record of the one before. In a labelling server a training
    continues from the weights that are served, whole; see :func:`~med3d_ext.weights.files.weights_to_continue`.

    Args:
        network: an encoder or a network with one, see :func:`encoder_of`; from scratch any module.
        init: `scratch`; `med3d`, the released encoder; `kinetics`, which has no released file and is refused with a
            sentence; or the path of a weights file.
        bundle_root: the bundle's folder; the released encoder is looked for next to it, then in the checkout that this
            package is in. Defaults to None.
        report_path: where :meth:`write_report` writes the report as JSON. Defaults to None, nowhere.
        minimum_share: see :func:`load_encoder`. Defaults to 0.95.
        with_head: load all that a file holds of this very network, its decoder and head, too, as for more training of
            one task. Defaults to False: the encoder alone.
        learning_rate: wins over the paper's. Defaults to None.
        scratch_learning_rate: for `scratch`. Defaults to the paper's 0.01.
        pretrained_learning_rate: for all else. Defaults to the paper's 0.001.

    Attributes:
        network: the network, with the weights in it.
        path: the weights' file, None from scratch.
        report: the load report, None from scratch.
        learning_rate: the one to train with.
        seen: ``initial_weights``, the cases that they have seen by the card next to them; nothing without a card. Of
            weights that a labelling server serves, the card's own lists.

    Raises:
        InputError: ``init`` names no weights, or they do not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        init: str,
        bundle_root: str | os.PathLike | None = None,
        report_path: str | os.PathLike | None = None,
        minimum_share: float = 0.95,
        with_head: bool | str = False,
        learning_rate: float | None = None,
        scratch_learning_rate: float = 0.01,
        pretrained_learning_rate: float = 0.001,
    ) -> None:
        served = weights_to_continue(bundle_root)
        self.network = network
        self.path = path = served or initial_weights_path(str(init), bundle_root)
        self.report_path = report_path
        self.report = None
        self.seen: dict[str, list[dict[str, Any]]] = {}
        with_head = truth("init_head", with_head)
        if path is None and with_head:
            raise InputError("init_head takes the head of a weights file, and init is scratch; give --init PATH.")
        if path is not None:
            card = path.with_name("card.json")
            if card.is_file():
                splits = read_json(card).get("cases", {})
                cases = {case.get("sha256", case["image"]): case for split in splits.values() for case in split}
                self.seen = splits if served else {"initial_weights": list(cases.values())}
            if served or with_head:
                load_network(network, path)
            else:
                self.report = load_encoder(network, path, minimum_share)
        self.start = f"those of '{path}', including its head" if path else "from scratch"
        usual = pretrained_learning_rate if path else scratch_learning_rate
        self.learning_rate = usual if learning_rate is None else learning_rate
        if rank() == 0:
            logger.info(f"Initial weights: {self.report.table() if self.report else self.start}")

    def on(
        self, device: str | torch.device, sync_batchnorm: bool = False, channels_last: bool | None = None
    ) -> nn.Module:
        """The network on a device.

        Args:
            device: such as `cuda:0`.
            sync_batchnorm: share the statistics of BatchNorm among the processes of a training; on GPUs alone.
            channels_last: keep the weights as cuDNN's fastest kernels want them (``torch.channels_last_3d``). Defaults
                to None: on a GPU.
        """
        is_gpu = torch.device(device).type == "cuda"
        if sync_batchnorm and not is_gpu:
            raise InputError("sync_batchnorm needs GPUs; leave it out: each process then has statistics of its own.")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network) if sync_batchnorm else self.network
        network = network.to(device)
        if is_gpu if channels_last is None else channels_last:
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return network

    def write_report(self) -> None:
        """Write what the training starts from: the load report, or for whole networks and from scratch a sentence."""
        if self.report_path is None:
            return
        file = None if self.path is None else str(self.path)
        text = self.report.to_json() if self.report else json.dumps({"file": file, "start": self.start}, indent=2)
        with write_atomically(Path(self.report_path), "w") as target:
            target.write(text)

    def parameter_groups(
        self, learning_rate: float | None = None, head_lr_multiplier: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer: the encoder at ``learning_rate``, all else at ``head_lr_multiplier`` times it.

        A group's learning rate wins over the optimizer's own ``lr``: pass that one, as ``@optimizer::lr``. Outside the
        encoder, parameters that require no gradient (a frozen first stage) are left out.

        Args:
            learning_rate: Defaults to None, that of ``init``.
            head_lr_multiplier: Defaults to 1.
        """
        rate = self.learning_rate if learning_rate is None else learning_rate
        if rank() == 0:
            logger.info(f"Learning rate {rate:g}.")
        found = find_encoder(self.network)
        encoder = [] if found is None else list(found.parameters())
        inside = set(map(id, encoder))
        rest = [each for each in self.network.parameters() if id(each) not in inside and each.requires_grad]
        groups = [{"params": encoder, "lr": rate}, {"params": rest, "lr": rate * head_lr_multiplier}]
        return [group for group in groups if group["params"]]


def load_network(network: nn.Module, path: str | os.PathLike) -> None:
    """Load a bundle's own weights, encoder and head; for one stage of a cascade its part of the cascade's file.

    Raises:
        InputError: they are of another network.
    """
    state, _ = read_checkpoint(path)
    if any("members." in name for name in state):
        raise InputError(f"'{path}' is the mean of several networks; give --init the model.pt of one of its folds.")
    faults = []
    for prefix in ("", "coarse.", "fine."):
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        found = fit(part, network.state_dict())
        if not found:
            network.load_state_dict(part)
            return
        faults += found
    raise InputError(
        f"'{path}' is of another network: it {faults[0]}; set network_name and its other options in "
        "configs/train.json as they were in its training."
    )


def initial_weights_path(init: str, bundle_root: str | os.PathLike | None = None) -> Path | None:
    """The weights file that a config's ``init`` means, None from scratch; an InputError if it names no weights."""
    if init == "scratch":
        return None
    if init == "kinetics":
        raise InputError("init 'kinetics' needs a file of 3D-ResNets-PyTorch; give its path: --init PATH.")
    if init != "med3d":
        path = Path(init).expanduser()
        if not path.is_file():
            choices = "scratch, med3d, kinetics or the path of a weights file"
            raise InputError(f"init must be {choices}, and '{init}' is not a file.")
        return path
    bundle = Path(bundle_root or ".").resolve()
    pretraining = bundle.parent / PRETRAINING
    checkout = Path(med3d_ext.__file__).resolve().parents[1] / "bundles" / PRETRAINING
    if not pretraining.is_dir() and checkout.is_dir():
        pretraining = checkout  # a user's own bundle may be anywhere
    path = pretraining / "weights" / "model.pt"
    if path.is_file():
        return path
    hint = "in a packed bundle use --init PATH"
    for other, whose in ((bundle, "those of this bundle"), (pretraining, "those pretrained here")):
        if (other / "models" / "model.pt").is_file():
            hint = f"--init '{other / 'models' / 'model.pt'}' takes {whose}"
    raise InputError(f"init 'med3d' finds no released encoder at '{path}'; {hint}, or use --init scratch.")

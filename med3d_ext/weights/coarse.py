"""A trained first stage put into the two-stage network, with what must travel next to the weights (section 3.3)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor

from med3d_ext.errors import InputError
from med3d_ext.io.facts import weights_domain
from med3d_ext.io.files import read_json
from med3d_ext.networks.med3d import TwoStageSegmenter
from med3d_ext.run.rank import rank
from med3d_ext.weights.files import fit, read_checkpoint, weights_to_continue
from med3d_ext.weights.loading import describe_weights, encoder_of

logger = logging.getLogger("med3d_ext.weights")


class CoarseStage:
    """Load a coarse network into ``network.coarse`` and freeze it: no gradient, no optimizer, no moving statistics.

    The coarse network's grid is a fact that inference needs, and its cases were seen by the cascade: both go next to
    the new weights. Its intensity window must be the fine network's, because the cascade windows an image once.

    Args:
        network: the two-stage network.
        weights: a weights file of the coarse network or of a whole cascade; the name of a bundle next to this one,
            whose trained, else released weights are taken if they fit; or None for no coarse stage. In a labelling
            server the coarse network is that of the weights which are served.
        hu_window: the fine network's intensity window (HU); None if both stages normalize alike by their making.
            Defaults to None.
        bundle_root: this bundle's folder. Defaults to the working directory.
        test_items: items that nothing may be trained on; the log says if the coarse network has seen some.
        trained: the file that this run's own first stage writes, in place of ``weights``. Defaults to None.

    Attributes:
        network: the two-stage network, the coarse weights in it.
        facts: ``coarse_size``, the coarse network's grid, None without one.
        seen: the cases that the coarse network has seen, as ``card.json`` lists them.

    Raises:
        InputError: the file is missing, is of another network, or was trained with another window.
    """

    def __init__(
        self,
        network: TwoStageSegmenter,
        weights: str | os.PathLike | None = None,
        hu_window: Sequence[float] | None = None,
        bundle_root: str | os.PathLike = ".",
        test_items: Sequence[Mapping[str, Any]] = (),
        trained: str | os.PathLike | None = None,
    ) -> None:
        self.network = network
        self.facts: dict[str, Any] = {"coarse_size": None}
        self.seen: dict[str, list[dict[str, Any]]] = {}
        self.tensors: dict[str, Tensor] = {}
        network.coarse.requires_grad_(False)
        warning = None
        path = weights_to_continue(bundle_root)
        is_asked_for = False
        if path is None and trained is not None:
            path, is_asked_for = Path(trained), True
            if not path.is_file():
                path, warning = None, f"there is no coarse stage yet: '{trained}' is missing; a run trains it first"
        elif path is None and weights is None:
            warning = _no_coarse_stage("coarse_weights is null.")
        elif path is None:
            path = Path(str(weights)).expanduser()
            is_asked_for = path.is_file()
            if not is_asked_for and (path.name != str(path) or path.suffix):
                raise InputError(f"coarse_weights must be a file, a bundle's name or null; '{weights}' is not a file.")
            if not is_asked_for:
                bundle = Path(bundle_root).resolve().parent / path
                found = (bundle / "models" / "model.pt", bundle / "weights" / "model.pt")
                path = next((each for each in found if each.is_file()), None)
                warning = _no_coarse_stage(f"'{bundle}' holds neither models/model.pt nor weights/model.pt.")
        if path is not None:
            try:
                warning = self._load(path, hu_window, test_items)
            except InputError as error:
                if is_asked_for:
                    raise
                warning = _no_coarse_stage(str(error))
        if warning and rank() == 0:
            logger.warning(warning)

    def _load(self, path: Path, hu_window: Sequence[float] | None, test_items: Sequence[Mapping]) -> str | None:
        """Put the weights in; a warning, if there is one."""
        found = read_coarse(path, self.network.coarse.state_dict(), hu_window)
        stride = encoder_of(self.network.coarse).output_stride
        if found.facts["coarse_output_stride"] != stride:
            raise InputError(
                f"'{path}' was trained at output stride {found.facts['coarse_output_stride']}, the coarse network has "
                f"{stride}; set --coarse_output_stride."
            )
        self.network.coarse.load_state_dict(found.tensors)
        self.tensors, self.facts, self.seen = found
        if rank() == 0:
            count = len(found.seen.get("coarse_training", []))
            logger.info(f"Coarse stage: '{path}', grid {self.facts['coarse_size']}, trained on {count} cases.")
        hashes = {case.get("sha256") for cases in found.seen.values() for case in cases}
        count = sum(item.get("sha256") in hashes for item in test_items)
        return f"'{path}' has seen {count} of the {len(test_items)} test cases: figures flatter it." if count else None


def _no_coarse_stage(reason: str) -> str:
    return (
        f"NO COARSE STAGE: {reason} The weights of this training will hold none, and inference gives the whole volume "
        "to the fine network. Train lits_coarse on the same data first, or give --coarse_weights PATH."
    )


class CoarseRestart:
    """Puts the coarse weights in again after a training was resumed, so that they fit the facts written next to them.

    List it after the handler that restores the training.

    Args:
        stage: the run's coarse stage.
    """

    def __init__(self, stage: CoarseStage) -> None:
        self.stage = stage

    def attach(self, engine: Engine) -> None:
        """Act when ``engine``, the trainer, starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if self.stage.tensors:
            self.stage.network.coarse.load_state_dict(self.stage.tensors)


class CoarseWeights(NamedTuple):
    """A coarse network's state dict, its ``coarse_size`` and ``coarse_output_stride``, and its cases as in a card."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    seen: dict[str, list[dict[str, Any]]]


def read_coarse(
    path: str | os.PathLike, expected: Mapping[str, Tensor], hu_window: Sequence[float] | None = None
) -> CoarseWeights:
    """Read the coarse network from a file of its own or of a whole cascade, with ``facts.json`` next to it.

    Raises:
        InputError: it does not fit the state dict ``expected``, is of no coarse network, or was trained with another
            window (HU) than ``hu_window``.
    """
    domain = weights_domain(path)
    window = [float(limit) for limit in domain.get("hu_window") or []]
    if hu_window is not None and (len(window) != 2 or not np.allclose(window, hu_window, atol=0.01)):
        raise InputError(
            f"'{path}' was trained with the window {window} HU, the fine network has {list(hu_window)}; give "
            f'--hu_window "{window}" or train the coarse network on the same data.'
        )
    state, _ = read_checkpoint(path)
    inside = {name.removeprefix("coarse."): each for name, each in state.items() if name.startswith("coarse.")}
    size = domain.get("coarse_size") if inside else domain.get("spatial_size")
    if size is None:
        raise InputError(f"'{path}' holds no trained coarse network; give the weights of lits_coarse.")
    tensors = inside or state
    if faults := fit(tensors, expected):
        raise InputError(
            f"'{path}' ({describe_weights(tensors)}) does not fit the coarse network: it {faults[0]}; set "
            "--coarse_network_name or give other weights."
        )
    card = Path(path).with_name("card.json")
    cases = read_json(card).get("cases", {}) if card.is_file() else {}
    if inside:  # of a cascade, what its coarse network has seen
        cases = {name.removeprefix("coarse_"): each for name, each in cases.items() if name.startswith("coarse_")}
    stride = domain.get("coarse_output_stride" if inside else "output_stride", 8)
    facts = {"coarse_size": size, "coarse_output_stride": stride}
    return CoarseWeights(tensors, facts, {f"coarse_{name}": cases[name] for name in cases})

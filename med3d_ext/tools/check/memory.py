"""How much memory a network takes, measured without any: on torch's meta device, where tensors have shapes alone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live at the same time while it is entered.

    Attributes:
        peak: the most bytes so far, in tensors that operations made (views and tensors from before do not count).
    """

    def __init__(self, before: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._alive:
            return
        self._alive.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def state_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def parameter_bytes(network: nn.Module) -> int:
    """Bytes of the parameters: the size of one set of gradients or of one of an optimizer's moments."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())


def inference_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Most bytes that one forward pass keeps besides the network.

    Args:
        network: on the meta device.
        shape: of the input, N x C x D x H x W.
    """
    image = torch.zeros(*shape, device="meta")
    with PeakBytes(list(network.state_dict().values())) as counter, torch.no_grad():
        network.eval()(image)
    return counter.peak + image.numel() * image.element_size()


def training_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Most bytes that forward pass, cross-entropy and backward pass keep besides the network, gradients included.

    Args:
        network: on the meta device.
        shape: of the input, N x C x D x H x W.
    """
    image = torch.zeros(*shape, device="meta")
    with PeakBytes(list(network.state_dict().values())) as counter:
        logits = network.train()(image)
        label = torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.long, device="meta")
        F.cross_entropy(logits, label).backward()
    return counter.peak + image.numel() * image.element_size()

"""The loss of a network with one branch per domain (section 3.2): any loss, on each sample's own channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn

__all__ = ["MultiHeadLoss"]


class MultiHeadLoss(nn.Module):
    """Applies one loss to the first channels of each sample, as many as its domain has classes.

    The samples of a domain are computed in one call of ``loss``; the result is the mean over the domains present,
    weighted by their samples. With a single domain it is exactly ``loss``. Reductions over voxels of several samples at
    once (a mean, as in cross-entropy, or a Dice with ``batch=True``) see one domain at a time.

    ``per_domain`` holds after each call the detached loss of each domain present, by index, for logging.

    Args:
        loss: takes logits N x C x D x H x W and integer labels, returns a scalar. MONAI's losses get the labels with
            their channel (build them with ``to_onehot_y=True, softmax=True``), ``torch.nn.CrossEntropyLoss`` and
            ``torch.nn.NLLLoss`` without it.
        num_classes: classes of each domain, background counted, in the order of the network's domains: a list, or the
            network's own dictionary.

    Raises:
        ValueError: ``num_classes`` is empty.
    """

    def __init__(self, loss: nn.Module, num_classes: Sequence[int] | Mapping[str, int]) -> None:
        super().__init__()
        self.loss = loss
        self.num_classes = list(num_classes.values() if isinstance(num_classes, Mapping) else num_classes)
        if not self.num_classes:
            raise ValueError("num_classes must hold at least one domain, got none.")
        self.per_domain: dict[int, Tensor] = {}

    def forward(
        self, logits: Tensor, target: Tensor | tuple[Tensor, Tensor], domain: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Mean loss over the samples.

        Args:
            logits: N x Cmax x D x H x W, from :class:`~med3d_ext.networks.med3d.Med3DNet`.
            target: integer labels N x 1 x D x H x W, or the pair ``(target, domain)`` for a trainer that calls
                ``loss(pred, targets)``.
            domain: index of each sample's domain, N integers. Defaults to domain 0 for all.

        Raises:
            ValueError: shapes or indices do not fit, or a label lies outside its domain's classes.
        """
        labels, domain = target if isinstance(target, (tuple, list)) else (target, domain)
        # Plain tensors: selecting samples of a MetaTensor would drag the metadata of each along.
        logits, labels = convert_to_tensor(logits, track_meta=False), convert_to_tensor(labels, track_meta=False)
        samples = logits.shape[0]
        if labels.shape != (samples, 1, *logits.shape[2:]):
            raise ValueError(
                "target must be N x 1 x D x H x W on the grid of logits, "
                f"got {tuple(labels.shape)} for {tuple(logits.shape)}."
            )
        indices = [0] * samples if domain is None else torch.as_tensor(domain).flatten().tolist()
        if len(indices) != samples or not set(indices) <= set(range(len(self.num_classes))):
            raise ValueError(f"domain must be {samples} indices from 0 to {len(self.num_classes) - 1}, got {indices}.")
        self.per_domain = {}
        total = logits.new_zeros(())
        for index in sorted(set(indices)):
            rows = torch.tensor([row for row, own in enumerate(indices) if own == index], device=logits.device)
            value = self._one_domain(index, logits.index_select(0, rows), labels.index_select(0, rows))
            self.per_domain[index] = value.detach()
            total = total + value * (len(rows) / samples)
        return total

    def _one_domain(self, index: int, logits: Tensor, labels: Tensor) -> Tensor:
        classes, without_channel = self.num_classes[index], isinstance(self.loss, (nn.CrossEntropyLoss, nn.NLLLoss))
        # On a GPU the check would wait for the device; there a foreign label stops in the loss's own kernels.
        if not labels.is_cuda:
            known = labels[labels != self.loss.ignore_index] if without_channel else labels
            if known.numel() and (known.max() >= classes or known.min() < 0):
                raise ValueError(
                    f"target must hold labels from 0 to {classes - 1} in domain {index}, "
                    f"got {int(known.min())} to {int(known.max())}."
                )
        return self.loss(logits[:, :classes], labels[:, 0].long() if without_channel else labels)

"""The networks of Med3D: the shared encoder with one branch per domain, and what transfer makes of it (section 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from med3d_ext.errors import InputError
from med3d_ext.networks.resnet import ResNetEncoder

PADDING_LOGIT = -1e4
"""What fills the channels that a sample's domain lacks: finite in half precision, and nothing after a softmax."""


class SegmentationNetwork(nn.Module):
    """Encoder, decoder and head: logits on the input grid (section 3.3).

    The logits of a coarser grid are up-sampled trilinearly. A decoder that returns to the input's resolution gives
    ``ceil(n / stride) * stride`` voxels an axis, and what an axis has too many at its far end is cut off.

    Args:
        encoder: returns a list of features, fine to coarse, and has ``channels``, theirs.
        decoder: takes the last feature and has ``out_channels``. Defaults to None: the head takes the feature itself.
        num_classes: channels of the logits, background counted. Defaults to 2.
        head: makes the logits of the decoder's features. Defaults to None, a 1x1x1 convolution to ``num_classes``.
        dropout: share of channels dropped before the head in training. Defaults to 0.
        skips: takes the decoder's features, dropped out, and the encoder's, and has ``out_channels``; see
            :class:`~med3d_ext.networks.SkipConnections`. Defaults to None, the paper's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module | None = None,
        num_classes: int = 2,
        head: nn.Module | None = None,
        dropout: float = 0.0,
        skips: nn.Module | None = None,
    ) -> None:
        super().__init__()
        last = skips or decoder
        channels: Any = encoder.channels[-1] if last is None else last.out_channels  # type: ignore[index]
        self.encoder = encoder
        self.decoder = nn.Identity() if decoder is None else decoder
        self.dropout = nn.Dropout3d(dropout)
        self.skips = skips
        self.head = nn.Conv3d(channels, num_classes, 1) if head is None else head

    def forward(self, x: Tensor) -> Tensor:
        """Logits N x num_classes x D x H x W of ``x``: N x in_channels x D x H x W."""
        features = self.encoder(x)
        decoded = self.dropout(self.decoder(features[-1]))
        if self.skips is not None:
            decoded = self.skips(decoded, features)
        logits = self.head(decoded)
        if logits.shape[2] >= x.shape[2] and logits.shape[3] >= x.shape[3] and logits.shape[4] >= x.shape[4]:
            return logits[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]
        return _resize(logits, x)


class Segmenter(SegmentationNetwork):
    """Encoder, 1x1x1 convolution, trilinear up-sampling to the input grid (section 3.3, the LiTS coarse network).

    Args:
        network_name: depth of the encoder; it and the other arguments are those of
            :class:`~med3d_ext.networks.ResNetEncoder`. Defaults to `resnet10`; the paper's is `resnet152`.
        num_classes: channels of the logits, background counted. Defaults to 2.
    """

    def __init__(
        self,
        network_name: str = "resnet10",
        in_channels: int = 1,
        num_classes: int = 2,
        output_stride: int = 8,
        shortcut: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        encoder = ResNetEncoder(network_name, in_channels, output_stride, shortcut, checkpointing)
        super().__init__(encoder, num_classes=num_classes)


class TwoStageSegmenter(nn.Module):
    """A coarse and a fine network in one: ``coarse.*`` and ``fine.*`` in the state dict (section 3.3).

    As a network it is the fine one, so training, tracing and verification see an ordinary segmenter and the coarse
    stage gets no gradient. :class:`~med3d_ext.inferers.CascadeInferer` runs both.

    Args:
        coarse: finds the organ in the whole, resized volume; one tensor of logits.
        fine: segments the region of interest; one tensor of logits.
    """

    def __init__(self, coarse: nn.Module, fine: nn.Module) -> None:
        super().__init__()
        self.coarse = coarse
        self.fine = fine

    def forward(self, x: Tensor) -> Tensor:
        """The fine network's logits of ``x``."""
        return self.fine(x)


class MeanOfNetworks(nn.Module):
    """Several networks of one kind as one: the mean of their logits, as of the models of a cross-validation.

    Args:
        members: the networks, ``members.0.*`` and on in the state dict.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the members' logits of ``x``, N x num_classes x D x H x W."""
        total = torch.zeros(1, device=x.device)
        for member in self.members:
            total = total + member(x)
        return total / len(self.members)


def mean_of(network: nn.Module, count: int = 1) -> nn.Module:
    """A network for the weights of ``count`` networks of its kind, each stage of a cascade their mean; 1: itself."""
    if count == 1:
        return network
    if isinstance(network, TwoStageSegmenter):
        return TwoStageSegmenter(mean_of(network.coarse, count), mean_of(network.fine, count))
    return MeanOfNetworks([copy.deepcopy(network) for _ in range(count)])


class Classifier(nn.Module):
    """Encoder, global average pooling, 1x1x1 convolution as fully connected layer (sections 3.3 and 4.2, nodules).

    Args:
        network_name: depth of the encoder; it and the other arguments are those of
            :class:`~med3d_ext.networks.ResNetEncoder`. Defaults to `resnet10`.
        num_classes: number of logits. Defaults to 2.
    """

    def __init__(
        self,
        network_name: str = "resnet10",
        in_channels: int = 1,
        num_classes: int = 2,
        output_stride: int = 8,
        shortcut: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(network_name, in_channels, output_stride, shortcut, checkpointing)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.head = nn.Conv3d(self.encoder.channels[-1], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N x num_classes of ``x``: N x in_channels x D x H x W."""
        return self.head(self.pool(self.encoder(x)[-1])).flatten(1)


class Med3DNet(nn.Module):
    """One encoder for all domains, one 1x1x1 convolution (``branches.<domain>``) for each (section 3.2, figure 2).

    A branch computes only the samples of its domain. A branch without a sample in the batch takes no part: its ``grad``
    stays None, so that an optimizer with ``optim_set_to_none=True`` leaves it bit-equal, momentum and weight decay
    included. DistributedDataParallel therefore needs ``find_unused_parameters=True``.

    Domains are counted in the order of ``num_classes``; ``domains`` holds their names. ``torch.jit.script`` and export
    work, with the domain as a tensor or left out.

    Args:
        network_name: depth of the encoder; it and the other arguments are those of
            :class:`~med3d_ext.networks.ResNetEncoder`.
        num_classes: classes of each domain, background counted, such as ``{"liver": 2, "heart": 2}``.
        default_domain: whose branch answers when no domain is given. Defaults to the first.

    Raises:
        InputError: ``num_classes`` or ``default_domain`` does not fit.
    """

    def __init__(
        self,
        network_name: str,
        in_channels: int,
        num_classes: dict[str, int],
        output_stride: int = 8,
        default_domain: str | None = None,
        shortcut: str | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not num_classes:
            raise InputError("num_classes must name at least one domain, got none.")
        for name, count in num_classes.items():
            if "." in name:
                raise InputError(f"num_classes must name domains without a dot, got {name!r}: rename the folder.")
            if count < 2:
                raise InputError(f"num_classes of {name} must be at least 2 (background counts), got {count}.")
        self.domains = list(num_classes)
        self.num_classes = list(num_classes.values())
        self.max_classes = max(self.num_classes)
        self.padding_logit = PADDING_LOGIT  # TorchScript sees attributes, not a module's globals
        self.default_index = self.domain_index(default_domain or self.domains[0])
        self.encoder = ResNetEncoder(network_name, in_channels, output_stride, shortcut, checkpointing)
        channels = self.encoder.channels[-1]
        self.branches = nn.ModuleDict({name: nn.Conv3d(channels, count, 1) for name, count in num_classes.items()})

    @torch.jit.unused
    def domain_index(self, name: str) -> int:
        """Index of the domain called ``name``; an InputError if there is none."""
        if name not in self.domains:
            raise InputError(f"domain must be one of {', '.join(self.domains)}, got {name!r}.")
        return self.domains.index(name)

    def forward(self, x: Tensor, domain: Tensor | None = None) -> Tensor:
        """Logits on the input grid: N x Cmax x D x H x W, Cmax being the most classes of any domain.

        Sample n's logits fill the first channels, as many as its domain has classes. The rest is ``PADDING_LOGIT``,
        which argmax never picks and softmax turns into 0, whatever the domain; the shape never depends on it.

        Args:
            x: N x in_channels x D x H x W.
            domain: index of each sample's domain, N integers. Outside TorchScript also a list of indices or names, or
                one name for all. Defaults to the default domain for all.

        Raises:
            ValueError: not one valid index per sample.
        """
        if not torch.jit.is_scripting():
            domain = self._indices(domain, x.shape[0])
        features = self.encoder(x)[-1]
        if domain is None:
            return self._pad(_resize(self._default_branch(features), x))
        # Padded before the resize: one up-sampling for all domains, and no copies on the input grid.
        return _resize(self._all_branches(features, domain.reshape(-1)), x)

    def _default_branch(self, features: Tensor) -> Tensor:
        logits = features  # TorchScript unrolls the loop and wants a value before it
        for index, branch in enumerate(self.branches.values()):
            if index == self.default_index:
                logits = branch(features)
        return logits

    def _all_branches(self, features: Tensor, domain: Tensor) -> Tensor:
        """Runs each branch on its samples, then brings the samples back into their order."""
        logits: list[Tensor] = []
        rows: list[Tensor] = []
        for index, branch in enumerate(self.branches.values()):
            own = torch.nonzero(domain == index).flatten().to(features.device)
            if own.numel() > 0:
                logits.append(self._pad(branch(features.index_select(0, own))))
                rows.append(own)
        order = torch.cat(rows) if len(rows) > 0 else domain[:0]
        if domain.numel() != features.shape[0] or order.numel() != features.shape[0]:
            got: list[int] = domain.tolist()  # TorchScript wants the annotation
            raise ValueError(
                f"domain must be {features.shape[0]} indices from 0 to {len(self.domains) - 1}, got {got}."
            )
        return torch.cat(logits).index_select(0, torch.argsort(order))

    def _pad(self, logits: Tensor) -> Tensor:
        return F.pad(logits, [0, 0, 0, 0, 0, 0, 0, self.max_classes - logits.shape[1]], value=self.padding_logit)

    @torch.jit.unused
    def _indices(self, domain: Tensor | Sequence[int | str] | str | None, samples: int) -> Tensor | None:
        if domain is None or isinstance(domain, Tensor):
            return domain
        names = [domain] * samples if isinstance(domain, str) else domain
        return torch.tensor([self.domain_index(name) if isinstance(name, str) else int(name) for name in names])


def encoder_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The encoder's own state dict, in the published names: what transfer keeps when it removes the decoder.

    Raises:
        ValueError: the network, or what DistributedDataParallel holds, has no ``encoder``.
    """
    network = getattr(network, "module", network)
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"network must have an encoder, got {type(network).__name__}.")
    return encoder.state_dict()


def _resize(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits, size=like.shape[2:], mode="trilinear", align_corners=False)

"""The two stages of the LiTS cascade as one network with one state dict (section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn


class TwoStageSegmenter(nn.Module):
    """A coarse and a fine network under one roof: ``coarse.*`` and ``fine.*`` in the state dict.

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

"""A network in float16, but for the few parts that float16 would spoil."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilevit.exports.rewrite import ExportForm
from mobilevit.models.layers import InvertedResidual


class At(nn.Module):
    """A part of a network that computes in a precision of its own."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        """Take the part over; what it is given is brought to that precision."""
        super().__init__()
        self.part, self.dtype = part.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """What the part makes of `x`."""
        return self.part(x.to(self.dtype))


def halve(form: ExportForm) -> None:
    """Let a network compute in float16, but for some convolutions with few weights.

    The stem and the inverted residuals ahead of the first MobileViT block stay in float32, and so
    do the depthwise and the last convolution of the others. Their channels are nearly constant, and
    large biases take off again what those constants add up to; float16 rounds both, and what is
    left differs. That is most of what a float16 network is off by.
    """
    for name, part in form.named_children():
        if name != "backbone":
            part.half()
    ahead = True
    for stage in form.backbone.stages:
        assert isinstance(stage, nn.Sequential)
        for index, part in enumerate(stage):
            if not isinstance(part, InvertedResidual):
                stage[index] = At(part, torch.float16)
                ahead = False
            elif not ahead:
                part.expand.half()
                part.register_module("depthwise", At(part.depthwise, torch.float32))

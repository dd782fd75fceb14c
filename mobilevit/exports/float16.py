"""Conversion to half precision, except for the few parts that float16 would spoil."""

import torch
from torch import Tensor, nn

from mobilevit.exports.rewrite import SeparableAttention
from mobilevit.models.layers import InvertedResidual


class CastTo(nn.Module):
    """A part of a network that computes in a precision of its own."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.to(self.dtype))


def halve(graph: nn.Module) -> None:
    """Convert an inference graph to float16, except for a few convolutions with few weights.

    The stem and the inverted residuals ahead of the first transformer stay in float32, and so do
    the depthwise and the last convolution of the later ones. Their channels are nearly constant,
    and large biases cancel the sum of those constants: float16 rounds both, and the difference
    remains. That is most of the error of an all-float16 network. The products in v2's attention are
    in float32, since they overflow.
    """
    for name, part in graph.named_children():
        if name != "backbone":
            part.half()
    before_transformers = True
    for stage in graph.get_submodule("backbone.stages").children():
        assert isinstance(stage, nn.Sequential)
        for index, part in enumerate(stage):
            if not isinstance(part, InvertedResidual):
                stage[index] = CastTo(part, torch.float16)
                before_transformers = False
            elif not before_transformers:
                part.register_module("expand", CastTo(part.expand, torch.float16))
                part.register_module("depthwise", CastTo(part.depthwise, torch.float32))
    for part in graph.modules():
        if isinstance(part, SeparableAttention):
            part.out.float()

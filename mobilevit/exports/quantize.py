"""Channels of like range for files of 8 bits: same outputs, far less lost to rounding.

An inverted residual widens its map, and a few of the wide channels reach a hundred times as far as
the others. One range for all of them leaves those others a handful of steps. But what stands
between the two convolutions works on each channel alone, and so does the second one: each channel
can be divided by a number of its own ahead of it, and multiplied by that number in the second's
weights. Weights are kept with a range for each channel, so nothing is lost there.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.exports.prepare import Prepared
from mobilevit.exports.spec import ExportError
from mobilevit.models.layers import ConvNormAct, InvertedResidual

LOWEST = 3.0
"""How far down a channel counts ahead of SiLU, which makes little of less."""
REACH = (-2.0, 1.0)
"""What matters of a channel ahead of SiLU, once divided: SiLU makes nothing of what lies below."""


class Equalised(nn.Module):
    """A convolution and SiLU, each channel of the result divided by a number of its own."""

    scale: Tensor

    def __init__(self, trained: ConvNormAct, scale: Tensor) -> None:
        """Take a fused convolution and the divisors `[C]`."""
        super().__init__()
        self.conv = trained.conv
        assert isinstance(self.conv, nn.Conv2d) and self.conv.bias is not None
        with torch.no_grad():
            self.conv.weight /= scale.view(-1, 1, 1, 1)
            self.conv.bias /= scale
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, H, W]` -> SiLU of the convolution, divided: `[B, C, H, W]`."""
        y = self.conv(x)
        return y * torch.sigmoid(y * self.scale)


def refuse_float16(prepared: Prepared) -> None:
    """See that a network that is to be quantised is in float32.

    Raises:
        ExportError: it is not.
    """
    if any(parameter.dtype == torch.float16 for parameter in prepared.module.parameters()):
        raise ExportError("what is not quantised stays in float32: leave precision fp16 out")


def equalised(prepared: Prepared) -> Prepared:
    """Even out the channels of a network that is to be quantised; the original stays as it was.

    The outputs are the same within float rounding, and layers keep their names. A network that is
    evened out already is returned as it is.

    Args:
        prepared: a network in float32, with photos to measure ranges on.

    Raises:
        ExportError: there are no photos, or the network computes in float16.
    """
    refuse_float16(prepared)
    if any(isinstance(module, Equalised) for module in prepared.module.modules()):
        return prepared
    module = copy.deepcopy(prepared.module)
    found = {
        name: block
        for name, block in module.named_modules()
        if isinstance(block, InvertedResidual) and block.expand.act is F.silu
    }
    reaches: dict[str, Tensor] = {}

    def observe(name: str, y: Tensor) -> None:
        low, high = y.amin((0, 2, 3)), y.amax((0, 2, 3))
        reach = torch.maximum(high, low.neg().clamp(max=LOWEST))
        reaches[name] = torch.maximum(reach, reaches.get(name, reach))

    hooks = [
        # Ahead of the activation, which works in place.
        block.expand.conv.register_forward_hook(
            lambda _module, _given, y, name=name: observe(name, y)
        )
        for name, block in found.items()
    ]
    with torch.inference_mode():
        for photo in prepared.calibration():
            module(photo)
    for hook in hooks:
        hook.remove()
    for name, block in found.items():
        # Of a number that 8 bits hold exactly: all of them together have one range.
        step = reaches[name].max().clamp(min=1e-3) / 255
        scale = (reaches[name] / step).ceil().clamp(min=1).clone() * step
        block.expand = Equalised(block.expand, scale)  # type: ignore[assignment]
        with torch.no_grad():
            block.depthwise.conv.weight *= scale.view(-1, 1, 1, 1)
    return replace(prepared, module=module)

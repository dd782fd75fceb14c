"""Training that feels the rounding to 8 bits, for networks that lose too much when exported in it.

torchao's `prepare_qat_pt2e` does not fit: it trains an exported graph, of one size and one mode,
which gives neither a network that Lightning switches between training and validation nor the float
model folder that all formats are exported from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.models.layers import ConvNormAct, InvertedResidual

MOMENTUM = 0.01
"""Share of a batch in the moving averages of smallest and largest values."""
LOWEST = 3.0
"""How far down a channel counts ahead of SiLU where channels are evened out, as in exports."""
LEAST = 1e-12
"""Of a range, so that none is empty."""


class Rounding(nn.Module):
    """The rounding of int8 files, put around a network's layers for as long as a step takes.

    Rounded are the weights of convolutions and linear layers, symmetric around 0, with a range for
    each output channel; what these layers take; and what convolutions give, behind their norm and
    ahead of their activation. Norms, softmax, the products of attention and what linear layers give
    stay float. That is what most formats do. Weights are rounded ahead of batch norm: folding it
    multiplies each output channel by one number, which the channel's range takes up.

    What an inverted residual's depthwise convolution takes has a range for each channel, and so has
    what becomes that by SiLU: ahead of exporting, these channels are evened out.

    Gradients pass through as if nothing were rounded; where a value lies outside its range, none
    does. Ranges are moving averages of the smallest and largest values of batches of training, and
    stand still in evaluation. Exports take the extremes on many photos, but augmentation makes some
    that no photo has. They are buffers here, not in the network, whose own parameters and buffers
    stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        """Make room for the ranges of a network's layers; the network is not kept."""
        super().__init__()
        for name, one in points(model).items():
            for end in ("low", "high"):
                shape = (one.channels,) if one.channels else ()
                self.register_buffer(f"{name}.{end}".replace(".", "/"), torch.zeros(shape))

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """Let a network round in all that it computes here; in training mode, move the ranges.

        Args:
            model: the network that this was made for, or one of the same layers.
        """
        found = points(model)
        hooks = [one.hook(self, name) for name, one in found.items()]
        layers = [one.module for name, one in found.items() if name.endswith(".taken")]
        for layer in layers:
            # A layer looks here ahead of its parameters, which stay what is trained and saved.
            vars(layer)["weight"] = rounded_weight(layer.get_parameter("weight"))
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)["weight"]
            for hook in hooks:
                hook.remove()

    def rounded(self, values: Tensor, name: str, point: Point) -> Tensor:
        """Values of a point of the network, rounded by its range; in training that moves first."""
        low, high = (self.get_buffer(f"{name}.{end}".replace(".", "/")) for end in ("low", "high"))
        values = values.float()  # mixed precision has fewer bits than the scale needs
        if self.training:
            _move(low, high, values.detach(), per_channel=bool(point.channels))
        bottom, top = (low, high) if not point.gate else gate(low, high)
        return rounded(values, bottom, top)


class Point:
    """A place where a network's values are rounded."""

    def __init__(
        self, module: nn.Module, *, taken: bool, channels: int = 0, gate: bool = False
    ) -> None:
        """Describe it.

        Args:
            module: whose values are meant.
            taken: what it takes, or else what it gives.
            channels: how many ranges, for each channel of a map one; 0: one range for all.
            gate: whether SiLU follows, and channels are evened out.
        """
        self.module, self.taken, self.channels, self.gate = module, taken, channels, gate

    def hook(self, rounding: Rounding, name: str) -> torch.utils.hooks.RemovableHandle:
        """Round here, until the hook is removed."""
        if self.taken:
            return self.module.register_forward_pre_hook(
                lambda _module, given: (rounding.rounded(given[0], name, self),)
            )
        return self.module.register_forward_hook(
            lambda _module, _given, said: rounding.rounded(said, name, self)
        )


def points(model: nn.Module) -> dict[str, Point]:
    """Where a network's values are rounded: by the names of modules, and `.taken` or `.given`."""
    evened = {
        part
        for block in model.modules()
        if isinstance(block, InvertedResidual) and block.expand.act is F.silu
        for part in (block.expand.norm, block.depthwise.conv)
    }
    found: dict[str, Point] = {}
    normed = {one.conv for one in model.modules() if isinstance(one, ConvNormAct)}
    for name, one in model.named_modules():
        if isinstance(one, nn.Conv2d | nn.Linear):
            channels = one.in_channels if isinstance(one, nn.Conv2d) and one in evened else 0
            found[f"{name}.taken"] = Point(one, taken=True, channels=channels)
        if isinstance(one, ConvNormAct):
            channels = one.conv.out_channels if one.norm in evened else 0
            found[f"{name}.given"] = Point(
                one.norm, taken=False, channels=channels, gate=bool(channels)
            )
        elif isinstance(one, nn.Conv2d) and one not in normed:
            found[f"{name}.given"] = Point(one, taken=False)
    return found


def gate(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range `[C]` of channels ahead of SiLU, evened out, from their smallest and largest."""
    reach = torch.maximum(high, low.neg().clamp(max=LOWEST))
    return -2 * reach, reach


def rounded_weight(weight: Tensor) -> Tensor:
    """Weights `[out, ...]`, each output channel rounded to its largest over 127, times -127..127.

    The gradient passes as if nothing were rounded.
    """
    weight = weight.float()
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=LEAST) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def rounded(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values rounded to 256 steps between `low` <= 0 and `high` >= 0; what lies beyond is cut off.

    Zero stays zero. The gradient passes as if nothing were rounded, and not where it was cut off.

    Args:
        values: any shape; with a range for each channel `[B, C, H, W]`.
        low: `[]` or `[C]`.
        high: the same.
    """
    scale = (high - low).clamp(min=LEAST) / 255
    zero = (-low / scale).round().clamp(0, 255)
    if low.ndim:
        return torch.fake_quantize_per_channel_affine(values, scale, zero.int(), 1, 0, 255)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero.int(), 0, 255)


@torch.no_grad()
def _move(low: Tensor, high: Tensor, values: Tensor, *, per_channel: bool) -> None:
    """Move a range towards a batch's; the first batch's is taken as it is."""
    axes = (0, 2, 3) if per_channel else tuple(range(values.ndim))
    bottom, top = values.amin(axes).clamp(max=0), values.amax(axes).clamp(min=0)
    fresh = high == low  # both 0: nothing was seen but zeros
    low.copy_(torch.where(fresh, bottom, low.lerp(bottom, MOMENTUM)))
    high.copy_(torch.where(fresh, top, high.lerp(top, MOMENTUM)))

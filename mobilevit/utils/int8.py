"""Rounding to 8 bits: weights symmetric with a range per output channel, activations affine."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_RANGE = 1e-12
"""Of values, so that no scale is 0."""


def weight_scale(weight: Tensor, axis: int = 0) -> Tensor:
    """The step between two int8 values of each output channel: its largest magnitude over 127.

    Args:
        weight: any shape.
        axis: of the output channels.

    Returns:
        `[channels]`.
    """
    magnitudes = weight.detach().movedim(axis, 0).flatten(1).abs().amax(1)
    return magnitudes.clamp(min=MIN_RANGE) / 127


def quantize_weight(weight: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Weights in int8, -127..127, and the scale of each output channel.

    >>> values, scale = quantize_weight(torch.tensor([[0.5, -1.0], [254.0, 4.0]]))
    >>> values.tolist(), scale[1].item()
    ([[64, -127], [127, 2]], 2.0)
    """
    scale = weight_scale(weight, axis)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    return (weight.detach() / scale.view(shape)).round().to(torch.int8), scale


def fake_quantize_weight(weight: Tensor, min_scale: float = 0.0) -> Tensor:
    """Weights `[out, ...]` rounded to int8 and back; gradients pass as if they were not.

    `min_scale`: the smallest step, where a runtime has one.
    """
    scale = weight_scale(weight).clamp(min=min_scale)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def fake_quantize(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values rounded to 256 steps from `low` <= 0 to `high` >= 0; what lies outside is clipped.

    Zero stays zero. Gradients pass as if values were not rounded, and are 0 where they are clipped.

    Args:
        values: any shape; with a range per channel `[B, C, H, W]`.
        low: `[]` or `[C]`.
        high: the same.
    """
    scale = (high - low).clamp(min=MIN_RANGE) / 255
    zero = (-low / scale).round().clamp(0, 255).int()
    if low.ndim:
        return torch.fake_quantize_per_channel_affine(values, scale, zero, 1, 0, 255)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)

"""The arithmetic of int8 quantization that all file formats share.

Weights are symmetric around 0, with a range for each output channel: -127 to 127 times a scale.
Activations have 256 steps between two ends that include 0.
"""

import torch
from torch import Tensor

MIN_RANGE = 1e-12
"""Smaller ranges are widened to this, so that no scale is 0."""


def weight_scales(weight: Tensor, axis: int = 0) -> Tensor:
    """The scales `[out]` of weights; `axis` is that of the output channels."""
    magnitudes = weight.detach().movedim(axis, 0).flatten(1).abs().amax(1)
    return magnitudes.clamp(min=MIN_RANGE) / 127


def quantize_weight(weight: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Quantize weights to int8 with scales `[out]`; `axis` is that of the output channels.

    >>> values, scales = quantize_weight(torch.tensor([[0.5, -1.0], [254.0, 4.0]]))
    >>> values.tolist(), scales[1].item()
    ([[64, -127], [127, 2]], 2.0)
    """
    scales = weight_scales(weight, axis)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    return (weight.detach() / scales.view(shape)).round().to(torch.int8), scales


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """Round weights `[out, ...]` to int8 and back, in float32; gradients pass unchanged.

    >>> fake_quantize_weight(torch.tensor([[1.27, 0.126], [0.0, 0.0]]))
    tensor([[1.2700, 0.1300],
            [0.0000, 0.0000]])
    """
    weight = weight.float()  # mixed precision has fewer bits than the scale needs
    scales = weight_scales(weight)
    zero_points = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zero_points, 0, -127, 127)


def fake_quantize(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round activations to 256 steps between two ends and back, and clip values beyond.

    Zero stays zero. Gradients pass unchanged, but not where values are clipped.

    Args:
        values: any shape, or with a range for each channel `[B, C, H, W]`.
        low: at most 0; `[]` or `[C]`.
        high: at least 0; as `low`.
    """
    scale = (high - low).clamp(min=MIN_RANGE) / 255
    zero_point = (-low / scale).round().clamp(0, 255).int()
    if low.ndim:
        return torch.fake_quantize_per_channel_affine(values, scale, zero_point, 1, 0, 255)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, 255)

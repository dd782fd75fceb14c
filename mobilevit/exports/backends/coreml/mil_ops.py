"""Core ML's operations in torch, each as its documentation in coremltools defines it.

A function's parameters are the operation's inputs by their names there. Tensors, sizes and numbers
come as tensors alike (a program may compute sizes), words as texts. What is not written down here
is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.exports.backends.coreml.mil_shape_ops import MOVES
from mobilevit.exports.backends.coreml.mil_types import (
    LAST,
    NO,
    ONE,
    TYPES,
    YES,
    ZERO,
    ints,
    refuse,
)

Function = Callable[..., Tensor | tuple[Tensor, ...]]

# Layers


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor = ONE,
) -> Tensor:
    """Convolution of `[B, C, *D]`."""
    axes = x.ndim - 2
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    ones = [1] * axes
    return run(
        F.pad(x, _padding("conv", pad_type, pad)),
        weight,
        bias,
        stride=ones if strides is None else ints(strides),
        dilation=ones if dilations is None else ints(dilations),
        groups=int(groups),
    )


def _padding(operation: str, pad_type: str, pad: Tensor | None) -> list[int]:
    """As `torch.nn.functional.pad` takes it: pairs of before and after, last axis first."""
    if pad_type == "valid":
        return []
    if pad_type != "custom" or pad is None:
        raise refuse(operation, pad_type=pad_type)
    sizes = ints(pad)
    pairs = [sizes[i : i + 2] for i in range(0, len(sizes), 2)]
    return [size for pair in reversed(pairs) for size in pair]


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor = NO,
    ceil_mode: Tensor = NO,
) -> Tensor:
    """Means over windows of `[B, C, H, W]`."""
    padding = _padding("avg_pool", pad_type, pad)
    if x.ndim != 4 or any(padding) or bool(ceil_mode):
        raise refuse("avg_pool", rank=x.ndim, pad=padding, ceil_mode=bool(ceil_mode))
    return F.avg_pool2d(x, ints(kernel_sizes), 1 if strides is None else ints(strides))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[..., d]` by `[out, d]` to `[..., out]`."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor = NO, transpose_y: Tensor = NO) -> Tensor:
    """Product of the last two axes."""
    return (x.mT if bool(transpose_x) else x) @ (y.mT if bool(transpose_y) else y)


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalise over the last axes."""
    over = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
    if over != list(range(x.ndim - len(over), x.ndim)):
        raise refuse("layer_norm", axes=over, rank=x.ndim)
    eps = 1e-5 if epsilon is None else float(epsilon)
    return F.layer_norm(x, [x.shape[axis] for axis in over], gamma, beta, eps)


def instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalise `[B, C, *D]` over the axes D."""
    eps = 1e-5 if epsilon is None else float(epsilon)
    return F.instance_norm(x, weight=gamma, bias=beta, eps=eps)


def softmax(x: Tensor, axis: Tensor = LAST) -> Tensor:
    """Of one axis."""
    return x.softmax(int(axis))


def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Between two numbers."""
    return x.clamp(float(alpha), float(beta))


# Sums and searches


def _over(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else ints(axes)


def reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor = NO) -> Tensor:
    """Over some axes, or all."""
    return x.mean(_over(x, axes), keepdim=bool(keep_dims))


def reduce_argmax(
    x: Tensor, axis: Tensor = LAST, keep_dims: Tensor = NO, output_dtype: str = "int32"
) -> Tensor:
    """Place of the largest; of equals the first."""
    return x.argmax(int(axis), keepdim=bool(keep_dims)).to(TYPES[output_dtype])


def topk(
    x: Tensor,
    k: Tensor = ONE,
    axis: Tensor = LAST,
    ascending: Tensor = NO,
    sort: Tensor = YES,
    return_indices: Tensor = YES,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, Tensor]:
    """The largest values and their places; of equals the first."""
    if not bool(sort) or not bool(return_indices):
        raise refuse("topk", sort=bool(sort), return_indices=bool(return_indices))
    values, places = x.sort(dim=int(axis), descending=not bool(ascending), stable=True)
    most = int(k)
    first = (values.narrow(int(axis), 0, most), places.narrow(int(axis), 0, most))
    return first[0], first[1].to(TYPES[output_indices_dtype])


# Sizes of maps


def _grid(size: int, wanted: int, mode: str) -> Tensor:
    """Where along an axis samples are taken `[wanted]`, float64."""
    steps = torch.arange(wanted, dtype=torch.float64)
    if mode == "UNALIGN_CORNERS":
        spacing = size / wanted
        return (steps * spacing + 0.5 * spacing - 0.5).clamp(0, size - 1)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            return steps if mode == "STRICT_ALIGN_CORNERS" else steps + (size - 1) / 2
        return (steps * ((size - 1) / (wanted - 1))).clamp(0, size - 1)
    raise refuse("resize", sampling_mode=mode)


def _resized(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """`[..., H, W]` -> `[..., height, width]`: two products with matrices of two values a row."""
    matrices = []
    for size, wanted in ((x.shape[-2], height), (x.shape[-1], width)):
        at = _grid(size, wanted, mode)
        low = at.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = (at - low)[:, None]
        eye = torch.eye(size, dtype=torch.float64)
        matrices.append((eye[low] * (1 - share) + eye[high] * share).to(x.dtype))
    return matrices[0] @ x @ matrices[1].mT


def resize_bilinear(
    x: Tensor,
    target_size_height: Tensor = ONE,
    target_size_width: Tensor = ONE,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """`[..., H, W]` to a given size."""
    return _resized(x, int(target_size_height), int(target_size_width), sampling_mode)


def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """`[..., H, W]` to a size that the program may compute."""
    sizes = ints(shape)
    if int(resized_dims) != 2 or interpolation_mode != "LINEAR" or 0 in sizes:
        raise refuse("resize", resized_dims=int(resized_dims), mode=interpolation_mode, shape=sizes)
    return _resized(x, sizes[-2], sizes[-1], sampling_mode)


# Fewer bits


def _beside(values: Tensor, data: Tensor, axis: Tensor) -> Tensor:
    """A value, or one for each place of an axis, in a shape that meets the data's."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if at == int(axis) % data.ndim else 1 for at in range(data.ndim)])


def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """Weights of 8 bits as floats."""
    data = quantized_data.float() - _beside(zero_point, quantized_data, axis).float()
    return data * _beside(scale, quantized_data, axis).float()


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor = ZERO,
) -> Tensor:
    """Floats as 8 bits."""
    kind = TYPES[output_dtype]
    data = (input / _beside(scale, input, axis)).round()
    if zero_point is not None:
        data = data + _beside(zero_point, input, axis).float()
    return data.clamp(torch.iinfo(kind).min, torch.iinfo(kind).max).to(kind)


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor = ZERO
) -> Tensor:
    """8 bits as floats."""
    data = input.float()
    if zero_point is not None:
        data = data - _beside(zero_point, input, axis).float()
    return data * _beside(scale, input, axis)


# Value by value


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def run(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return run


def _of_one(function: Callable[[Tensor], Tensor]) -> Function:
    def run(x: Tensor) -> Tensor:
        return function(x)

    return run


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


LAYERS: tuple[Function, ...] = (
    conv,
    avg_pool,
    linear,
    matmul,
    layer_norm,
    instance_norm,
    softmax,
    clip,
    reduce_mean,
    reduce_argmax,
    topk,
    resize_bilinear,
    resize,
    constexpr_affine_dequantize,
    quantize,
    dequantize,
)
OF_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,
    "floor_div": _floor_div,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "equal": torch.eq,
    "greater": torch.gt,
    "less": torch.lt,
    "logical_and": torch.logical_and,
}
OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "exp": torch.exp,
}

OPERATIONS: dict[str, Function] = {
    **{function.__name__: function for function in (*LAYERS, *MOVES)},
    **{name: _of_two(function) for name, function in OF_TWO.items()},
    **{name: _of_one(function) for name, function in OF_ONE.items()},
}
"""All of them by name."""

EXACT = frozenset(function.__name__ for function in MOVES)

"""Core ML's operations in torch, each as its documentation in coremltools defines it.

A function's parameters are the operation's inputs by their names there. Sizes and numbers are
tensors too, since a program can compute them. Anything not implemented is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.exports.backends.coreml.mil_shape_ops import SHAPE_OPERATIONS, Function
from mobilevit.exports.backends.coreml.mil_types import (
    LAST,
    NO,
    ONE,
    TYPES,
    YES,
    ZERO,
    ints,
    unsupported,
)

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
    """For `torch.nn.functional.pad`: pairs of before and after, last axis first."""
    if pad_type == "valid":
        return []
    if pad_type != "custom" or pad is None:
        raise unsupported(operation, pad_type=pad_type)
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
        raise unsupported("avg_pool", rank=x.ndim, pad=padding, ceil_mode=bool(ceil_mode))
    return F.avg_pool2d(x, ints(kernel_sizes), 1 if strides is None else ints(strides))


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalize over the last axes."""
    over = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
    if over != list(range(x.ndim - len(over), x.ndim)):
        raise unsupported("layer_norm", axes=over, rank=x.ndim)
    eps = 1e-5 if epsilon is None else float(epsilon)
    return F.layer_norm(x, [x.shape[axis] for axis in over], gamma, beta, eps)


def instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    """Normalize `[B, C, *D]` over the axes D."""
    eps = 1e-5 if epsilon is None else float(epsilon)
    return F.instance_norm(x, weight=gamma, bias=beta, eps=eps)


# Reductions and searches


def reduce_argmax(
    x: Tensor, axis: Tensor = LAST, keep_dims: Tensor = NO, output_dtype: str = "int32"
) -> Tensor:
    """Index of the largest value, the first of equal ones."""
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
    """The largest values and their indices, the first of equal ones."""
    if not bool(sort) or not bool(return_indices):
        raise unsupported("topk", sort=bool(sort), return_indices=bool(return_indices))
    values, indices = x.sort(dim=int(axis), descending=not bool(ascending), stable=True)
    count = int(k)
    first = (values.narrow(int(axis), 0, count), indices.narrow(int(axis), 0, count))
    return first[0], first[1].to(TYPES[output_indices_dtype])


# Resizing


def _grid(size: int, target: int, mode: str) -> Tensor:
    """Where samples are taken along an axis, `[target]` in float64."""
    steps = torch.arange(target, dtype=torch.float64)
    if mode == "UNALIGN_CORNERS":
        spacing = size / target
        return (steps * spacing + 0.5 * spacing - 0.5).clamp(0, size - 1)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if target == 1:
            return steps if mode == "STRICT_ALIGN_CORNERS" else steps + (size - 1) / 2
        return (steps * ((size - 1) / (target - 1))).clamp(0, size - 1)
    raise unsupported("resize", sampling_mode=mode)


def _resized(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """`[..., H, W]` -> `[..., height, width]`, as products with matrices of two values a row."""
    matrices = []
    for size, target in ((x.shape[-2], height), (x.shape[-1], width)):
        at = _grid(size, target, mode)
        low = at.floor().long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        share = (at - low)[:, None]
        eye = torch.eye(size, dtype=torch.float64)
        matrices.append((eye[low] * (1 - share) + eye[high] * share).to(x.dtype))
    return matrices[0] @ x @ matrices[1].mT


def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """`[..., H, W]` to a size that the program can compute."""
    sizes = ints(shape)
    if int(resized_dims) != 2 or interpolation_mode != "LINEAR" or 0 in sizes:
        raise unsupported(
            "resize", resized_dims=int(resized_dims), mode=interpolation_mode, shape=sizes
        )
    return _resized(x, sizes[-2], sizes[-1], sampling_mode)


# Quantization


def _broadcast(values: Tensor, data: Tensor, axis: Tensor) -> Tensor:
    """One value, or one for each index of an axis, in a shape that broadcasts to the data's."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if at == int(axis) % data.ndim else 1 for at in range(data.ndim)])


def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor
) -> Tensor:
    """Dequantize int8 weights."""
    data = quantized_data.float() - _broadcast(zero_point, quantized_data, axis).float()
    return data * _broadcast(scale, quantized_data, axis).float()


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor = ZERO,
) -> Tensor:
    """Quantize to 8 bits."""
    dtype = TYPES[output_dtype]
    data = (input / _broadcast(scale, input, axis)).round()
    if zero_point is not None:
        data = data + _broadcast(zero_point, input, axis).float()
    return data.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor = ZERO
) -> Tensor:
    """Dequantize 8 bits."""
    data = input.float()
    if zero_point is not None:
        data = data - _broadcast(zero_point, input, axis).float()
    return data * _broadcast(scale, input, axis)


OPERATIONS: Mapping[str, Function] = {
    **SHAPE_OPERATIONS,
    "conv": conv,
    "avg_pool": avg_pool,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": lambda x, y, transpose_x=NO, transpose_y=NO: (
        (x.mT if bool(transpose_x) else x) @ (y.mT if bool(transpose_y) else y)
    ),
    "layer_norm": layer_norm,
    "instance_norm": instance_norm,
    "softmax": lambda x, axis=LAST: x.softmax(int(axis)),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "reduce_mean": lambda x, axes=None, keep_dims=NO: x.mean(
        list(range(x.ndim)) if axes is None else ints(axes), keepdim=bool(keep_dims)
    ),
    "reduce_argmax": reduce_argmax,
    "topk": topk,
    "resize_bilinear": lambda x, target_size_height=ONE, target_size_width=ONE, sampling_mode="": (
        _resized(x, int(target_size_height), int(target_size_width), sampling_mode)
    ),
    "resize": resize,
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "quantize": quantize,
    "dequantize": dequantize,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "minimum": lambda x, y: torch.minimum(x, y),
    "maximum": lambda x, y: torch.maximum(x, y),
    "equal": lambda x, y: x == y,
    "greater": lambda x, y: x > y,
    "less": lambda x, y: x < y,
    "logical_and": lambda x, y: x & y,
    "relu": lambda x: x.relu(),
    "sigmoid": lambda x: x.sigmoid(),
    "silu": lambda x: F.silu(x),
    "exp": lambda x: x.exp(),
}
"""Operations by name. Lambdas give torch's functions the names of Core ML's inputs."""

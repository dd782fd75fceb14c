"""The operations of Core ML that coremltools knows without being able to compute them, in torch.

A function's parameters are the operation's inputs by their names in coremltools' documentation, as
NumPy arrays and numbers. Anything not implemented is an error.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.exports.spec import ExportError

Array = np.ndarray


def unsupported(operation: str, **inputs: object) -> ExportError:
    """The error for inputs of an operation that are not implemented here."""
    values = ", ".join(f"{name} {value!r}" for name, value in inputs.items())
    return ExportError(f"Core ML's operation {operation} with {values} is not implemented")


def tensor(array: Any) -> Tensor:
    """A tensor of an array's values, which may be read-only."""
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def conv(
    x: Array,
    weight: Array,
    strides: Array,
    pad_type: str,
    pad: Array,
    dilations: Array,
    groups: int,
    bias: Array | None = None,
) -> Tensor:
    """Convolution of `[B, C, H, W]`."""
    if x.ndim != 4 or pad_type not in ("valid", "custom"):
        raise unsupported("conv", rank=x.ndim, pad_type=pad_type)
    top, bottom, left, right = pad.tolist() if pad_type == "custom" else [0] * 4
    return F.conv2d(
        F.pad(tensor(x), (left, right, top, bottom)),
        tensor(weight),
        None if bias is None else tensor(bias),
        stride=strides.tolist(),
        dilation=dilations.tolist(),
        groups=int(groups),
    )


def avg_pool(
    x: Array,
    kernel_sizes: Array,
    strides: Array,
    pad_type: str,
    pad: Array,
    exclude_padding_from_average: bool,
    ceil_mode: bool,
) -> Tensor:
    """Means over windows of `[B, C, H, W]`."""
    if x.ndim != 4 or pad.any() or pad_type not in ("valid", "custom") or ceil_mode:
        raise unsupported("avg_pool", rank=x.ndim, pad_type=pad_type, pad=pad, ceil_mode=ceil_mode)
    return F.avg_pool2d(tensor(x), kernel_sizes.tolist(), strides.tolist())


def instance_norm(x: Array, epsilon: float) -> Tensor:
    """Normalize `[B, C, *D]` over the axes D."""
    return F.instance_norm(tensor(x), eps=float(epsilon))


def topk(
    x: Array,
    k: int,
    axis: int,
    ascending: bool,
    sort: bool,
    return_indices: bool,
    output_indices_dtype: str,
) -> tuple[Tensor, Tensor]:
    """The largest values and their indices, of equal ones the first, which NumPy's sort is not."""
    if not sort or not return_indices:
        raise unsupported("topk", sort=sort, return_indices=return_indices)
    values, indices = tensor(x).sort(dim=int(axis), descending=not ascending, stable=True)
    values, indices = (part.narrow(int(axis), 0, int(k)) for part in (values, indices))
    return values, indices.to(getattr(torch, output_indices_dtype))


ALIGN_CORNERS = {"UNALIGN_CORNERS": False, "STRICT_ALIGN_CORNERS": True}
"""Modes of sampling -> the same in torch."""


def resize_bilinear(
    x: Array, target_size_height: int, target_size_width: int, sampling_mode: str
) -> Tensor:
    """`[B, C, H, W]` -> `[B, C, height, width]`."""
    if x.ndim != 4 or sampling_mode not in ALIGN_CORNERS:
        raise unsupported("resize", rank=x.ndim, sampling_mode=sampling_mode)
    size, corners = (int(target_size_height), int(target_size_width)), ALIGN_CORNERS[sampling_mode]
    return F.interpolate(tensor(x), size, mode="bilinear", align_corners=corners)


def resize(
    x: Array, shape: Array, resized_dims: int, interpolation_mode: str, sampling_mode: str
) -> Tensor:
    """`[..., H, W]` to a size that the program can compute."""
    if int(resized_dims) != 2 or interpolation_mode != "LINEAR" or 0 in shape:
        raise unsupported(
            "resize", resized_dims=int(resized_dims), mode=interpolation_mode, shape=shape.tolist()
        )
    return resize_bilinear(x, shape[-2], shape[-1], sampling_mode)


OPERATIONS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "conv": conv,
    "avg_pool": avg_pool,
    "instance_norm": instance_norm,
    "topk": topk,
    "resize_bilinear": resize_bilinear,
    "resize": resize,
    "silu": lambda x: F.silu(tensor(x)),
}
"""Operations by name."""

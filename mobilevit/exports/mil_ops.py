"""Core ML's operations in torch, each as its documentation in coremltools defines it.

A function's parameters are the operation's inputs by their names there. Tensors, sizes and numbers
come as tensors alike (a program may compute sizes), words as texts. What is not written down here
is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.exports.facts import ExportError

Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]

TYPES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "bool": torch.bool,
}
"""Types of tensors by their names in programs."""

NO = torch.tensor(False)
YES = torch.tensor(True)
ZERO = torch.tensor(0, dtype=torch.int32)
ONE = torch.tensor(1, dtype=torch.int32)
LAST = torch.tensor(-1, dtype=torch.int32)


class MilError(ExportError):
    """A Core ML program holds what can not be run here; the message names it."""


def refuse(operation: str, **inputs: object) -> MilError:
    """The error for inputs that an operation knows in Core ML and not here."""
    said = ", ".join(f"{name} {value!r}" for name, value in inputs.items())
    return MilError(f"Core ML's operation {operation} with {said} is not known here")


def ints(values: Tensor) -> list[int]:
    """Sizes or axes."""
    return [int(value) for value in values.reshape(-1).tolist()]


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


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One or the other, value by value."""
    return torch.where(cond, a, b)


def cast(x: Tensor, dtype: str) -> Tensor:
    """To another type; floats lose their fractions."""
    if dtype not in TYPES:
        raise refuse("cast", dtype=dtype)
    return x.to(TYPES[dtype])


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


# Moves


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Another shape of the same values; one size may be -1."""
    sizes = ints(shape)
    if 0 in sizes:
        raise refuse("reshape", shape=sizes)
    return x.reshape(sizes)


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Axes in another order."""
    return x.permute(ints(perm))


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """New axes of size 1, at their places in the result."""
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of size 1."""
    return x.squeeze() if axes is None else x.squeeze(ints(axes))


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor = NO) -> Tensor:
    """One behind the other; numbers are lists of one."""
    if bool(interleave):
        raise refuse("concat", interleave=True)
    return torch.cat(
        [value.reshape(1) if value.ndim == 0 else value for value in values], int(axis)
    )


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Parts along an axis, equal ones or of given sizes."""
    if split_sizes is not None:
        return tuple(x.split(ints(split_sizes), int(axis)))
    if num_splits is None:
        raise refuse("split", num_splits=None, split_sizes=None)
    return tuple(x.chunk(int(num_splits), int(axis)))


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """As `x[begin:end:stride, ...]`; masks say whose begin or end is the axis's own."""
    steps = [1] * x.ndim if stride is None else ints(stride)
    if min(steps) < 1:
        raise refuse("slice_by_index", stride=steps)
    no = [0] * x.ndim
    whole_begin, whole_end, index = (
        no if mask is None else ints(mask) for mask in (begin_mask, end_mask, squeeze_mask)
    )
    places = zip(ints(begin), ints(end), steps, whole_begin, whole_end, index, strict=True)
    return x[
        tuple(
            first if one else slice(None if from_start else first, None if to_end else last, step)
            for first, last, step, from_start, to_end, one in places
        )
    ]


def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Each axis so many times."""
    return x.repeat(ints(reps))


def shape(x: Tensor) -> Tensor:
    """The sizes of a tensor."""
    return torch.tensor(x.shape, dtype=torch.int32)


def fill(shape: Tensor, value: Tensor) -> Tensor:
    """One value everywhere."""
    return value.expand(ints(shape))


def band_part(x: Tensor, lower: Tensor = LAST, upper: Tensor = LAST) -> Tensor:
    """Zeros beyond so many diagonals below and above the main one; -1 keeps all."""
    below, above = int(lower), int(upper)
    x = x if below < 0 else x.triu(-below)
    return x if above < 0 else x.tril(above)


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor = ZERO,
    batch_dims: Tensor = ZERO,
    validate_indices: Tensor = NO,
) -> Tensor:
    """Slices of an axis by their places."""
    if int(batch_dims):
        raise refuse("gather", batch_dims=int(batch_dims))
    at = int(axis) % x.ndim
    found = x.index_select(at, _places("gather", indices, x.shape[at]).reshape(-1))
    return found.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor = ZERO, validate_indices: Tensor = NO
) -> Tensor:
    """Values of an axis by their places, one for each value of the result."""
    at = int(axis) % x.ndim
    return x.gather(at, _places("gather_along_axis", indices, x.shape[at]))


def _places(operation: str, indices: Tensor, size: int) -> Tensor:
    """Places as torch takes them; what Core ML leaves undefined is refused."""
    places = indices.long()
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < size:
        raise refuse(operation, indices=(int(places.min()), int(places.max())), size=size)
    return places


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


def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Tensor) -> Tensor:
    """Weights of a palette: places of `lut`, packed in bytes from the lowest bit on."""
    bits = (lut.numel() - 1).bit_length()
    sizes = ints(shape)
    powers = torch.arange(8, dtype=torch.uint8)
    stream = (indices[:, None] >> powers & 1).reshape(-1)  # one bit each, in their order
    count = torch.Size(sizes).numel()
    codes = stream[: count * bits].reshape(count, bits).long()
    places = (codes << torch.arange(bits)).sum(1)
    return lut[places].reshape(sizes)


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
MOVES: tuple[Function, ...] = (
    select,
    cast,
    reshape,
    transpose,
    expand_dims,
    squeeze,
    concat,
    split,
    slice_by_index,
    tile,
    shape,
    fill,
    band_part,
    gather,
    gather_along_axis,
    constexpr_lut_to_dense,
)
"""Of these no value is computed: they run in the type that their values have."""

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

"""Core ML's operations that compute nothing: they move, choose, repeat or look up values.

FileSummary and called as those of `mobilevit.exports.backends.coreml.mil_ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mobilevit.exports.backends.coreml.mil_types import LAST, NO, TYPES, ZERO, ints, refuse


def identity(x: Tensor) -> Tensor:
    """The same; Core ML has it where an input is an output as well."""
    return x


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One or the other, value by value."""
    return torch.where(cond, a, b)


def cast(x: Tensor, dtype: str) -> Tensor:
    """To another type; floats lose their fractions."""
    if dtype not in TYPES:
        raise refuse("cast", dtype=dtype)
    return x.to(TYPES[dtype])


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


MOVES: tuple[Callable[..., Tensor | tuple[Tensor, ...]], ...] = (
    identity,
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
"""All of them. They run in the type that their values have."""

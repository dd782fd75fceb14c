"""Core ML's operations that move, select, repeat or look up values; see `mil_ops`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mobilevit.exports.backends.coreml.mil_types import LAST, NO, TYPES, ZERO, ints, unsupported

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert to another type."""
    if dtype not in TYPES:
        raise unsupported("cast", dtype=dtype)
    return x.to(TYPES[dtype])


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """Change the shape; one size can be -1."""
    sizes = ints(shape)
    if 0 in sizes:
        raise unsupported("reshape", shape=sizes)
    return x.reshape(sizes)


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Insert axes of size 1, at their indices in the result."""
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor = NO) -> Tensor:
    """Concatenate; numbers count as lists of one."""
    if bool(interleave):
        raise unsupported("concat", interleave=True)
    return torch.cat(
        [value.reshape(1) if value.ndim == 0 else value for value in values], int(axis)
    )


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Split an axis, into equal parts or by sizes."""
    if split_sizes is not None:
        return tuple(x.split(ints(split_sizes), int(axis)))
    if num_splits is None:
        raise unsupported("split", num_splits=None, split_sizes=None)
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
    """`x[begin:end:stride, ...]`; where a mask is set, the axis's own begin or end is used."""
    steps = [1] * x.ndim if stride is None else ints(stride)
    if min(steps) < 1:
        raise unsupported("slice_by_index", stride=steps)
    no = [0] * x.ndim
    masks = [no if mask is None else ints(mask) for mask in (begin_mask, end_mask, squeeze_mask)]
    axes = zip(ints(begin), ints(end), steps, *masks, strict=True)
    return x[
        tuple(
            first if one else slice(None if from_start else first, None if to_end else last, step)
            for first, last, step, from_start, to_end, one in axes
        )
    ]


def band_part(x: Tensor, lower: Tensor = LAST, upper: Tensor = LAST) -> Tensor:
    """Keep this many diagonals below and above the main one, -1 for all; zero the others."""
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
    """Slices of an axis by index."""
    if int(batch_dims):
        raise unsupported("gather", batch_dims=int(batch_dims))
    at = int(axis) % x.ndim
    found = x.index_select(at, _checked("gather", indices, x.shape[at]).reshape(-1))
    return found.reshape((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]))


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor = ZERO, validate_indices: Tensor = NO
) -> Tensor:
    """Values of an axis by index, one for each value of the result."""
    at = int(axis) % x.ndim
    return x.gather(at, _checked("gather_along_axis", indices, x.shape[at]))


def _checked(operation: str, indices: Tensor, size: int) -> Tensor:
    """Indices for torch; those outside the axis, which Core ML leaves undefined, are refused."""
    indices = indices.long()
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise unsupported(operation, indices=(int(indices.min()), int(indices.max())), size=size)
    return indices


def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, shape: Tensor) -> Tensor:
    """Weights from a palette, by indices of `lut` packed into bytes from the lowest bit on."""
    bits = (lut.numel() - 1).bit_length()
    sizes = ints(shape)
    powers = torch.arange(8, dtype=torch.uint8)
    stream = (indices[:, None] >> powers & 1).reshape(-1)  # one bit each, in their order
    count = torch.Size(sizes).numel()
    codes = stream[: count * bits].reshape(count, bits).long()
    places = (codes << torch.arange(bits)).sum(1)
    return lut[places].reshape(sizes)


SHAPE_OPERATIONS: Mapping[str, Function] = {
    "identity": lambda x: x,
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "transpose": lambda x, perm: x.permute(ints(perm)),
    "squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(ints(axes)),
    "tile": lambda x, reps: x.repeat(ints(reps)),
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "fill": lambda shape, value: value.expand(ints(shape)),
    "cast": cast,
    "reshape": reshape,
    "expand_dims": expand_dims,
    "concat": concat,
    "split": split,
    "slice_by_index": slice_by_index,
    "band_part": band_part,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
}
"""Operations by name; they run in the type of their values."""

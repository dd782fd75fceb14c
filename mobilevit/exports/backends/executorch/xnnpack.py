"""The inference graph in operations of XNNPACK, which runs ExecuTorch programs on a CPU.

An operation that XNNPACK lacks falls back to ExecuTorch's portable kernels and splits the delegated
graph in two. So, before lowering,

* v1's norms become a division by the root mean square; see `replace_layer_norms`;
* other norms are written out, in means as XNNPACK takes them;
* splits become slices, and matrix products have a single batch axis.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit.exports.rewrite import replace_layer_norms


class RootNorm(nn.Module):
    """`LayerNorm` of rows whose mean is 0, without scale and shift."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        (self.dim,), self.eps = norm.normalized_shape, norm.eps

    def forward(self, x: Tensor, samples: int = 1) -> Tensor:
        """`[R, dim]` -> `[R, dim]`."""
        x = x.reshape(-1, 1, self.dim, 1)
        return (x * _inverse_root(x, self.eps)).reshape(-1, self.dim)


def with_root_norms(module: nn.Module) -> nn.Module:
    """Copy an inference graph, or a module around one, with `RootNorm` for v1's norms."""
    module = copy.deepcopy(module)
    replace_layer_norms(module, RootNorm)
    return module


def decompositions(*, half: bool) -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Decompositions of a graph by `torch.export` into operations that XNNPACK has.

    Args:
        half: whether the graph computes in float16. Then layer norms are not decomposed, since the
            squares of large values overflow float16.
    """
    aten = torch.ops.aten
    table: dict[torch._ops.OpOverload, Callable[..., Any]] = {
        aten.instance_norm.default: _instance_norm,
        aten.mean.dim: _mean,
        aten.split.Tensor: _split,
        aten.split_with_sizes.default: _split_with_sizes,
        aten.matmul.default: _matmul,
        aten.silu.default: _silu,
    }
    if not half:
        table[aten.layer_norm.default] = _layer_norm
    return table


def _silu(x: Tensor) -> Tensor:
    # Torch's own decomposition converts float16 to float32 and back.
    return x * x.sigmoid()


def _inverse_root(x: Tensor, eps: float) -> Tensor:
    """Of the mean square of the last two axes of `[N, 1, M, 1]`."""
    # In this shape XNNPACK's order of axes (NHWC) is the same memory.
    return ((x * x).mean(dim=(2, 3), keepdim=True) + eps).rsqrt()


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    if len(shape) != 1:
        return NotImplemented
    rows = x.reshape(-1, 1, shape[0], 1)
    rows = rows - rows.mean(dim=(2, 3), keepdim=True)
    y = (rows * _inverse_root(rows, eps)).reshape(x.shape)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if weight is not None or bias is not None or not use_input_stats or x.shape[1] != 1:
        return NotImplemented
    flat = x.reshape(x.shape[0], 1, -1, 1)
    flat = flat - flat.mean(dim=(2, 3), keepdim=True)
    return (flat * _inverse_root(flat, eps)).reshape(x.shape)


def _mean(
    x: Tensor,
    dim: Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if keepdim or dtype is not None or x.ndim != 4 or sorted(dim or ()) not in ([2, 3], [-2, -1]):
        return NotImplemented
    return torch.ops.aten.mean.dim(x, [2, 3], True).reshape(x.shape[:2])


def _split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    count, rest = divmod(int(x.shape[dim]), size)
    return _split_with_sizes(x, [size] * count + [rest] * (rest > 0), dim)


def _split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [
        torch.ops.aten.slice.Tensor(x, dim, end - size, end)
        for size, end in zip(sizes, ends, strict=True)
    ]


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[:-2] != right.shape[:-2] or left.ndim < 3:
        return NotImplemented
    y = torch.bmm(left.flatten(0, -3), right.flatten(0, -3))
    return y.reshape(*left.shape[:-1], right.shape[-1])

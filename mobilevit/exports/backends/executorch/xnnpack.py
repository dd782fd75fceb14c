"""The inference graph in operations of XNNPACK, which runs ExecuTorch programs on a CPU.

An operation that XNNPACK lacks falls back to ExecuTorch's portable kernels and splits the delegated
graph in two. So the graph has LiteRT's forms of norms and attention, means are taken over the last
two of four axes, and splits become slices.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit.exports import rewrite as graphs
from mobilevit.exports.backends.litert.rewrite import REWRITES, litert_graph

PARTS = (
    graphs.TokenNorm,
    graphs.BareSampleNorm,
    graphs.Attention,
)
"""Parts of an inference graph that take LiteRT's form."""


def xnnpack_graph(module: nn.Module) -> nn.Module:
    """Copy a prepared module for XNNPACK, with the same outputs within float rounding."""
    return litert_graph(module, {part: REWRITES[part] for part in PARTS})


def _silu(x: Tensor) -> Tensor:
    # Torch's own decomposition converts float16 to float32 and back.
    return x * x.sigmoid()


def _mean(x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, **other: Any) -> Tensor:
    if x.ndim == 2 and dim == [1] and keepdim and not other:
        # In this shape, XNNPACK's order of axes (NHWC) is the same memory.
        maps = x.reshape(-1, 1, x.shape[1], 1)
    elif x.ndim == 4 and dim == [2, 3] and not keepdim and not other:
        maps = x
    else:
        return NotImplemented
    return torch.ops.aten.mean.dim(maps, [2, 3], True).flatten(1)


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    ends = accumulate(sizes)
    slices = torch.ops.aten.slice.Tensor
    return [slices(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


DECOMPOSITIONS: Mapping[torch._ops.OpOverload, Callable[..., Any]] = {
    torch.ops.aten.mean.dim: _mean,
    torch.ops.aten.silu.default: _silu,
    torch.ops.aten.split_with_sizes.default: _split,
}
"""Of a graph by `torch.export`, into operations that XNNPACK has."""

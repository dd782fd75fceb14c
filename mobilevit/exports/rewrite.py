"""The inference graph of a network: the trained weights in operations that every runtime has.

The outputs are those of `fuse` within float rounding. The differences are:

* no tensor has more than four axes: patches are cut and joined by moving rows of pixels;
* attention is written out, with its scale folded into the query weights, and a layer each for
  queries, keys and values;
* tokens are the rows of matrices, so each linear layer is one matrix product with a bias;
* norms have no scale and shift: these are folded into the next layer.

`REWRITES` maps each type of head and block to its rewrite; any other type is an error.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.exports.spec import ExportError
from mobilevit.models.classifier import Classifier as Classifier
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import (
    FeedForward,
    InvertedResidual,
    SampleNorm,
    SelfAttention,
    SeparableSelfAttention,
    TransformerLayer,
)
from mobilevit.models.mobilevit import (
    Backbone,
    MobileViTBlock,
    MobileViTv2Block,
    resize,
    round_up,
)
from mobilevit.models.registry import Network
from mobilevit.models.segmentation import (
    AtrousPyramid,
    PoolingPyramid,
    Segmenter,
)
from mobilevit.models.ssdlite import SSDLite


def inference_graph(model: Network) -> nn.Module:
    """Copy a network, not fused, for export; the outputs are those of `fuse(model)`."""
    graph = rewrite(fuse(model))
    graph.to(memory_format=torch.contiguous_format)
    return graph.eval().requires_grad_(False)


def rewrite(module: nn.Module) -> nn.Module:
    """Rewrite a fused head or block, which may be changed, by its type."""
    rewriter = REWRITES.get(type(module))
    if rewriter is None:
        raise ExportError(
            f"{type(module).__name__} cannot be exported: {__name__}.REWRITES has no rewrite for it"
        )
    return rewriter(module)


@torch.no_grad()
def absorb(norm: nn.LayerNorm | SampleNorm, following: nn.Linear | nn.Conv2d) -> None:
    """Fold a norm's scale and shift into the next linear layer or 1x1 convolution."""
    # In float64: rounding accumulates over the layers.
    weight = following.weight.flatten(1).double()  # [out, d]
    bias = weight @ norm.bias.double()
    if following.bias is not None:
        bias += following.bias
    following.weight.copy_((weight * norm.weight.double()).view_as(following.weight))
    following.bias = nn.Parameter(bias.to(following.weight.dtype), requires_grad=False)


def split(joined: nn.Linear, **sizes: int) -> nn.ModuleDict:
    """A linear layer as one for each part of its outputs, so that nothing has to split them."""
    parts = (values.split(list(sizes.values())) for values in (joined.weight, joined.bias))
    return nn.ModuleDict(
        {
            name: weighted(nn.Linear, weight, bias)
            for name, weight, bias in zip(sizes, *parts, strict=True)
        }
    )


class Attention(nn.Module):
    """`SelfAttention` written out, over rows."""

    def __init__(self, trained: SelfAttention) -> None:
        super().__init__()
        dim = trained.out.in_features
        self.width = dim // trained.heads
        self.qkv, self.out = split(trained.qkv, query=dim, key=dim, value=dim), trained.out
        with torch.no_grad():
            for values in self.qkv["query"].parameters():
                values.mul_(self.width**-0.5)

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """`[B * N * P, d]` -> `[B * N * P, d]`, B = `samples`, N = `tokens`."""
        q, k, v = (
            layer(x).reshape(samples, tokens, -1, self.width) for layer in self.qkv.values()
        )  # [B, N, P * heads, d / heads]
        weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(dim=-1)
        y = (weights @ v.transpose(1, 2)).transpose(1, 2)
        return self.out(y.reshape(x.shape))


class SeparableAttention(nn.Module):
    """`SeparableSelfAttention` over rows, with the key of one token: the mean by the scores.

    The key layer is linear and the scores sum to 1, so the mean of the keys is the key of the mean.
    """

    def __init__(self, trained: SeparableSelfAttention) -> None:
        super().__init__()
        self.dim = trained.dim
        self.qkv = split(trained.qkv, query=1, key=self.dim, value=self.dim)
        self.out = trained.out

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """`[B * P * N, d]` -> `[B * P * N, d]`, B = `samples`, N = `tokens`."""
        # In float32, as `halve` leaves the last layer: products with the context overflow float16.
        scores = self.qkv["query"](x).float().reshape(-1, 1, tokens).softmax(dim=-1)
        mean = torch.bmm(scores, x.float().reshape(-1, tokens, self.dim)).to(x.dtype)
        context = self.qkv["key"](mean.reshape(-1, self.dim)).float()  # [B * P, d]
        y = F.relu(self.qkv["value"](x).float()).reshape(-1, tokens, self.dim) * context[:, None]
        return self.out(y.reshape(-1, self.dim)).to(x.dtype)


class BareNorm(nn.Module):
    """A norm over rows `[M, d]` of `samples` images, without scale and shift."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps = norm.eps


class TokenNorm(BareNorm):
    """`nn.LayerNorm` over rows."""

    def forward(self, x: Tensor, samples: int) -> Tensor:
        return F.layer_norm(x, x.shape[1:], eps=self.eps)


class BareSampleNorm(BareNorm):
    """`SampleNorm` over rows: over all of a sample's rows together."""

    def forward(self, x: Tensor, samples: int) -> Tensor:
        # In float32: a sum over so many values overflows float16.
        values = x.float().reshape(samples, 1, -1)
        return F.instance_norm(values, eps=self.eps).reshape(-1, x.shape[1]).to(x.dtype)


def bare_norm(trained: Any, following: Any) -> nn.Module:
    """A norm over rows, with its scale and shift folded into the next layer."""
    absorb(trained, following)
    return rewrite(trained)


class Layer(nn.Module):
    """`TransformerLayer` over rows."""

    def __init__(self, trained: TransformerLayer) -> None:
        super().__init__()
        feed_forward = trained.feed_forward
        assert isinstance(feed_forward, FeedForward)
        self.expand: nn.Linear = feed_forward.expand
        self.project: nn.Linear = feed_forward.project
        attention: Any = trained.attention
        self.norms = nn.ModuleList(
            [
                bare_norm(trained.attention_norm, attention.qkv),
                bare_norm(trained.feed_forward_norm, self.expand),
            ]
        )
        self.attention: Any = rewrite(attention)

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """Map rows to rows: `tokens` in each group that attends, B = `samples` images."""
        first, second = self.norms
        x = x + self.attention(first(x, samples), tokens, samples)
        return x + self.project(F.silu(self.expand(second(x, samples))))


def weighted(layer: type[nn.Module], weight: Tensor, bias: Tensor | None, **options: int) -> Any:
    """A layer with these weights `[out, in, ...]` and biases `[out]`."""
    outputs, inputs = weight.shape[:2]
    made: Any = layer(inputs, outputs, bias=bias is not None, device="meta", **options)
    made.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    made.bias = None if bias is None else nn.Parameter(bias.clone())
    return made


def as_linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as a linear layer over rows."""
    linear: nn.Linear = weighted(nn.Linear, conv.weight.flatten(1), conv.bias)
    return linear


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Cut a map into patches: `[B, C, H, W]` -> `[B, N, P, C]`, N patches of P pixels."""
    batch, channels, _, width = x.shape
    y = x.permute(0, 2, 3, 1).reshape(-1, patch, width // patch, patch * channels)
    y = y.transpose(1, 2)  # [B * H / p, W / p, p, p * C]
    return y.reshape(batch, -1, patch * patch, channels)


def to_map(patches: Tensor, patch: int, batch: int, height: int, width: int) -> Tensor:
    """Undo `to_patches`, also of rows `[B * N * P, C]`."""
    channels = patches.shape[-1]
    y = patches.reshape(-1, width // patch, patch, patch * channels).transpose(1, 2)
    return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class Block(nn.Module):
    """`MobileViTBlock` with both 1x1 convolutions on rows, where the map has fewer channels."""

    def __init__(self, trained: MobileViTBlock) -> None:
        super().__init__()
        self.patch = trained.patch
        self.local_conv = trained.local_conv
        self.local_project = as_linear(trained.local_project)
        self.layers = nn.ModuleList(map(rewrite, trained.transformer))
        self.global_project = as_linear(trained.global_project.conv)
        self.norm = bare_norm(trained.norm, self.global_project)
        self.fusion = trained.fusion

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        batch, _, height, width = x.shape
        tall, wide = round_up(height, self.patch), round_up(width, self.patch)
        tokens = tall // self.patch * (wide // self.patch)
        # A 1x1 convolution commutes with resizing and with cutting patches, its activation not.
        y = resize(self.local_conv(x), tall, wide, align_corners=False)
        y = self.local_project(to_patches(y, self.patch).flatten(0, 2))  # [B * N * P, d]
        for layer in self.layers:
            y = layer(y, tokens, batch)
        y = to_map(self.global_project(self.norm(y, batch)), self.patch, batch, tall, wide)
        y = F.silu(resize(y, height, width, align_corners=False))
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))


class Blockv2(nn.Module):
    """`MobileViTv2Block` with norms and transformer layers on rows."""

    def __init__(self, trained: MobileViTv2Block) -> None:
        super().__init__()
        self.patch = trained.patch
        self.local_conv, self.local_project = trained.local_conv, trained.local_project
        self.layers = nn.ModuleList(map(rewrite, trained.transformer))
        self.global_project = trained.global_project.conv
        self.norm = bare_norm(trained.norm, self.global_project)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H', W']`, both sides rounded up to full patches."""
        batch, patch = x.shape[0], self.patch
        height, width = round_up(x.shape[2], patch), round_up(x.shape[3], patch)
        tokens = height // patch * (width // patch)
        y = self.local_project(self.local_conv(resize(x, height, width, align_corners=True)))
        y = to_patches(y, patch).transpose(1, 2)  # [B, P, N, d]
        shape = y.shape
        y = y.flatten(0, 2)
        for layer in self.layers:
            y = layer(y, tokens, batch)
        y = self.norm(y, batch).reshape(shape).transpose(1, 2)
        return self.global_project(to_map(y, patch, batch, height, width))


class Stages(nn.Module):
    """`Backbone` without its checks of the image and its memory layout."""

    def __init__(self, trained: Backbone) -> None:
        super().__init__()
        self.out_indices = trained.out_indices
        self.stem = trained.stem
        self.stages = nn.ModuleList(
            nn.Sequential(*map(rewrite, stage))
            for stage in trained.stages[: self.out_indices[-1] + 1]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` -> the maps of `out_indices`."""
        x = self.stem(images)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return maps


def _with(*parts: str) -> Callable[[nn.Module], nn.Module]:
    """Rewrites these parts of a head in place, and removes dropout."""

    def rewriter(trained: nn.Module) -> nn.Module:
        for name, part in trained.named_children():
            if name in parts:
                trained.add_module(name, rewrite(part))
            elif name == "dropout":
                trained.add_module(name, nn.Identity())
            elif name == "aux":  # is for training only
                trained.add_module(name, None)
        return trained

    return rewriter


class AtrousGraph(nn.Module):
    """`AtrousPyramid` that projects the mean of the map separately and adds it.

    Splitting the product with the concatenated maps in two saves a fifth of the multiplications,
    and the mean need not be expanded to the size of the map.
    """

    def __init__(self, trained: AtrousPyramid) -> None:
        super().__init__()
        self.branches, self.pool = trained.branches, trained.pool
        joined = trained.project.conv
        pooled = self.pool.conv.out_channels
        sizes = [joined.in_channels - pooled, pooled]
        branch_weight, pool_weight = joined.weight.split(sizes, dim=1)
        self.project = weighted(nn.Conv2d, branch_weight, joined.bias, kernel_size=1)
        self.project_pool = weighted(nn.Conv2d, pool_weight, None, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, channels, H, W]`."""
        mean = self.project_pool(self.pool(x.mean(dim=(2, 3), keepdim=True)))
        maps = [branch(x) for branch in self.branches]
        return F.relu(self.project(torch.cat(maps, dim=1)) + mean)


REWRITES: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    Classifier: _with("backbone"),
    SSDLite: _with("backbone"),
    Segmenter: _with("backbone", "context"),
    Backbone: Stages,
    AtrousPyramid: AtrousGraph,
    PoolingPyramid: _with(),
    InvertedResidual: _with(),
    MobileViTBlock: Block,
    MobileViTv2Block: Blockv2,
    TransformerLayer: Layer,
    nn.LayerNorm: TokenNorm,
    SampleNorm: BareSampleNorm,
    SelfAttention: Attention,
    SeparableSelfAttention: SeparableAttention,
}
"""Fused heads and blocks of `mobilevit.models`, and what replaces them in the graph."""


@torch.no_grad()
def center_tokens(graph: nn.Module) -> None:
    """Make the mean of each of v1's tokens 0, in place, so that norms need not subtract it.

    The mean of a token's values reaches only norms: the layers that write to tokens leave it out.
    """
    for block in graph.modules():
        if isinstance(block, Block):
            layers: Any = block.layers
            writers = [part for layer in layers for part in (layer.attention.out, layer.project)]
            for linear in (block.local_project, *writers):
                for values in (linear.weight, linear.bias):
                    if values is not None:
                        values.copy_(values.double() - values.double().mean(dim=0))

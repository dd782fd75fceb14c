"""The inference graph of a network: the trained weights in operations that every runtime has.

The outputs are those of `fuse` within float rounding. The differences are:

* no tensor has more than four axes: patches are cut and joined by moving rows, then pixels;
* attention is written out, with its scale folded into the query weights;
* tokens are the rows of matrices, so each linear layer is one matrix product with a bias;
* v2's norms have no scale and shift: these are folded into the next layer;
* nothing depends on the batch size, nor on the image size if that is dynamic.

`REWRITES` maps each type of head and block to its rewrite; any other type is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.exports.spec import ExportError
from mobilevit.models.classifier import Classifier
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import (
    Activation,
    ConvNormAct,
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
from mobilevit.models.ssdlite import RawDetections, SSDLite


def inference_graph(model: Network, *, dynamic_size: bool = False) -> nn.Module:
    """Copy a network, not fused, for export; the outputs are those of `fuse(model)`.

    Unless `dynamic_size`, the graph takes images of one size, and maps that need no resizing are
    not resized.
    """
    graph = rewrite(fuse(model), dynamic_size)
    graph.to(memory_format=torch.contiguous_format)
    return graph.eval().requires_grad_(False)


def rewrite(module: nn.Module, dynamic_size: bool) -> nn.Module:
    """Rewrite a fused head or block, which may be changed, by its type."""
    rewriter = REWRITES.get(type(module))
    if rewriter is None:
        raise ExportError(
            f"{type(module).__name__} cannot be exported: {__name__}.REWRITES has no rewrite for it"
        )
    return rewriter(module, dynamic_size)


class Resize(NamedTuple):
    """How maps are resized."""

    align_corners: bool
    dynamic_size: bool

    def __call__(self, x: Tensor, height: int, width: int) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, height, width]`."""
        if not self.dynamic_size:
            return resize(x, height, width, align_corners=self.align_corners)
        # Unconditionally: a comparison of sizes would fix the graph to the example's outcome.
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=self.align_corners)


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


class Attention(nn.Module):
    """`SelfAttention` written out, over rows: `[G * N, d]`, G groups of N tokens."""

    def __init__(self, trained: SelfAttention) -> None:
        super().__init__()
        dim = trained.out.in_features
        self.heads, self.width = trained.heads, dim // trained.heads
        self.qkv, self.out = trained.qkv, trained.out
        with torch.no_grad():
            for values in (self.qkv.weight, self.qkv.bias):
                values[:dim] *= self.width**-0.5

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`."""
        qkv = self.qkv(x).reshape(-1, tokens, 3 * self.heads, self.width)
        q, k, v = qkv.permute(0, 2, 1, 3).chunk(3, dim=1)  # [G, heads, N, d / heads]
        weights = (q @ k.transpose(2, 3)).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2)  # [G, N, heads, d / heads]
        return self.out(y.reshape(-1, self.heads * self.width))


class SeparableAttention(nn.Module):
    """`SeparableSelfAttention` over rows."""

    def __init__(self, trained: SeparableSelfAttention) -> None:
        super().__init__()
        self.dim = trained.dim
        self.qkv, self.out = trained.qkv, trained.out

    def forward(self, x: Tensor, tokens: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`."""
        query, key, value = self.qkv(x).split([1, self.dim, self.dim], dim=1)
        scores = query.reshape(-1, 1, tokens).softmax(dim=-1)  # [G, 1, N]
        context = scores @ key.reshape(-1, tokens, self.dim)  # [G, 1, d]
        y = F.relu(value).reshape(-1, tokens, self.dim) * context
        return self.out(y.reshape(-1, self.dim))


class TokenNorm(nn.LayerNorm):
    """`nn.LayerNorm` over rows."""

    def __init__(self, trained: nn.LayerNorm) -> None:
        super().__init__(trained.normalized_shape, eps=trained.eps)
        self.weight, self.bias = trained.weight, trained.bias

    def forward(self, x: Tensor, samples: int = 1) -> Tensor:
        """`[M, d]` -> `[M, d]`; `samples` is there for the signature of `BareSampleNorm`."""
        return super().forward(x)


class BareSampleNorm(nn.Module):
    """`SampleNorm` over rows, without scale and shift."""

    def __init__(self, trained: SampleNorm) -> None:
        super().__init__()
        self.eps = trained.eps

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """`[samples * M, d]`, normalized over all of a sample's M rows together."""
        dim = x.shape[1]
        # In float32: a sum over so many values overflows float16.
        values = x.float().reshape(samples, 1, -1)
        return F.instance_norm(values, eps=self.eps).reshape(-1, dim).to(x.dtype)


def row_norm(trained: nn.Module, following: Any) -> TokenNorm | BareSampleNorm:
    """A norm over rows; the scale and shift it lacks are folded into the next layer."""
    if isinstance(trained, SampleNorm):
        absorb(trained, following)
        return BareSampleNorm(trained)
    if isinstance(trained, nn.LayerNorm):
        return TokenNorm(trained)
    raise ExportError(f"{type(trained).__name__} cannot be exported: no norm over rows replaces it")


class Layer(nn.Module):
    """`TransformerLayer` over rows."""

    def __init__(self, trained: TransformerLayer) -> None:
        super().__init__()
        feed_forward = trained.feed_forward
        assert isinstance(feed_forward, FeedForward)
        self.expand: nn.Linear = feed_forward.expand
        self.project: nn.Linear = feed_forward.project
        self.attention: Any = rewrite(trained.attention, False)
        self.norms = nn.ModuleList(
            [
                row_norm(trained.attention_norm, self.attention.qkv),
                row_norm(trained.feed_forward_norm, self.expand),
            ]
        )

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`, of B = `samples` images."""
        first, second = self.norms
        x = x + self.attention(first(x, samples), tokens)
        return x + self.project(F.silu(self.expand(second(x, samples))))


def as_linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as a linear layer over rows."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.flatten(1).contiguous(), requires_grad=False)
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return linear


class Block(nn.Module):
    """`MobileViTBlock` with both 1x1 convolutions on rows, where the map has fewer channels."""

    def __init__(self, trained: MobileViTBlock, dynamic_size: bool) -> None:
        super().__init__()
        self.patch = trained.patch
        self.resize = Resize(align_corners=False, dynamic_size=dynamic_size)
        self.local_conv = trained.local_conv
        self.local_project = as_linear(trained.local_project)
        self.layers = nn.ModuleList(rewrite(layer, False) for layer in trained.transformer)
        self.global_project = as_linear(trained.global_project.conv)
        self.norm: nn.Module = row_norm(trained.norm, self.global_project)
        self.act: Activation | None = trained.global_project.act
        self.fusion = trained.fusion

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        batch, channels, height, width = x.shape
        patch = self.patch
        tall, wide = round_up(height, patch), round_up(width, patch)
        resized = self.resize.dynamic_size or (tall, wide) != (height, width)
        # A 1x1 convolution commutes with resizing and with cutting patches.
        y = self.resize(self.local_conv(x), tall, wide).permute(0, 2, 3, 1)  # [B, H, W, C]
        # Tokens meet only those of the same place in their patch and of the same image, and their
        # order does not matter: places go ahead of images. Rows are moved first, then pixels.
        y = y.reshape(-1, patch, wide * channels).transpose(0, 1)  # [p, B * h, w * p * C]
        y = y.reshape(-1, patch, channels).transpose(0, 1)  # [p, p * B * h * w, C]
        tokens = tall // patch * (wide // patch)
        y = self.local_project(y.reshape(-1, channels))  # [p * p * B * N, d]
        for layer in self.layers:
            y = layer(y, tokens, batch)
        y = self.global_project(self.norm(y))
        if self.act is not None and not resized:
            y = self.act(y)
        y = y.reshape(patch, -1, channels).transpose(0, 1)  # [p * B * h * w, p, C]
        y = y.reshape(patch, -1, wide * channels).transpose(0, 1)  # [B * h, p, w * p * C]
        y = y.reshape(-1, tall, wide, channels).permute(0, 3, 1, 2)  # [B, C, H, W]
        y = self.resize(y, height, width)
        # After the resize, as in the network: an activation does not commute with it.
        if self.act is not None and resized:
            y = self.act(y)
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))


class Blockv2(nn.Module):
    """`MobileViTv2Block` with norms and transformer layers on rows."""

    def __init__(self, trained: MobileViTv2Block, dynamic_size: bool) -> None:
        super().__init__()
        self.patch = trained.patch
        self.resize = Resize(align_corners=True, dynamic_size=dynamic_size)
        self.local_conv, self.local_project = trained.local_conv, trained.local_project
        self.layers = nn.ModuleList(rewrite(layer, False) for layer in trained.transformer)
        self.global_project = trained.global_project.conv
        self.norm: nn.Module = row_norm(trained.norm, self.global_project)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H', W']`, both sides rounded up to full patches."""
        patch = self.patch
        height, width = round_up(x.shape[2], patch), round_up(x.shape[3], patch)
        y = self.local_project(self.local_conv(self.resize(x, height, width)))
        batch, dim = y.shape[:2]
        tokens = height // patch * (width // patch)
        y = y.permute(0, 2, 3, 1)  # [B, H, W, d]
        y = y.reshape(batch, -1, patch, width * dim).transpose(1, 2)  # [B, p, h, w * p * d]
        y = y.reshape(batch, -1, patch, dim).transpose(1, 2)  # [B, p, p * h * w, d]
        y = y.reshape(-1, dim)
        for layer in self.layers:
            y = layer(y, tokens, batch)
        y = self.norm(y, batch)
        y = y.reshape(batch, patch, -1, dim).transpose(1, 2)  # [B, p * h * w, p, d]
        y = y.reshape(batch, patch, -1, width * dim).transpose(1, 2)  # [B, h, p, w * p * d]
        return self.global_project(y.reshape(batch, height, width, dim).permute(0, 3, 1, 2))


class Stages(nn.Module):
    """`Backbone` without its checks of the image and its memory layout."""

    def __init__(self, trained: Backbone, dynamic_size: bool) -> None:
        super().__init__()
        self.out_indices = trained.out_indices
        self.stem = trained.stem
        self.stages = nn.ModuleList(
            nn.Sequential(*(rewrite(part, dynamic_size) for part in stage))
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


class ClassifierGraph(nn.Module):
    """`Classifier` for inference."""

    def __init__(self, trained: Classifier, dynamic_size: bool) -> None:
        super().__init__()
        self.backbone = Stages(trained.backbone, dynamic_size)
        self.expand, self.head = trained.expand, trained.head

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> logits `[B, K]`."""
        return self.head(self.expand(self.backbone(images)[-1]).mean(dim=(2, 3)))


class DetectorGraph(nn.Module):
    """`SSDLite` for inference."""

    def __init__(self, trained: SSDLite, dynamic_size: bool) -> None:
        super().__init__()
        self.backbone = Stages(trained.backbone, dynamic_size)
        self.extra, self.pool, self.heads = trained.extra, trained.pool, trained.heads
        self.num_classes = trained.num_classes

    def forward(self, images: Tensor) -> RawDetections:
        """`[B, 3, H, W]` -> logits and offsets of each anchor."""
        maps = list(self.backbone(images))
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        maps.append(F.relu(self.pool(maps[-1].mean(dim=(2, 3), keepdim=True))))
        width = 5 + self.num_classes
        outputs = [
            # x.shape[0], not len(x): that would fix the batch to the example's.
            head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
            for head, x in zip(self.heads, maps, strict=True)
        ]
        offsets, logits = torch.cat(outputs, dim=1).split([4, 1 + self.num_classes], dim=-1)
        return RawDetections(logits, offsets)


class SegmenterGraph(nn.Module):
    """`Segmenter` for inference, without an auxiliary head."""

    def __init__(self, trained: Segmenter, dynamic_size: bool) -> None:
        super().__init__()
        self.backbone = Stages(trained.backbone, dynamic_size)
        self.context = rewrite(trained.context, dynamic_size)
        self.predict = trained.predict
        self.resize = Resize(trained.align_corners, dynamic_size)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> logits `[B, K, H, W]`."""
        logits = self.predict(self.context(self.backbone(images)[-1]))
        return self.resize(logits, images.shape[2], images.shape[3])


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
        self.project = _projection(branch_weight, joined.bias)
        self.project_pool = _projection(pool_weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, channels, H, W]`."""
        mean = self.project_pool(self.pool(x.mean(dim=(2, 3), keepdim=True)))
        maps = [branch(x) for branch in self.branches]
        return F.relu(self.project(torch.cat(maps, dim=1)) + mean)


def _projection(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight.clone())
    conv.bias = None if bias is None else nn.Parameter(bias.clone())
    return conv


def _unchanged(module: nn.Module, dynamic_size: bool) -> nn.Module:
    return module


REWRITES: Mapping[type[nn.Module], Callable[[Any, bool], nn.Module]] = {
    Classifier: ClassifierGraph,
    SSDLite: DetectorGraph,
    Segmenter: SegmenterGraph,
    AtrousPyramid: lambda trained, _: AtrousGraph(trained),
    PoolingPyramid: _unchanged,
    InvertedResidual: _unchanged,
    MobileViTBlock: Block,
    MobileViTv2Block: Blockv2,
    TransformerLayer: lambda trained, _: Layer(trained),
    SelfAttention: lambda trained, _: Attention(trained),
    SeparableSelfAttention: lambda trained, _: SeparableAttention(trained),
}
"""Fused heads and blocks of `mobilevit.models`, and what replaces them in the graph."""


def stem_conv(graph: nn.Module) -> nn.Conv2d:
    """The convolution that takes the image."""
    stem = graph.get_submodule("backbone.stem")
    assert isinstance(stem, ConvNormAct)
    return stem.conv


@torch.no_grad()
def replace_layer_norms(graph: nn.Module, replacement: Callable[[nn.LayerNorm], nn.Module]) -> None:
    """Replace v1's layer norms, in place, by ones that only divide by the root mean square.

    The mean of a token's values reaches only norms, which subtract it: instead, the layers that
    write to the tokens leave it out. Scale and shift are folded into the next layer.
    """
    for block in graph.modules():
        if not isinstance(block, Block):
            continue
        for layer in block.layers:
            assert isinstance(layer, Layer)
            first, second = layer.norms
            assert isinstance(first, nn.LayerNorm) and isinstance(second, nn.LayerNorm)
            absorb(first, layer.attention.qkv)
            absorb(second, layer.expand)
            layer.norms = nn.ModuleList([replacement(first), replacement(second)])
            _subtract_mean(layer.attention.out)
            _subtract_mean(layer.project)
        _subtract_mean(block.local_project)
        assert isinstance(block.norm, nn.LayerNorm)
        absorb(block.norm, block.global_project)
        block.norm = replacement(block.norm)


def _subtract_mean(layer: nn.Linear) -> None:
    weight = layer.weight.double()
    layer.weight.copy_(weight - weight.mean(dim=0))
    if layer.bias is not None:
        bias = layer.bias.double()
        layer.bias.copy_(bias - bias.mean())

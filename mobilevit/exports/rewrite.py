"""The form of a network that every runtime takes: the trained weights in plainer operations.

Compared with what `fuse` gives, the outputs are the same within float rounding, and

* no tensor has more than four axes: patches are cut and joined by moving rows, then pixels;
* attention is written out, its scale multiplied into the weights that make the queries;
* tokens are the rows of matrices, so that each linear layer is one product with its bias;
* v2's norms have no scale and shift of their own: the next layer's weights hold them;
* no branch hangs on the batch size, nor on the image's size where that is to vary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.models.classifier import Classifier
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import (
    Activation,
    ConvNormAct,
    FeedForward,
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
from mobilevit.models.segmentation import AtrousPyramid, Segmenter
from mobilevit.models.ssdlite import RawDetections, SSDLite


class Sizing(NamedTuple):
    """How maps get another size."""

    align_corners: bool
    vary: bool
    """Whether the image's size may vary: then maps are always resized, to their own size too."""

    def __call__(self, x: Tensor, height: int, width: int) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, height, width]`."""
        if not self.vary:
            return resize(x, height, width, align_corners=self.align_corners)
        # A comparison of sizes would tie the graph to the answer that the example gave.
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=self.align_corners)


class Attention(nn.Module):
    """`SelfAttention` written out, over rows: `[G * N, d]`, G groups of N tokens."""

    def __init__(self, trained: SelfAttention) -> None:
        """Take the weights; the queries' are scaled."""
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
        """Take the weights."""
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


class BareSampleNorm(nn.Module):
    """`SampleNorm` over rows, without its scale and shift, which the next layer takes."""

    def __init__(self, trained: SampleNorm, following: nn.Linear | nn.Conv2d) -> None:
        """Multiply scale and shift into the layer that follows; it gets a bias if it has none."""
        super().__init__()
        self.eps = trained.eps
        with torch.no_grad():
            weight = following.weight.flatten(1)  # [out, d]; a 1x1 convolution or a linear layer
            shift = weight @ trained.bias
            bias = shift if following.bias is None else following.bias + shift
            following.weight.copy_((weight * trained.weight).view_as(following.weight))
        following.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """`[samples * M, d]`, normalised over all of a sample's M rows together."""
        dim = x.shape[1]
        # In float32: float16 has no room for a sum over so many values.
        whole = x.float().reshape(samples, 1, -1)
        return F.instance_norm(whole, eps=self.eps).reshape(-1, dim).to(x.dtype)


class Layer(nn.Module):
    """`TransformerLayer` over rows."""

    def __init__(self, trained: TransformerLayer) -> None:
        """Take the parts."""
        super().__init__()
        feed_forward = trained.feed_forward
        assert isinstance(feed_forward, FeedForward)
        self.expand, self.project = feed_forward.expand, feed_forward.project
        attention = trained.attention
        self.attention: Attention | SeparableAttention
        self.norms = nn.ModuleList([trained.attention_norm, trained.feed_forward_norm])
        if isinstance(attention, SelfAttention):
            self.attention = Attention(attention)
        else:
            assert isinstance(attention, SeparableSelfAttention)
            self.attention = SeparableAttention(attention)
            first, second = self.norms
            assert isinstance(first, SampleNorm) and isinstance(second, SampleNorm)
            self.norms = nn.ModuleList(
                [BareSampleNorm(first, attention.qkv), BareSampleNorm(second, self.expand)]
            )

    def forward(self, x: Tensor, tokens: int, samples: int) -> Tensor:
        """`[G * N, d]` -> `[G * N, d]`, N = `tokens`, of B = `samples` images."""
        first, second = self.norms
        separable = isinstance(self.attention, SeparableAttention)
        x = x + self.attention(first(x, samples) if separable else first(x), tokens)
        y = self.expand(second(x, samples) if separable else second(x))
        return x + self.project(F.silu(y))


def as_linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as a linear layer over rows."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.flatten(1).contiguous(), requires_grad=False)
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return linear


class Block(nn.Module):
    """`MobileViTBlock`; both 1x1 convolutions work on rows, where the map has fewer channels."""

    def __init__(self, trained: MobileViTBlock, *, vary: bool) -> None:
        """Take the parts of a fused block."""
        super().__init__()
        self.patch = trained.patch
        self.sizing = Sizing(align_corners=False, vary=vary)
        self.local_conv = trained.local_conv
        self.local_project = as_linear(trained.local_project)
        self.layers = nn.ModuleList(Layer(layer) for layer in _layers(trained))
        self.norm = trained.norm
        self.global_project = as_linear(trained.global_project.conv)
        self.act: Activation | None = trained.global_project.act
        self.fusion = trained.fusion

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        batch, channels, height, width = x.shape
        patch = self.patch
        tall, wide = round_up(height, patch), round_up(width, patch)
        resized = self.sizing.vary or (tall, wide) != (height, width)
        # Resizing and a 1x1 convolution may change places, so may the latter and the cutting.
        y = self.sizing(self.local_conv(x), tall, wide).permute(0, 2, 3, 1)  # [B, H, W, C]
        # No token meets one of another place in its patch, or of another image, and their order
        # does not matter: places go ahead of images. First rows are moved whole, then pixels.
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
        y = self.sizing(y, height, width)
        if self.act is not None and resized:
            y = self.act(y)
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))


class Blockv2(nn.Module):
    """`MobileViTv2Block`; the norms and all 1x1 convolutions but the first work on rows."""

    def __init__(self, trained: MobileViTv2Block, *, vary: bool) -> None:
        """Take the parts of a fused block."""
        super().__init__()
        self.patch = trained.patch
        self.sizing = Sizing(align_corners=True, vary=vary)
        self.local_conv, self.local_project = trained.local_conv, trained.local_project
        self.layers = nn.ModuleList(Layer(layer) for layer in _layers(trained))
        assert isinstance(trained.norm, SampleNorm)
        self.norm = BareSampleNorm(trained.norm, trained.global_project.conv)
        self.global_project = trained.global_project.conv

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H', W']`, both sides rounded up to whole patches."""
        patch = self.patch
        height, width = round_up(x.shape[2], patch), round_up(x.shape[3], patch)
        y = self.local_project(self.local_conv(self.sizing(x, height, width)))
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


def _layers(block: MobileViTBlock | MobileViTv2Block) -> list[TransformerLayer]:
    return [layer for layer in block.transformer if isinstance(layer, TransformerLayer)]


class Stages(nn.Module):
    """`Backbone` without its demands on the image and its layout in memory."""

    def __init__(self, trained: Backbone, *, vary: bool) -> None:
        """Take the stages of a fused backbone, their last blocks in the form for export."""
        super().__init__()
        self.out_indices = trained.out_indices
        self.stem = trained.stem
        self.stages = nn.ModuleList()
        for stage in trained.stages[: self.out_indices[-1] + 1]:
            self.stages.append(nn.Sequential(*(_exported(part, vary) for part in stage)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[B, 3, H, W]` to the maps of `out_indices`."""
        x = self.stem(images)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return maps


def _exported(part: nn.Module, vary: bool) -> nn.Module:
    if isinstance(part, MobileViTBlock):
        return Block(part, vary=vary)
    return Blockv2(part, vary=vary) if isinstance(part, MobileViTv2Block) else part


class ExportClassifier(nn.Module):
    """`Classifier` in the form for export."""

    def __init__(self, trained: Classifier, *, vary: bool) -> None:
        """Take the parts of a fused network."""
        super().__init__()
        self.backbone = Stages(trained.backbone, vary=vary)
        self.expand, self.head = trained.expand, trained.head

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]` to logits `[B, K]`."""
        return self.head(self.expand(self.backbone(images)[-1]).mean(dim=(2, 3)))


class ExportDetector(nn.Module):
    """`SSDLite` in the form for export."""

    def __init__(self, trained: SSDLite, *, vary: bool) -> None:
        """Take the parts of a fused network."""
        super().__init__()
        self.backbone = Stages(trained.backbone, vary=vary)
        self.extra, self.pool, self.heads = trained.extra, trained.pool, trained.heads
        self.num_classes = trained.num_classes

    def forward(self, images: Tensor) -> RawDetections:
        """Map images `[B, 3, H, W]` to what is said of each anchor."""
        maps = list(self.backbone(images))
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        maps.append(F.relu(self.pool(maps[-1].mean(dim=(2, 3), keepdim=True))))
        width = 5 + self.num_classes
        said = [
            # The batch stays a symbol: len(x) would make it the example's number.
            head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
            for head, x in zip(self.heads, maps, strict=True)
        ]
        offsets, logits = torch.cat(said, dim=1).split([4, 1 + self.num_classes], dim=-1)
        return RawDetections(logits, offsets)


class Pyramid(nn.Module):
    """`AtrousPyramid` whose mean of the whole map is projected by itself, and then added.

    That is the product of joined maps in two parts: a fifth less to multiply, and no map of one
    value that has to be spread out.
    """

    def __init__(self, trained: AtrousPyramid) -> None:
        """Take the parts of a fused network."""
        super().__init__()
        self.branches, self.pool = trained.branches, trained.pool
        joined = trained.project.conv
        own = self.pool.conv.out_channels
        views, whole = joined.weight.split([joined.in_channels - own, own], dim=1)
        self.project = _projection(views, joined.bias)
        self.project_pool = _projection(whole, None)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, channels, H, W]`."""
        whole = self.project_pool(self.pool(x.mean(dim=(2, 3), keepdim=True)))
        views = [branch(x) for branch in self.branches]
        return F.relu(self.project(torch.cat(views, dim=1)) + whole)


def _projection(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A 1x1 convolution with these weights."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight.clone())
    conv.bias = None if bias is None else nn.Parameter(bias.clone())
    return conv


class ExportSegmenter(nn.Module):
    """`Segmenter` in the form for export, without an auxiliary head."""

    def __init__(self, trained: Segmenter, *, vary: bool) -> None:
        """Take the parts of a fused network."""
        super().__init__()
        self.backbone = Stages(trained.backbone, vary=vary)
        context = trained.context
        self.context = Pyramid(context) if isinstance(context, AtrousPyramid) else context
        self.predict = trained.predict
        self.sizing = Sizing(trained.align_corners, vary)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]` to logits `[B, K, H, W]`."""
        logits = self.predict(self.context(self.backbone(images)[-1]))
        return self.sizing(logits, images.shape[2], images.shape[3])


ExportForm = ExportClassifier | ExportDetector | ExportSegmenter


def export_form(model: Network, *, vary: bool = False) -> ExportForm:
    """Copy a network for export: fused, and in operations that every runtime has.

    The outputs are those of `fuse(model)` within float rounding. The original is left as it was.

    Args:
        model: a network of `create_model` or `load`, not yet fused.
        vary: whether the exported graph is to take images of any size. If not, maps that need no
            resizing are not resized.
    """
    fused = fuse(model)
    form: ExportForm
    if isinstance(fused, Classifier):
        form = ExportClassifier(fused, vary=vary)
    elif isinstance(fused, SSDLite):
        form = ExportDetector(fused, vary=vary)
    else:
        form = ExportSegmenter(fused, vary=vary)
    form.to(memory_format=torch.contiguous_format)
    return form.eval().requires_grad_(False)


def stem_of(form: ExportForm) -> nn.Conv2d:
    """The first convolution, which takes the image."""
    stem = form.backbone.stem
    assert isinstance(stem, ConvNormAct)
    return stem.conv

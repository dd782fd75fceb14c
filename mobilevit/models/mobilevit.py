"""MobileViT (Mehta and Rastegari, ICLR 2022) and MobileViTv2: their blocks and the backbone.

Five stages give maps at strides 2, 4, 8, 16 and 32; the last three each end in a MobileViT block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.models.config import ModelConfig
from mobilevit.models.layers import (
    ConvNormAct,
    FeedForward,
    InvertedResidual,
    PointwiseConv,
    SampleNorm,
    SelfAttention,
    SeparableSelfAttention,
    TransformerLayer,
)


def unfold(x: Tensor, patch: int) -> Tensor:
    """Cut a map into patches: `[B, d, H, W]` -> `[B, P, N, d]`, H and W multiples of `patch`.

    P = patch^2 counts the pixels of a patch, N = H * W / P the patches. Attention runs along N, so
    a pixel attends to the pixels at the same place in all other patches (the paper's Figure 4).
    """
    batch, dim, height, width = x.shape
    x = x.permute(0, 2, 3, 1)  # [B, H, W, d], the layout in memory
    x = x.reshape(batch, height // patch, patch, width // patch, patch, dim)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, patch * patch, -1, dim)


def fold(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Undo `unfold`: `[B, P, N, d]` -> `[B, d, H, W]`, channels-last."""
    batch, _, _, dim = tokens.shape
    x = tokens.reshape(batch, patch, patch, height // patch, width // patch, dim)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, height, width, dim).permute(0, 3, 1, 2)


def round_up(side: int, patch: int) -> int:
    """The smallest multiple of `patch` that is at least `side`."""
    # Not -(-side // patch): exported graphs truncate a division instead of flooring it.
    return (side + patch - 1) // patch * patch


def resize(x: Tensor, height: int, width: int, *, align_corners: bool) -> Tensor:
    """Resize a map bilinearly, unless it has that size already."""
    # Symbols of a graph of any size are not compared: that would fix it to the example's outcome.
    known = all(isinstance(side, int) for side in (*x.shape[-2:], height, width))
    if known and x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=align_corners)


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Options of a backbone: what the paper's ablations vary, and dropout."""

    in_channels: int = 3
    """Channels of the input images."""
    out_indices: Sequence[int] = (0, 1, 2, 3, 4)
    """The stages, 0 to 4, whose maps a backbone returns."""
    output_stride: int | None = None
    """The coarsest stride, 8, 16 or 32; None: 16 in segmentation, else 32."""
    patch_sizes: Sequence[int] = (2, 2, 2)
    """Patch sides in the last three stages: the paper's configuration A; its B is (8, 4, 2)."""
    heads: int | Sequence[int] = 4
    """Attention heads, one number or one for each of the last three stages (v1 only)."""
    kernel_size: int = 3
    """Kernel size n of a MobileViT block's n x n convolutions, odd."""
    fusion: bool = True
    """Whether a block's input is fused with its output (v1 only; paper, Figure 12)."""
    dropout: float | None = None
    """Dropout after attention and feed-forward; None: 0.1 for S and XS, 0.05 for XXS, 0 for v2."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    ffn_dropout: float = 0.0
    """Dropout inside the feed-forward layers."""

    def __post_init__(self) -> None:
        if self.output_stride not in (None, 8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {self.output_stride}")
        if not self.out_indices or not set(self.out_indices) <= set(range(5)):
            raise ValueError(f"out_indices must name stages from 0 to 4, not {self.out_indices}")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")
        check_three(patch_sizes=self.patch_sizes)
        if not isinstance(self.heads, int):
            check_three(heads=self.heads)


def check_three(**options: Sequence[int]) -> None:
    """Check that options are three numbers of at least 1 each."""
    for option, values in options.items():
        if len(values) != 3 or min(values) < 1:
            raise ValueError(f"{option} needs three numbers of at least 1, not {tuple(values)}")


class MobileViTBlock(nn.Module):
    """MobileViT block (section 3.1): local representation, transformers as convolutions, fusion."""

    unsupported: ClassVar[tuple[str, ...]] = ()
    """Backbone options that the block does not have."""

    def __init__(
        self,
        channels: int,
        dim: int,
        layers: int,
        options: BackboneOptions,
        *,
        stage: int,
        dilation: int = 1,
    ) -> None:
        """`stage` counts the last three from 0; `dilation` is ignored, as in the authors' v1."""
        super().__init__()
        self.patch = options.patch_sizes[stage]
        heads = options.heads if isinstance(options.heads, int) else options.heads[stage]
        kernel_size = options.kernel_size
        self.local_conv = ConvNormAct(channels, channels, kernel_size=kernel_size)
        self.local_project = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.Sequential(
            *(
                TransformerLayer(
                    nn.LayerNorm(dim),
                    SelfAttention(dim, heads=heads, dropout=options.attention_dropout),
                    nn.LayerNorm(dim),
                    FeedForward(dim, 2 * dim, dropout=options.ffn_dropout),
                    dropout=options.dropout or 0.0,
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.global_project = ConvNormAct(dim, channels)
        self.fusion = (
            ConvNormAct(2 * channels, channels, kernel_size=kernel_size) if options.fusion else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`, any H and W."""
        height, width = x.shape[-2:]
        y = self.local_project(self.local_conv(x))  # [B, d, H, W]

        # Patches must tile the map: it is stretched to whole patches, and shrunk back below.
        padded = round_up(height, self.patch), round_up(width, self.patch)
        tokens = unfold(resize(y, *padded, align_corners=False), self.patch)  # [B, P, N, d]
        batch, pixels = tokens.shape[:2]
        tokens = self.norm(self.transformer(tokens.flatten(0, 1)))  # [B * P, N, d]
        tokens = tokens.unflatten(0, (batch, pixels))
        y = resize(fold(tokens, self.patch, *padded), height, width, align_corners=False)

        y = self.global_project(y)  # [B, C, H, W]
        return y if self.fusion is None else self.fusion(torch.cat((x, y), dim=1))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class MobileViTv2Block(nn.Module):
    """MobileViTv2 block: depthwise local representation, separable attention, no fusion."""

    unsupported: ClassVar[tuple[str, ...]] = ("heads", "fusion")

    def __init__(
        self,
        channels: int,
        dim: int,
        layers: int,
        options: BackboneOptions,
        *,
        stage: int,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.patch = options.patch_sizes[stage]
        self.local_conv = ConvNormAct(
            channels,
            channels,
            kernel_size=options.kernel_size,
            dilation=dilation,
            groups=channels,
        )
        self.local_project = nn.Conv2d(channels, dim, 1, bias=False)
        hidden = 2 * dim // 16 * 16
        self.transformer = nn.Sequential(
            *(
                TransformerLayer(
                    SampleNorm(dim),
                    SeparableSelfAttention(dim, dropout=options.attention_dropout),
                    SampleNorm(dim),
                    FeedForward(dim, hidden, dropout=options.ffn_dropout, linear=PointwiseConv),
                    dropout=options.dropout or 0.0,
                )
                for _ in range(layers)
            )
        )
        self.norm = SampleNorm(dim)
        self.global_project = ConvNormAct(dim, channels, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H', W']`, both sides rounded up to full patches."""
        height, width = self.output_size(*x.shape[-2:])
        x = resize(x, height, width, align_corners=True)  # as the authors' code; never undone
        x = self.local_project(self.local_conv(x))  # [B, d, H', W']
        tokens = self.norm(self.transformer(unfold(x, self.patch)))  # [B, P, N, d]
        return self.global_project(fold(tokens, self.patch, height, width))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return round_up(height, self.patch), round_up(width, self.patch)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers that define a variant's backbone: the columns of the paper's Table 4."""

    block: type[MobileViTBlock] | type[MobileViTv2Block]
    stem: int
    """Channels of the first convolution."""
    channels: tuple[int, ...]
    """Channels of the five stages' maps."""
    dims: tuple[int, ...]
    """Widths d of the transformers in the last three stages."""
    depths: tuple[int, ...] = (2, 4, 3)
    """Transformer layers L of the last three stages."""
    expansion: int
    """Widening factor of the inverted residuals."""
    stage2_blocks: int
    """Inverted residuals in the second stage."""
    dropout: float
    classifier_dropout: float
    classifier_channels: int | None
    """Channels of the 1x1 convolution before the classifier; None: there is none."""


class FeatureInfo(NamedTuple):
    """One map that a backbone returns."""

    name: str
    channels: int
    stride: int


class Backbone(nn.Module):
    """The five stages of MobileViT; `backbone(images)` returns the maps of `out_indices`."""

    name: str
    config: ModelConfig

    def __init__(
        self, architecture: Architecture, options: BackboneOptions = BackboneOptions()
    ) -> None:
        super().__init__()
        if options.dropout is None:
            options = replace(options, dropout=architecture.dropout)
        output_stride, in_channels = options.output_stride or 32, options.in_channels
        self.in_channels = in_channels
        self.out_indices = tuple(sorted(set(options.out_indices)))

        channels, expansion = architecture.channels, architecture.expansion
        self.stem = ConvNormAct(in_channels, architecture.stem, kernel_size=3, stride=2)
        self.stage1 = nn.Sequential(
            InvertedResidual(architecture.stem, channels[0], stride=1, expansion=expansion)
        )
        self.stage2 = nn.Sequential(
            InvertedResidual(channels[0], channels[1], stride=2, expansion=expansion),
            *(
                InvertedResidual(channels[1], channels[1], stride=1, expansion=expansion)
                for _ in range(architecture.stage2_blocks - 1)
            ),
        )
        # At an output stride of 16 or 8 the last one or two strides become dilation. As in the
        # authors' code, inverted residuals are dilated one stage late (the last one by 2 at stride
        # 8, none at 16), v2's local convolutions at once (by 2, then 4), v1's not at all.
        strides, dilation = [2, 4], 1
        for index in (2, 3, 4):
            width, dim = channels[index], architecture.dims[index - 2]
            stride = 2 if strides[-1] < output_stride else 1
            residual = InvertedResidual(
                channels[index - 1], width, stride=stride, expansion=expansion, dilation=dilation
            )
            strides.append(strides[-1] * stride)
            dilation *= 2 // stride
            depth = architecture.depths[index - 2]
            block = architecture.block(
                width, dim, depth, options, stage=index - 2, dilation=dilation
            )
            self.add_module(f"stage{index + 1}", nn.Sequential(residual, block))

        self.channels = channels[-1]
        self.feature_info = [
            FeatureInfo(f"stage{index + 1}", channels[index], strides[index])
            for index in self.out_indices
        ]

    @property
    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"stage{number}") for number in range(1, 6)]  # type: ignore[misc]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[B, in_channels, H, W]`, values in [0, 1], to a list of `[B, C, H', W']`.

        `feature_info` gives C and the stride of each map, `feature_sizes` H' and W'.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must be [B, {self.in_channels}, H, W], not {list(images.shape)}"
            )
        x = self.stem(images)  # channels-last from here on, as the weights are
        maps = []
        for index, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return maps

    def feature_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The (height, width) of each map for images of this size; v2 rounds up to full patches."""
        size = (height + 1) // 2, (width + 1) // 2
        sizes = []
        for index, stage in enumerate(self.stages):
            for module in stage:
                if isinstance(module, InvertedResidual):
                    stride = module.depthwise.conv.stride[0]
                    size = (size[0] + stride - 1) // stride, (size[1] + stride - 1) // stride
                elif isinstance(module, MobileViTBlock | MobileViTv2Block):
                    size = module.output_size(*size)
            if index in self.out_indices:
                sizes.append(size)
        return sizes

"""Semantic segmentation: DeepLabv3 (MobileViT paper, section 4.2.2) and PSPNet.

A context module adds information from its surroundings to each position of the last map; each
position is classified, and the logits are resized to the image's size. Heads use ReLU, not SiLU.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.models.config import ModelConfig
from mobilevit.models.layers import ConvNormAct
from mobilevit.models.mobilevit import Backbone, resize

AUX_CHANNELS = 128
"""The auxiliary head's width, unless a quarter of its input channels is more."""
AUX_DROPOUT = 0.1
GRIDS = (1, 2, 3, 6)
"""Regions along each side of a map in PSPNet's four branches."""


class SegmentationLogits(NamedTuple):
    """Output of a network with an auxiliary head, in training mode."""

    logits: Tensor
    """`[B, num_classes, H, W]`."""
    aux: Tensor
    """The same from the map of stage 4, for a second loss."""


class Segmenter(nn.Module):
    """A backbone, a context module and a classifier of positions."""

    name: str
    config: ModelConfig
    head_modules: ClassVar[tuple[str, ...]] = ("context", "predict", "aux")

    def __init__(
        self,
        backbone: Backbone,
        context: AtrousPyramid | PoolingPyramid,
        *,
        num_classes: int,
        channels: int,
        classifier_dropout: float,
        aux: bool,
        align_corners: bool,
    ) -> None:
        """`backbone` returns the map of stage 5, and before it that of stage 4 if there is `aux`.

        `context` gives the last map `channels` channels. `num_classes` may include background.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.align_corners = align_corners
        self.backbone = backbone
        self.context = context
        self.dropout = nn.Dropout2d(classifier_dropout)
        self.predict = nn.Conv2d(channels, num_classes, 1)
        self.aux = AuxHead(backbone.feature_info[-2].channels, num_classes) if aux else None

    @property
    def fixed_size(self) -> str | None:
        return self.context.fixed_size

    def forward(self, images: Tensor) -> Tensor | SegmentationLogits:
        """Map images `[B, C, H, W]`, values in [0, 1], to logits `[B, num_classes, H, W]`.

        In training mode, a network with an auxiliary head returns both heads' logits.
        """
        maps = self.backbone(images)
        logits = self._resize(self.predict(self.dropout(self.context(maps[-1]))), images)
        if self.aux is None or not self.training:
            return logits
        return SegmentationLogits(logits, self._resize(self.aux(maps[-2]), images))

    def _resize(self, logits: Tensor, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)


class AuxHead(nn.Module):
    """A 3x3 convolution, then a classifier of positions."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        channels = max(in_channels // 4, AUX_CHANNELS)
        self.conv = ConvNormAct(in_channels, channels, kernel_size=3, act=F.relu)
        self.dropout = nn.Dropout2d(AUX_DROPOUT)
        self.predict = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, num_classes, H, W]`."""
        return self.predict(self.dropout(self.conv(x)))


class PooledNorm(nn.BatchNorm2d):
    """Batch norm of a pooled map; a single value per channel is normalised by running statistics.

    In training, one image pooled to one position has no variance of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.numel() > self.num_features:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


def pooled_conv(in_channels: int, channels: int) -> ConvNormAct:
    """A 1x1 convolution of pooled maps that can also be trained on a single image."""
    conv = ConvNormAct(in_channels, channels, act=F.relu)
    conv.norm = PooledNorm(channels)
    return conv


class AtrousPyramid(nn.Module):
    """DeepLabv3's context module (ASPP): a 1x1, three dilated 3x3 convolutions and the mean."""

    fixed_size: ClassVar[str | None] = None

    def __init__(
        self, in_channels: int, channels: int, *, rates: tuple[int, int, int], dropout: float
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(in_channels, channels, act=F.relu)])
        for rate in rates:
            self.branches.append(
                ConvNormAct(in_channels, channels, kernel_size=3, dilation=rate, act=F.relu)
            )
        self.pool = pooled_conv(in_channels, channels)
        self.project = ConvNormAct(5 * channels, channels, act=F.relu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, channels, H, W]`."""
        views = [branch(x) for branch in self.branches]
        mean = self.pool(x.mean(dim=(2, 3), keepdim=True))  # [B, channels, 1, 1]
        views.append(mean.expand_as(views[0]))
        return self.dropout(self.project(torch.cat(views, dim=1)))


class PoolingPyramid(nn.Module):
    """PSPNet's context module: a map and the means of its regions, at four grids."""

    fixed_size: ClassVar[str | None] = "PSPNet's regions are cut for one image size"

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        width = in_channels // len(GRIDS) // 16 * 16
        self.branches = nn.ModuleList(pooled_conv(in_channels, width) for _ in GRIDS)
        self.fusion = ConvNormAct(
            in_channels + len(GRIDS) * width, channels, kernel_size=3, act=F.relu
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, channels, H, W]`."""
        views = [x]
        for grid, branch in zip(GRIDS, self.branches, strict=True):
            means = branch(F.adaptive_avg_pool2d(x, grid))  # [B, width, grid, grid]
            # Always with aligned corners, however the logits are resized at the end.
            views.append(resize(means, *x.shape[-2:], align_corners=True))
        return self.fusion(torch.cat(views, dim=1))

"""DeepLabv3: semantic segmentation of a MobileViT's last map (MobileViT paper, section 4.2.2).

Convolutions with holes of several widths look around every position of the map; each is classified,
and the logits are stretched to the image's size. What PSPNet shares with it is here as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.models.config import ModelConfig
from mobilevit.models.layers import ConvNormAct, initialise
from mobilevit.models.mobilevit import Backbone

AUX_CHANNELS = 128
"""The auxiliary head's width, unless a quarter of its map's is more."""
AUX_DROPOUT = 0.1


class SegmentationLogits(NamedTuple):
    """What a network with an auxiliary head says in training."""

    logits: Tensor
    """`[B, num_classes, H, W]`."""
    aux: Tensor
    """The same from the map of stage 4, for a second loss."""


class Segmenter(nn.Module):
    """A backbone, a module that brings each position its context, and a classifier of positions."""

    name: str
    options: dict[str, Any]
    config: ModelConfig

    def __init__(
        self,
        backbone: Backbone,
        context: nn.Module,
        *,
        num_classes: int,
        channels: int,
        dropout: float,
        aux: bool,
        align_corners: bool,
    ) -> None:
        """Join the parts.

        Args:
            backbone: lists the map of stage 5, and ahead of it that of stage 4 if there is `aux`.
            context: maps the last map to one of `channels` channels and the same size.
            num_classes: length of each position's logits; a background class is one of them.
            channels: what the classifier takes.
            dropout: of whole channels, ahead of the classifier.
            aux: whether training has a head on stage 4 too.
            align_corners: how logits are stretched to the image's size.

        Raises:
            ValueError: fewer than one class.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.align_corners = align_corners
        self.backbone = backbone
        self.context = context
        self.dropout = nn.Dropout2d(dropout)
        self.predict = nn.Conv2d(channels, num_classes, 1)
        self.aux = AuxHead(backbone.feature_info[-2].channels, num_classes) if aux else None

    def forward(self, images: Tensor) -> Tensor | SegmentationLogits:
        """Map images `[B, C, H, W]`, values in [0, 1], to logits `[B, num_classes, H, W]`.

        In training mode a network with an auxiliary head gives its logits as well.
        """
        maps = self.backbone(images)
        logits = self._stretch(self.predict(self.dropout(self.context(maps[-1]))), images)
        if self.aux is None or not self.training:
            return logits
        return SegmentationLogits(logits, self._stretch(self.aux(maps[-2]), images))

    def _stretch(self, logits: Tensor, images: Tensor) -> Tensor:
        """`[B, K, H / stride, W / stride]` -> `[B, K, H, W]`."""
        size = images.shape[-2:]
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)


class AuxHead(nn.Module):
    """Logits of a map: a 3x3 convolution, then a classifier of positions."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        """`in_channels` of the map."""
        super().__init__()
        channels = max(in_channels // 4, AUX_CHANNELS)
        self.conv = ConvNormAct(in_channels, channels, kernel_size=3, act=F.relu)
        self.dropout = nn.Dropout2d(AUX_DROPOUT)
        self.predict = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, num_classes, H, W]`."""
        return self.predict(self.dropout(self.conv(x)))


class PooledNorm(nn.BatchNorm2d):
    """Batch norm of a pooled map; one value a channel is scaled by the running statistics.

    In training a batch of one image, pooled to one position, has no variance of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        if not self.training or x.numel() > self.num_features:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


def pooled_conv(in_channels: int, channels: int) -> ConvNormAct:
    """A 1x1 convolution of pooled maps, which also trains on one image."""
    conv = ConvNormAct(in_channels, channels, act=F.relu)
    conv.norm = PooledNorm(channels)
    return conv


class AtrousPyramid(nn.Module):
    """DeepLabv3's pyramid: five views of a map, joined (its paper calls it ASPP).

    A 1x1 convolution, a 3x3 one with holes for each of three rates, and the mean of the whole map.
    The head's parts use ReLU, not SiLU.
    """

    def __init__(
        self, in_channels: int, channels: int, *, rates: tuple[int, int, int], dropout: float
    ) -> None:
        """`channels` of every view and of the result; `dropout` is on its single values."""
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
        whole = self.pool(x.mean(dim=(2, 3), keepdim=True))  # [B, channels, 1, 1]
        views.append(whole.expand_as(views[0]))
        return self.dropout(self.project(torch.cat(views, dim=1)))


class DeepLabv3(Segmenter):
    """Semantic segmentation by convolutions with holes."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        channels: int,
        rates: tuple[int, int, int],
        aspp_dropout: float,
        dropout: float,
        aux: bool,
        align_corners: bool,
    ) -> None:
        """`rates` are the dilations of the pyramid's 3x3 convolutions; the rest as `Segmenter`.

        Raises:
            ValueError: fewer than one class.
        """
        super().__init__(
            backbone,
            AtrousPyramid(backbone.channels, channels, rates=rates, dropout=aspp_dropout),
            num_classes=num_classes,
            channels=channels,
            dropout=dropout,
            aux=aux,
            align_corners=align_corners,
        )


def initialise_segmenter(model: Segmenter) -> None:
    """Draw initial weights as the 2021 code for segmentation: linear layers narrower than usual.

    As `initialise`, but linear layers are normal with standard deviation 0.01.
    """
    initialise(model, linear_std=0.01)

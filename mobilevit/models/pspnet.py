"""PSPNet: semantic segmentation with means of a map's regions, as MobileViTv2's authors use it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.models.deeplabv3 import Segmenter, pooled_conv
from mobilevit.models.layers import ConvNormAct
from mobilevit.models.mobilevit import Backbone, resize

GRIDS = (1, 2, 3, 6)
"""A map is cut into so many regions along each side."""


class PoolingPyramid(nn.Module):
    """The map and the means of its regions, at four grids, joined by a 3x3 convolution.

    The head's parts use ReLU, not SiLU.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        """`channels` of the result; each grid has a quarter of the map's, in whole sixteens."""
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
            # Always with aligned corners, however the logits are stretched at the end.
            views.append(resize(means, *x.shape[-2:], align_corners=True))
        return self.fusion(torch.cat(views, dim=1))


class PSPNet(Segmenter):
    """Semantic segmentation by a pyramid of means."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        channels: int,
        dropout: float,
        aux: bool,
        align_corners: bool,
    ) -> None:
        """As `Segmenter`.

        Raises:
            ValueError: fewer than one class.
        """
        super().__init__(
            backbone,
            PoolingPyramid(backbone.channels, channels),
            num_classes=num_classes,
            channels=channels,
            dropout=dropout,
            aux=aux,
            align_corners=align_corners,
        )

"""A U-Net on a MobileViT: a small decoder over the backbone's five feature maps.

python examples/unet.py            # new weights
python examples/unet.py WEIGHTS    # a model folder, a checkpoint, a published name, a Hub id
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

import mobilevit


class UNet(nn.Module):
    """Per-pixel logits at the image's own size."""

    def __init__(self, name: str, *, num_classes: int, weights: str | None = None) -> None:
        """`name`: a variant; `weights`: what `create_model` takes."""
        super().__init__()
        self.backbone = mobilevit.create_model(name, weights=weights, features_only=True)
        widths = [info.channels for info in self.backbone.feature_info]
        self.ups = nn.ModuleList(
            Conv2dNormActivation(below + skip, skip, 3, activation_layer=nn.SiLU)
            for below, skip in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB images `[B, 3, H, W]` in [0, 1] to logits `[B, num_classes, H, W]`."""
        if self.backbone.config.preprocessing.channel_order == "bgr":  # as the weights of 2021
            images = images.flip(1)
        *skips, x = self.backbone(images)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
            x = up(torch.cat([x, skip], dim=1))
        return F.interpolate(self.head(x), size=images.shape[-2:], mode="bilinear")


if __name__ == "__main__":
    weights = sys.argv[1] if len(sys.argv) > 1 else None
    model = UNet("mobilevit_xxs", num_classes=21, weights=weights).eval()
    with torch.inference_mode():
        print(model(torch.rand(1, 3, 200, 300)).shape)

"""torchvision's Faster R-CNN on a MobileViT, with a feature pyramid over strides 8, 16 and 32.

python examples/faster_rcnn.py            # new weights
python examples/faster_rcnn.py WEIGHTS    # a model folder, a checkpoint, a published name, ...
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

import mobilevit


class Pyramid(nn.Module):
    """A backbone as torchvision's detectors want it: named maps, all of one width."""

    out_channels = 128

    def __init__(self, name: str, *, weights: str | None = None) -> None:
        """`name`: a variant; `weights`: what `create_model` takes."""
        super().__init__()
        self.backbone = mobilevit.create_model(
            name, weights=weights, features_only=True, out_indices=(2, 3, 4)
        )
        widths = [info.channels for info in self.backbone.feature_info]
        self.pyramid = FeaturePyramidNetwork(widths, self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map RGB images `[B, 3, H, W]` in [0, 1] to maps by the names of their stages."""
        if self.backbone.config.preprocessing.channel_order == "bgr":  # as the weights of 2021
            images = images.flip(1)
        names = [info.name for info in self.backbone.feature_info]
        return self.pyramid(dict(zip(names, self.backbone(images), strict=True)))


def faster_rcnn(name: str, *, num_classes: int, weights: str | None = None) -> FasterRCNN:
    """Build the detector; class 0 is background. Images are RGB in [0, 1] without mean or std."""
    return FasterRCNN(
        Pyramid(name, weights=weights),
        num_classes=num_classes,
        min_size=320,
        max_size=512,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        rpn_anchor_generator=AnchorGenerator(
            sizes=((32,), (96,), (224,)), aspect_ratios=((0.5, 1.0, 2.0),) * 3
        ),
        box_roi_pool=MultiScaleRoIAlign(["stage3", "stage4", "stage5"], 7, sampling_ratio=2),
    )


if __name__ == "__main__":
    weights = sys.argv[1] if len(sys.argv) > 1 else None
    model = faster_rcnn("mobilevit_xxs", num_classes=21, weights=weights).eval()
    with torch.inference_mode():
        print(model([torch.rand(3, 240, 320)])[0]["boxes"].shape)

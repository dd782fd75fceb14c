"""SSDLite: object detection in one pass over six maps (MobileViT paper, section 4.2).

The two coarsest maps of a backbone and four smaller ones have anchors, boxes around every position.
For each anchor the network predicts class logits and offsets to an object's box.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from mobilevit.models.config import ModelConfig
from mobilevit.models.layers import ConvNormAct, initialise
from mobilevit.models.mobilevit import Backbone

EXTRA_CHANNELS = (256, 128, 128)
"""Channels of the maps at strides 64, 128 and 256."""
GLOBAL_CHANNELS = 64
"""Channels of the last map, which has one position for the entire image."""
HEAD_CHANNELS = (512, 256, 256, 128, 128, 64)
"""Hidden channels of the six heads."""
ASPECT_RATIOS = ([2, 3], [2, 3], [2, 3], [2, 3], [2, 3], [2])
"""Of each map's anchors besides the square ones; each stands for its reciprocal too."""
SCALES = torch.linspace(0.1, 1.05, len(HEAD_CHANNELS) + 1).tolist()
"""Sides s_i of the square anchors, relative to the image's; each map also has sqrt(s_i s_(i+1))."""
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""Factors of the network's offsets."""


class RawDetections(NamedTuple):
    """The network's output for each of A anchors."""

    logits: Tensor
    """`[B, A, 1 + num_classes]`; the first is background."""
    offsets: Tensor
    """`[B, A, 4]`: centre x, y relative to the anchor's sides, log of width and height."""


class SeparableConv(nn.Sequential):
    """A depthwise 3x3 convolution of stride 2, then a pointwise one; ReLU only after the second."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels, in_channels, kernel_size=3, stride=2, groups=in_channels, act=None
        )
        self.pointwise = ConvNormAct(in_channels, out_channels, act=F.relu)


class Head(nn.Module):
    """The output of one map: at each position, for each anchor, four offsets, then the logits."""

    def __init__(self, in_channels: int, channels: int, outputs: int, *, pointwise: bool) -> None:
        """`pointwise` leaves out the depthwise convolution, for the map of one position."""
        super().__init__()
        self.project = (
            nn.Identity()
            if in_channels == channels
            else ConvNormAct(in_channels, channels, act=F.relu)
        )
        self.depthwise = (
            nn.Identity()
            if pointwise
            else ConvNormAct(channels, channels, kernel_size=3, groups=channels, act=None)
        )
        self.predict = nn.Conv2d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, outputs, H, W]`."""
        return self.predict(self.depthwise(self.project(x)))


class SSDLite(nn.Module):
    """A backbone that returns the maps of its last two stages, four further maps, and six heads."""

    name: str
    config: ModelConfig
    head_modules: ClassVar[tuple[str, ...]] = ("extra", "pool", "heads")
    fixed_size: ClassVar[str | None] = "a detector's anchors belong to one image size"

    def __init__(self, backbone: Backbone, *, num_classes: int) -> None:
        """`num_classes` does not count background."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.backbone = backbone
        self.num_classes = num_classes
        widths = [info.channels for info in backbone.feature_info]
        self.extra = nn.ModuleList()
        for channels in EXTRA_CHANNELS:
            self.extra.append(SeparableConv(widths[-1], channels))
            widths.append(channels)
        self.pool = nn.Conv2d(widths[-1], GLOBAL_CHANNELS, 1, bias=False)
        widths.append(GLOBAL_CHANNELS)
        counts = [2 + 2 * len(ratios) for ratios in ASPECT_RATIOS]
        last = len(counts) - 1
        self.heads = nn.ModuleList(
            Head(width, channels, count * (5 + num_classes), pointwise=index == last)
            for index, (width, channels, count) in enumerate(
                zip(widths, HEAD_CHANNELS, counts, strict=True)
            )
        )
        self._anchors: dict[tuple[int, int], Tensor] = {}

    def forward(self, images: Tensor) -> RawDetections:
        """Map images `[B, C, H, W]`, values in [0, 1], to the logits and offsets of each anchor."""
        maps = list(self.backbone(images))
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        maps.append(F.relu(self.pool(maps[-1].mean(dim=(2, 3), keepdim=True))))
        outputs = [
            head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 5 + self.num_classes)
            for head, x in zip(self.heads, maps, strict=True)
        ]
        offsets, logits = torch.cat(outputs, dim=1).split([4, 1 + self.num_classes], dim=-1)
        return RawDetections(logits, offsets)

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The (height, width) of the six maps for images of this size."""
        sizes = self.backbone.feature_sizes(height, width)
        for _ in EXTRA_CHANNELS:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return [*sizes, (1, 1)]

    def anchors(self, height: int, width: int) -> Tensor:
        """Anchors for images of this size: `[A, 4]`, centre x, y, width, height in [0, 1].

        They are on the CPU, in the order of the network's outputs, and cached for each size.
        """
        if (height, width) not in self._anchors:
            generator = DefaultBoxGenerator([list(r) for r in ASPECT_RATIOS], scales=SCALES)
            image = ImageList(torch.empty(1, 3, height, width, device="meta"), [(height, width)])
            maps = [torch.empty(1, 1, *size) for size in self.map_sizes(height, width)]
            with torch.inference_mode(False):  # training may use them later
                (corners,) = generator(image, maps)
                corners = corners / torch.tensor([width, height, width, height])
                self._anchors[height, width] = box_convert(corners, "xyxy", "cxcywh")
        return self._anchors[height, width]


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Move anchors `[A, 4]` (centre x, y, width, height) by predicted offsets `[..., A, 4]`.

    The result is corners x1, y1, x2, y2 `[..., A, 4]`, in the anchors' unit.
    """
    centre = offsets[..., :2] * CENTRE_VARIANCE * anchors[:, 2:] + anchors[:, :2]
    half = (offsets[..., 2:] * SIZE_VARIANCE).exp() * anchors[:, 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `decode`: offsets `[..., A, 4]` from anchors to boxes, one for each."""
    boxes = box_convert(boxes, "xyxy", "cxcywh")
    centre = (boxes[..., :2] - anchors[:, :2]) / (CENTRE_VARIANCE * anchors[:, 2:])
    size = (boxes[..., 2:] / anchors[:, 2:]).log() / SIZE_VARIANCE
    return torch.cat((centre, size), dim=-1)


def initialise_heads(model: SSDLite) -> None:
    """Initialise weights as the 2021 code for detection: Xavier uniform outside the backbone."""
    initialise(model.backbone, linear_std=0.01)
    for part in (model.extra, model.pool, model.heads):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

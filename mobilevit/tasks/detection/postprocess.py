"""Boxes from the outputs of SSDLite."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.models.ssdlite import RawDetections, decode
from mobilevit.utils.options import Interval, Options, PositiveShare

UNLIMITED = sys.maxsize


@dataclass(frozen=True, kw_only=True)
class PostProcessing(Options):
    """How outputs become boxes."""

    score: Annotated[float, Interval(0, 1)] = 0.01
    """Boxes below this probability are dropped."""
    pre_nms_topk: int = 400
    """Maximum number of boxes of a class before non-maximum suppression."""
    nms_threshold: PositiveShare = 0.5
    """Boxes of a class whose IoU with a more probable one is above this are suppressed."""
    max_per_class: int = UNLIMITED
    """Maximum number of boxes of a class after it."""
    max_detections: int = 200
    """Maximum number of boxes of an image."""


PRESETS: dict[str, PostProcessing] = {
    "later": PostProcessing(),
    "2021": PostProcessing(
        score=0.05, pre_nms_topk=UNLIMITED, max_per_class=200, max_detections=UNLIMITED
    ),
}
"""`2021` is the paper's code, `later` the authors' code since."""


class Detections(NamedTuple):
    """Objects in one image, most probable first."""

    boxes: BoundingBoxes
    """`[N, 4]`: corners in pixels of the image, whose size is the canvas size."""
    scores: Tensor
    """`[N]`: probabilities."""
    labels: Tensor
    """`[N]`: classes from 0 on."""


class SuppressedBoxes(NamedTuple):
    """Boxes of B images after decoding and suppression, as exported files return them."""

    boxes: Tensor
    """`[B, N, 4]`: corners x1, y1, x2, y2 as shares of the image's width and height."""
    scores: Tensor
    """`[B, N]`: probabilities, highest first."""
    labels: Tensor
    """`[B, N]`: classes from 0 on; -1 for padding."""


def detections(
    outputs: RawDetections | SuppressedBoxes,
    anchors: Tensor,
    sizes: Sequence[tuple[int, int]],
    preset: PostProcessing = PRESETS["later"],
) -> list[Detections]:
    """Turn outputs into boxes, scores and classes.

    Args:
        outputs: for B images. `SuppressedBoxes` are only filtered by their score.
        anchors: `[A, 4]`, centre x, y, width, height in [0, 1], on the outputs' device.
        sizes: (height, width) of each image in pixels, to which boxes are scaled.
        preset: which boxes are selected.
    """
    if isinstance(outputs, SuppressedBoxes):
        return [
            _scaled(boxes[kept], scores[kept], labels[kept].long(), size)
            for boxes, scores, labels, size in zip(*outputs, sizes, strict=True)
            for kept in [(labels >= 0) & (scores > preset.score)]
        ]
    corners = decode(outputs.offsets.float(), anchors)
    probabilities = outputs.logits.float().softmax(-1)[..., 1:]  # [B, A, K]
    found = []
    for boxes, scores, size in zip(corners, probabilities, sizes, strict=True):
        if preset.pre_nms_topk < len(scores):
            # The lowest score among a class's most probable boxes; ties may let a few more pass.
            limit = scores.topk(preset.pre_nms_topk, dim=0).values[-1]
            scores = scores.masked_fill(scores < limit, -1.0)
        anchor, label = (scores > preset.score).nonzero(as_tuple=True)
        score = scores[anchor, label]
        kept = batched_nms(boxes[anchor], score, label, preset.nms_threshold)  # highest first
        if preset.max_per_class < len(kept):
            kept = kept[_rank_in_class(label[kept]) < preset.max_per_class]
        kept = kept[: preset.max_detections]
        found.append(_scaled(boxes[anchor[kept]], score[kept], label[kept], size))
    return found


def _scaled(shares: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]) -> Detections:
    scale = shares.new_tensor(size).flip(0).repeat(2)  # width, height, width, height
    pixels = (shares * scale).clamp(min=0).minimum(scale)
    return Detections(BoundingBoxes(pixels, format="XYXY", canvas_size=size), scores, labels)


def _rank_in_class(labels: Tensor) -> Tensor:
    """The number of earlier boxes of the same class."""
    same = labels[:, None] == labels[None, :]
    return same.tril(-1).sum(1)

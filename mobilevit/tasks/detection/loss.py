"""The loss of SSDLite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from mobilevit.models.ssdlite import RawDetections, encode
from mobilevit.tasks.detection.dataset import Targets
from mobilevit.utils.options import Interval, NonNegative, Options, PositiveShare


@dataclass(frozen=True, kw_only=True)
class DetectionLossOptions(Options, name="detection.loss"):
    """The loss of SSDLite; the defaults are the authors' but for `min_negatives`."""

    iou_threshold: PositiveShare = 0.5
    """Anchors with at least this intersection over union with a box are matched to it."""
    negatives: Annotated[int, Interval(0)] = 3
    """Background anchors in the loss for each matched anchor."""
    min_negatives: Annotated[int, Interval(0)] = 8
    """Background anchors in the loss of an image, at least. With the authors' 0, images without
    boxes teach nothing, so that a network does not learn to find nothing."""
    location_weight: NonNegative = 1.0
    """Weight of the boxes' loss relative to that of the classes."""


def match(targets: Targets, anchors: Tensor, *, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Match anchors to boxes, for all images at once.

    An anchor is matched to the box with the highest IoU if that is at least `iou_threshold`.
    The best anchor of each box is always matched to it (if several boxes share it, to the last).
    `anchors`: `[A, 4]`, centre x, y, width, height in [0, 1].

    Returns:
        Classes `[B, A]`, 0 for background, else 1 + label; corners of the boxes `[B, A, 4]`, valid
        where there is a class.
    """
    boxes, labels = targets
    batch, count = labels.shape
    corners = box_convert(anchors, "cxcywh", "xyxy")
    ious = box_iou(boxes.reshape(-1, 4), corners).view(batch, count, -1)  # [B, M, A]
    exists = labels >= 0
    ious = ious.masked_fill(~exists[..., None], -1.0)
    best_iou, best_box = ious.max(dim=1)  # [B, A]
    best_anchor = ious.argmax(dim=2)  # [B, M]
    # Which box claims an anchor; boxes that do not exist claim one more, past the last.
    claims = torch.where(exists, best_anchor, len(anchors))
    claimed = best_box.new_full((batch, len(anchors) + 1), -1)
    numbers = torch.arange(count, device=labels.device).expand(batch, -1)
    claimed = claimed.scatter_reduce(1, claims, numbers, "amax")[:, :-1]
    matched = torch.where(claimed >= 0, claimed, best_box)
    positive = (claimed >= 0) | (best_iou >= iou_threshold)
    classes = torch.where(positive, 1 + labels.gather(1, matched), 0)
    return classes, boxes.gather(1, matched[..., None].expand(-1, -1, 4))


class DetectionLoss(NamedTuple):
    """The two parts of the loss, averaged over boxes."""

    classes: Tensor
    location: Tensor


def detection_loss(
    raw: RawDetections, targets: Targets, anchors: Tensor, options: DetectionLossOptions
) -> DetectionLoss:
    """SSD's loss: cross-entropy of classes, smooth L1 of the matched anchors' offsets.

    Of the background anchors of an image, only those with the largest loss count.
    `anchors`: `[A, 4]`, centre x, y, width, height in [0, 1].
    """
    logits, offsets = raw.logits.float(), raw.offsets.float()
    classes, boxes = match(targets, anchors, iou_threshold=options.iou_threshold)
    positive = classes > 0
    count = positive.sum().clamp(min=1)
    expected = encode(boxes, anchors)
    location = F.smooth_l1_loss(offsets[positive], expected[positive], reduction="sum") / count

    losses = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    losses = losses.view_as(classes)
    with torch.no_grad():
        wrong = losses.masked_fill(positive, -1.0)  # of background alone
        rank = wrong.argsort(dim=1, descending=True).argsort(dim=1)
        quota = (options.negatives * positive.sum(1)).clamp(min=options.min_negatives)
        hard = (rank < quota[:, None]) & ~positive
    return DetectionLoss((losses * (positive | hard)).sum() / count, location)

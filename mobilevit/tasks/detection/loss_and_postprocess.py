"""Detection: the loss of SSDLite, and boxes from its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_convert, box_iou
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.models.ssdlite import RawDetections, SSDLite, decode, encode
from mobilevit.utils.options import Interval, NonNegative, Options, PositiveShare


class Targets(NamedTuple):
    """Boxes of a batch of images, padded to the largest number M."""

    boxes: Tensor
    """`[B, M, 4]`: corners x1, y1, x2, y2 as shares of the image's width and height."""
    labels: Tensor
    """`[B, M]`: classes from 0 on; -1 for padding."""


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
    if not count:
        empty = corners.expand(batch, -1, -1)
        return labels.new_zeros(batch, len(anchors)), empty
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


@dataclass(frozen=True, kw_only=True)
class PostProcessing(Options):
    """How outputs become boxes."""

    score: Annotated[float, Interval(0, 1)] = 0.01
    """Boxes below this probability are dropped."""
    pre_nms_topk: int | None = 400
    """Maximum number of boxes of a class before non-maximum suppression."""
    nms_threshold: PositiveShare = 0.5
    """Boxes of a class whose IoU with a more probable one is above this are suppressed."""
    max_per_class: int | None = None
    """Maximum number of boxes of a class after it."""
    max_detections: int | None = 200
    """Maximum number of boxes of an image."""


PRESETS: dict[str, PostProcessing] = {
    "later": PostProcessing(),
    "2021": PostProcessing(score=0.05, pre_nms_topk=None, max_per_class=200, max_detections=None),
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
        if preset.pre_nms_topk is not None and preset.pre_nms_topk < len(scores):
            # The lowest score among a class's most probable boxes; ties may let a few more pass.
            limit = scores.topk(preset.pre_nms_topk, dim=0).values[-1]
            scores = scores.masked_fill(scores < limit, -1.0)
        anchor, label = (scores > preset.score).nonzero(as_tuple=True)
        score = scores[anchor, label]
        kept = batched_nms(boxes[anchor], score, label, preset.nms_threshold)  # highest first
        if preset.max_per_class is not None:
            kept = kept[_rank_in_class(label[kept]) < preset.max_per_class]
        kept = kept[: preset.max_detections]
        found.append(_scaled(boxes[anchor[kept]], score[kept], label[kept], size))
    return found


def _scaled(shares: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]) -> Detections:
    height, width = size
    scale = shares.new_tensor([width, height, width, height])
    pixels = (shares * scale).clamp(min=0).minimum(scale)
    canvas = BoundingBoxes(pixels, format="XYXY", canvas_size=(height, width))
    return Detections(canvas, scores, labels)


def _rank_in_class(labels: Tensor) -> Tensor:
    """The number of earlier boxes of the same class."""
    same = labels[:, None] == labels[None, :]
    return same.tril(-1).sum(1)


def detect(
    model: SSDLite,
    images: Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    preset: PostProcessing = PRESETS["later"],
) -> list[Detections]:
    """Detect objects in a batch of preprocessed images.

    Args:
        model: in evaluation mode.
        images: `[B, 3, H, W]`, values in [0, 1].
        sizes: (height, width) of the original images; None: H and W.
        preset: which boxes are selected.

    >>> from mobilevit import create_model
    >>> model = create_model("ssdlite_mobilevit_xxs", num_classes=3).eval()
    >>> (found,) = detect(model, torch.zeros(1, 3, 64, 64))
    >>> found.boxes.shape[1]
    4
    """
    height, width = images.shape[-2:]
    anchors = model.anchors(height, width).to(images.device)
    return detections(model(images), anchors, sizes or [(height, width)] * len(images), preset)

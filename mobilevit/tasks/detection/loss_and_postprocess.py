"""Detection: what SSDLite learns from, and what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_convert, box_iou
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.models.ssdlite import RawDetections, SSDLite, decode, encode
from mobilevit.utils.options import Interval, NonNegative, Options, PositiveShare


class Targets(NamedTuple):
    """Boxes of a batch of images, filled up to the largest number M."""

    boxes: Tensor
    """`[B, M, 4]`: corners x1, y1, x2, y2 as shares of the image's width and height."""
    labels: Tensor
    """`[B, M]`: classes from 0 on; -1 where there is no box."""


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


def match(targets: Targets, anchors: Tensor, *, overlap: float) -> tuple[Tensor, Tensor]:
    """Say which box each anchor stands for, for all images at once.

    An anchor stands for the box that it overlaps most, if by `overlap` at least; the best anchor of
    each box stands for it in any case (of several boxes with one best anchor, the last).

    Args:
        targets: the boxes.
        anchors: `[A, 4]`, centre x, y, width, height in [0, 1].
        overlap: least intersection over union.

    Returns:
        Classes `[B, A]`, 0 for background, else 1 + label; corners of the boxes `[B, A, 4]`, which
        mean something where there is a class.
    """
    boxes, labels = targets
    batch, most = labels.shape
    corners = box_convert(anchors, "cxcywh", "xyxy")
    if not most:
        empty = corners.expand(batch, -1, -1)
        return labels.new_zeros(batch, len(anchors)), empty
    overlaps = box_iou(boxes.reshape(-1, 4), corners).view(batch, most, -1)  # [B, M, A]
    exists = labels >= 0
    overlaps = overlaps.masked_fill(~exists[..., None], -1.0)
    best_overlap, best_box = overlaps.max(dim=1)  # [B, A]
    best_anchor = overlaps.argmax(dim=2)  # [B, M]
    # Which box claims an anchor; boxes that do not exist claim one more, past the last.
    claims = torch.where(exists, best_anchor, len(anchors))
    claimed = best_box.new_full((batch, len(anchors) + 1), -1)
    numbers = torch.arange(most, device=labels.device).expand(batch, -1)
    claimed = claimed.scatter_reduce(1, claims, numbers, "amax")[:, :-1]
    chosen = torch.where(claimed >= 0, claimed, best_box)
    positive = (claimed >= 0) | (best_overlap >= overlap)
    classes = torch.where(positive, 1 + labels.gather(1, chosen), 0)
    return classes, boxes.gather(1, chosen[..., None].expand(-1, -1, 4))


class DetectionLoss(NamedTuple):
    """The two parts of the loss, each for one box on average."""

    classes: Tensor
    location: Tensor


def detection_loss(
    raw: RawDetections, targets: Targets, anchors: Tensor, options: DetectionLossOptions
) -> DetectionLoss:
    """SSD's loss: cross-entropy over anchors that count, smooth L1 over those that stand for boxes.

    Of the background anchors of each image those count that are most wrongly taken for objects.

    Args:
        raw: the network's outputs for B images.
        targets: their boxes.
        anchors: `[A, 4]`, centre x, y, width, height in [0, 1].
        options: see `DetectionLossOptions`.
    """
    logits, offsets = raw.logits.float(), raw.offsets.float()
    classes, boxes = match(targets, anchors, overlap=options.iou_threshold)
    positive = classes > 0
    count = positive.sum().clamp(min=1)
    wanted = encode(boxes, anchors)
    location = F.smooth_l1_loss(offsets[positive], wanted[positive], reduction="sum") / count

    losses = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    losses = losses.view_as(classes)
    with torch.no_grad():
        wrong = losses.masked_fill(positive, -1.0)  # of background alone
        rank = wrong.argsort(dim=1, descending=True).argsort(dim=1)
        quota = (options.negatives * positive.sum(1)).clamp(min=options.min_negatives)
        hard = (rank < quota[:, None]) & ~positive
    return DetectionLoss((losses * (positive | hard)).sum() / count, location)


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """From the network's outputs to boxes; two presets have been published."""

    score: float = 0.01
    """Least probability of a box that is kept."""
    before: int | None = 400
    """Most boxes of a class ahead of non-maximum suppression."""
    overlap: float = 0.5
    """Boxes of one class that overlap a likelier one by more than this are suppressed."""
    each: int | None = None
    """Most boxes of a class after it."""
    most: int | None = 200
    """Most boxes of an image."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: such an option.
        """
        if not (0 <= self.score < 1 and 0 < self.overlap <= 1):
            raise ValueError(
                "score must be at least 0 and below 1, overlap above 0 and at most 1, not "
                f"{self.score} and {self.overlap}"
            )


PRESETS: dict[str, PostProcessing] = {
    "later": PostProcessing(),
    "2021": PostProcessing(score=0.05, before=None, each=200, most=None),
}
"""`2021` is the code of the paper, `later` the authors' since."""

Preset = Literal["later", "2021"]


class Detections(NamedTuple):
    """Objects in one image, likeliest first."""

    boxes: BoundingBoxes
    """`[N, 4]`: corners in pixels of the image, which is the canvas."""
    scores: Tensor
    """`[N]`: probabilities."""
    labels: Tensor
    """`[N]`: classes from 0 on."""


class SuppressedBoxes(NamedTuple):
    """Boxes of B images after decoding and suppression, as exported files give them."""

    boxes: Tensor
    """`[B, N, 4]`: corners x1, y1, x2, y2 as shares of the image's width and height."""
    scores: Tensor
    """`[B, N]`: probabilities, the highest first."""
    labels: Tensor
    """`[B, N]`: classes from 0 on; -1 where there is no box."""


class Detector(Protocol):
    """An SSDLite, or what answers in its place."""

    def __call__(self, images: Tensor, /) -> RawDetections | SuppressedBoxes:
        """Look at B prepared images, `[B, 3, H, W]`."""

    def anchors(self, height: int, width: int, /) -> Tensor:
        """Anchors of an image of this size: `[A, 4]`, centre x, y, width, height in [0, 1]."""


def detections(
    said: RawDetections | SuppressedBoxes,
    anchors: Tensor,
    sizes: list[tuple[int, int]],
    rule: PostProcessing = PRESETS["later"],
) -> list[Detections]:
    """Turn outputs into boxes, scores and classes.

    Args:
        said: the network's outputs for B images. Of boxes that are suppressed already those are
            kept that `rule` holds likely enough.
        anchors: `[A, 4]`, centre x, y, width, height in [0, 1], on the outputs' device.
        sizes: (height, width) of each image in pixels, to which boxes are scaled.
        rule: what is kept.
    """
    if isinstance(said, SuppressedBoxes):
        return [
            _placed(boxes[kept], scores[kept], labels[kept].long(), size)
            for boxes, scores, labels, size in zip(*said, sizes, strict=True)
            for kept in [(labels >= 0) & (scores > rule.score)]
        ]
    corners = decode(said.offsets.float(), anchors)
    scores = said.logits.float().softmax(-1)[..., 1:]  # [B, A, K]
    found = []
    for boxes, likely, size in zip(corners, scores, sizes, strict=True):
        if rule.before is not None and rule.before < len(likely):
            # The least score among a class's likeliest ones; ties may let a few more pass.
            limit = likely.topk(rule.before, dim=0).values[-1]
            likely = likely.masked_fill(likely < limit, -1.0)
        anchor, label = (likely > rule.score).nonzero(as_tuple=True)
        score = likely[anchor, label]
        kept = batched_nms(boxes[anchor], score, label, rule.overlap)  # likeliest first
        if rule.each is not None:
            kept = kept[_place_in_class(label[kept]) < rule.each]
        kept = kept[: rule.most]
        found.append(_placed(boxes[anchor[kept]], score[kept], label[kept], size))
    return found


def _placed(shares: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]) -> Detections:
    """Boxes as shares of an image -> in its pixels, ended at its edge."""
    height, width = size
    scale = shares.new_tensor([width, height, width, height])
    pixels = (shares * scale).clamp(min=0).minimum(scale)
    canvas = BoundingBoxes(pixels, format="XYXY", canvas_size=(height, width))
    return Detections(canvas, scores, labels)


def _place_in_class(labels: Tensor) -> Tensor:
    """How many of the same class stand before each."""
    same = labels[:, None] == labels[None, :]
    return same.tril(-1).sum(1)


def detect(
    model: SSDLite,
    images: Tensor,
    sizes: list[tuple[int, int]] | None = None,
    rule: PostProcessing = PRESETS["later"],
) -> list[Detections]:
    """Find objects in a batch of prepared images.

    Args:
        model: a detector in evaluation mode.
        images: `[B, 3, H, W]`, values in [0, 1].
        sizes: (height, width) of the images that these were made of; by default H and W.
        rule: what is kept.
    """
    height, width = images.shape[-2:]
    anchors = model.anchors(height, width).to(images.device)
    return detections(model(images), anchors, sizes or [(height, width)] * len(images), rule)

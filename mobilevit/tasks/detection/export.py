"""Exported detectors: decoding and suppression inside the file, and the comparison of boxes.

For runtimes without an operation for non-maximum suppression, it is written in matrix products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from mobilevit.models.ssdlite import RawDetections, SSDLite, decode
from mobilevit.tasks.detection.postprocess import PRESETS, SuppressedBoxes, detections
from mobilevit.tasks.export import Comparison, TaskExport, compare_logits, suppress

PRESET = PRESETS["later"]
"""Preset of exported files."""
CANDIDATES = 1000
"""Boxes of an image, of any class, that suppression by matrices considers: the most probable."""
ROUNDS = 24
"""Rounds of suppression by matrices. In a chain of boxes of which each overlaps only the next,
every second one stays; such a chain takes one round per box."""


class Boxes(nn.Module):
    """Raw outputs to boxes after decoding and class-aware suppression, most probable first.

    `anchors`: `[A, 4]`, centre x, y, width, height in [0, 1], for the file's only image size.
    `supports_nms`: whether to use the runtime's operation for suppression.
    """

    anchors: Tensor

    def __init__(self, anchors: Tensor, *, supports_nms: bool) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        self.supports_nms = supports_nms

    def forward(self, raw: RawDetections) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes `[B, N, 4]` as shares of the image's sides, scores `[B, N]`, labels `[B, N]`.

        If there are fewer than N boxes, the rest have label -1, and score and corners 0.
        """
        # Suppression and the exponential of sizes stay float32 in a float16 file too.
        corners = decode(raw.offsets.float(), self.anchors)
        return self.select(corners, raw.logits.float().softmax(dim=-1)[..., 1:].transpose(1, 2))

    def select(self, corners: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from corners `[B, A, 4]` and scores `[B, K, A]`."""
        anchors, classes = scores.shape[2], scores.shape[1]
        if PRESET.pre_nms_topk < anchors:
            # The lowest score among a class's most probable boxes; ties may let a few more pass.
            # By index: LiteRT's converter turns a `topk` of which only values are used into a sort
            # that its runtime does not have.
            last = scores.topk(PRESET.pre_nms_topk, dim=2).indices[..., -1:]
            scores = torch.where(scores < scores.gather(2, last), 0.0, scores)
        limit = min(PRESET.max_detections, classes * anchors)
        if self.supports_nms:
            scores = self.suppress(corners, scores)
            found, index = scores.flatten(1).topk(limit, dim=1)  # [B, N]
        else:
            count = min(CANDIDATES, classes * anchors)
            candidates, index = scores.flatten(1).topk(count, dim=1)
            boxes = corners.gather(1, (index % anchors)[..., None].repeat(1, 1, 4))
            candidates = self.suppress_by_matrices(boxes, candidates, index // anchors)
            found, order = candidates.topk(min(limit, count), dim=1)
            index = index.gather(1, order)
        boxes = corners.gather(1, (index % anchors)[..., None].repeat(1, 1, 4))
        exists = found > 0
        labels = torch.where(exists, index // anchors, -1)
        return boxes.clamp(0, 1) * exists[..., None], found, labels.to(torch.int32)

    def suppress(self, corners: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, K, A]`, with 0 for suppressed boxes."""
        limit = scores.shape[2]
        kept = suppress(corners, scores, limit, PRESET.nms_threshold, PRESET.score)
        ones = torch.ones_like(kept[:, 0], dtype=scores.dtype)
        places = (kept[:, 0], kept[:, 1], kept[:, 2])
        return scores * torch.zeros_like(scores).index_put(places, ones)

    def suppress_by_matrices(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The same for N candidates of all classes, most probable first: boxes `[B, N, 4]`.

        A box is suppressed if a more probable box of its class overlaps it and is itself kept. This
        is iterated: n rounds are exact for boxes reached by chains of fewer than n overlaps.
        """
        left, top, right, bottom = boxes.split([1] * 4, dim=2)  # [B, N, 1]
        width = torch.minimum(right, right.mT) - torch.maximum(left, left.mT)
        height = torch.minimum(bottom, bottom.mT) - torch.maximum(top, top.mT)
        shared = F.relu(width) * F.relu(height)  # [B, N, N]
        area = (right - left) * (bottom - top)
        overlapping = shared > PRESET.nms_threshold * (area + area.mT - shared)
        same = labels[:, :, None] == labels[:, None, :]
        # tril of a computed matrix: a constant mask of this size would be most of a small file.
        rivals = (overlapping & same).to(scores.dtype).tril(-1)  # more probable ones
        alive = (scores > PRESET.score).to(scores.dtype)[..., None]  # [B, N, 1]
        kept = alive
        for _ in range(ROUNDS):
            kept = alive * F.relu(
                1 - torch.bmm(rivals, kept)
            )  # a count of rivals: 0, or at least 1
        return scores * kept[..., 0]


def compare(
    model: SSDLite, images: Tensor, outputs: Sequence[Tensor], tolerance: float
) -> Comparison:
    """Compare boxes, image by image."""
    anchors = model.anchors(*images.shape[-2:])
    found = [
        _compare_boxes(RawDetections(*(part[None] for part in expected)), anchors, boxes, tolerance)
        for *expected, boxes in zip(*model(images), zip(*outputs, strict=True), strict=True)
    ]
    return Comparison.join(found)


def compare_raw(model: SSDLite, images: Tensor, outputs: Sequence[Tensor]) -> Comparison:
    """Compare logits, and the corners that offsets decode to."""
    expected, anchors = model(images), model.anchors(*images.shape[-2:])
    corners = decode(expected.offsets, anchors) - decode(outputs[1], anchors)
    logits = compare_logits(expected.logits, outputs[0], axis=2)
    return Comparison(torch.maximum(logits.differences, corners.abs().amax(-1)), logits.equal)


def _compare_boxes(
    expected: RawDetections, anchors: Tensor, outputs: Sequence[Tensor], tolerance: float
) -> Comparison:
    """Compare the boxes of one image.

    Which of two boxes is suppressed can depend on the last digit of their overlap. So every box of
    the file must be one of the network's candidates, with the same score and corners; and every box
    that PyTorch keeps must be in the file, or overlap one of its class there that is as probable.
    """
    (truth,) = detections(expected, anchors, [(1, 1)], PRESET)
    exists = outputs[2] >= 0
    boxes, scores, labels = (part[exists] for part in outputs)
    labels = labels.long()
    corners = decode(expected.offsets[0], anchors).clamp(0, 1)  # [A, 4]
    probabilities = expected.logits[0].softmax(-1)[:, 1:].T  # [K, A]

    off = (probabilities[labels] - scores[:, None]).abs()  # [N, A]
    off = torch.maximum(off, (corners - boxes[:, None]).abs().amax(-1))
    wrong = off.amin(1)

    true_boxes = truth.boxes.as_subclass(Tensor)
    covers = box_iou(true_boxes, boxes) >= PRESET.nms_threshold - tolerance  # [M, N]
    # A box outside the image has no area left, and so overlaps nothing.
    covers |= (true_boxes[:, None] - boxes).abs().amax(-1) <= tolerance
    covers &= truth.labels[:, None] == labels
    covered = (covers & (scores >= truth.scores[:, None] - tolerance)).any(1)
    # Boxes whose score is at the threshold can be on either side of it.
    floor = _floors(probabilities)
    if len(scores) == len(exists):
        floor = torch.maximum(floor, scores.min())
    missing = truth.scores[~covered & (truth.scores > floor[truth.labels] + tolerance)]

    same = truth.labels[:1].equal(labels[:1])
    return Comparison(torch.cat((wrong, missing)), torch.tensor([same]))


def _floors(probabilities: Tensor) -> Tensor:
    """The score `[K]` that a candidate of each class must exceed, from probabilities `[K, A]`."""
    floors = torch.full((len(probabilities),), PRESET.score)
    if PRESET.pre_nms_topk < probabilities.shape[1]:
        floors = torch.maximum(floors, probabilities.topk(PRESET.pre_nms_topk, dim=1).values[:, -1])
    return floors


def reference(model: SSDLite, images: Tensor, tolerance: float) -> dict[str, Any]:
    """The boxes of one image, and all candidates."""
    anchors = model.anchors(*images.shape[-2:])
    raw = model(images)
    (truth,) = detections(raw, anchors, [(1, 1)], PRESET)
    corners = decode(raw.offsets[0], anchors).clamp(0, 1)  # [A, 4]
    probabilities = raw.logits[0].softmax(-1)[:, 1:]  # [A, K]
    lowest = PRESET.score
    if len(truth.scores) == PRESET.max_detections:  # a file has no place for lower scores
        lowest = float(truth.scores[-1])
    anchor, label = (probabilities > lowest - tolerance).nonzero(as_tuple=True)
    candidates = _rows(label, probabilities[anchor, label], corners[anchor])
    found = _rows(truth.labels, truth.scores, truth.boxes.as_subclass(Tensor))
    values = {"found": found, "candidates": candidates, "floors": _floors(probabilities.T).tolist()}
    return {"boxes": {"overlap": PRESET.nms_threshold, **values}}


def reference_of_file(outputs: Sequence[Tensor], num_classes: int) -> dict[str, Any]:
    """The boxes of one image."""
    boxes, scores, labels = (part[0] for part in outputs)
    exists = labels >= 0
    found = _rows(labels[exists], scores[exists], boxes[exists])
    values = {"found": found, "candidates": found, "floors": [PRESET.score] * num_classes}
    return {"boxes": {"overlap": PRESET.nms_threshold, **values}}


def _rows(labels: Tensor, scores: Tensor, corners: Tensor) -> list[list[float]]:
    """Boxes as lists: label, score, x1, y1, x2, y2."""
    values = torch.cat((scores[:, None], corners), dim=1).double().round(decimals=6)
    return [[label, *row] for label, row in zip(labels.tolist(), values.tolist(), strict=True)]


EXPORT = TaskExport(
    outputs=("boxes", "scores", "labels"),
    raw_outputs=("logits", "offsets"),
    postprocess=lambda model, size, supports_nms: Boxes(
        model.anchors(size, size), supports_nms=supports_nms
    ),
    compare=compare,
    compare_raw=compare_raw,
    network_outputs=lambda outputs, raw: (RawDetections if raw else SuppressedBoxes)(*outputs),
    model_attributes=("anchors",),
    reference=reference,
    reference_of_file=reference_of_file,
)

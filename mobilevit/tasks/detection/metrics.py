"""How good a detector is: COCO's figures, and the errors behind them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from mobilevit.tasks.detection.dataset import Annotation, BoxSamples
from mobilevit.tasks.detection.loss_and_postprocess import (
    PRESETS,
    Detections,
    Detector,
    PostProcessing,
    detections,
)
from mobilevit.utils.clock import now
from mobilevit.utils.distributed import gather_items

if TYPE_CHECKING:
    from torchmetrics.detection import MeanAveragePrecision

FIGURES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
    "ar1": "mar_1",
    "ar10": "mar_10",
    "ar100": "mar_100",
    "ar_small": "mar_small",
    "ar_medium": "mar_medium",
    "ar_large": "mar_large",
}
"""COCO's twelve numbers: our names -> torchmetrics'."""

OVERLAP = 0.5
"""Intersection over union from which on a box counts as found, where single boxes are counted."""


class ClassAP(NamedTuple):
    """How good a detector is on one class; NaN where it has no boxes."""

    name: str
    boxes: int
    ap: float
    ap50: float


class ImageResult(NamedTuple):
    """One image, what is in it and what was found in it."""

    sample: int
    """Its place in the samples."""
    found: Detections
    """At the threshold or above it."""
    right: Tensor
    """bool `[N]`: which of these are right."""
    missed: int
    """Boxes that were not found."""

    @property
    def errors(self) -> int:
        """Boxes missed, and boxes found where there are none."""
        return self.missed + int((~self.right).sum())


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """COCO's figures over a set of images, and more; NaN where there is nothing to count."""

    classes: tuple[str, ...]
    images: int
    boxes: int
    """Crowds not counted."""
    ap: float
    """Mean over overlaps 0.50, 0.55, ..., 0.95 and classes; so the next two at one overlap."""
    ap50: float
    ap75: float
    ap_small: float
    """Of boxes under 32^2 pixels of the image; medium: under 96^2."""
    ap_medium: float
    ap_large: float
    ar1: float
    """Mean recall with at most 1, 10, 100 boxes an image."""
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: tuple[ClassAP, ...]
    curves: np.ndarray
    """Precision `[K, 101]` at overlap 0.5 and recall 0, 0.01, ..., 1; NaN without boxes."""
    threshold: float
    """The score at which F1 (overlap 0.5, all classes together) is best."""
    precision: float
    """At that threshold; so the recall."""
    recall: float
    worst: tuple[ImageResult, ...]
    """Images with most errors at that threshold, worst first."""
    some: tuple[ImageResult, ...]
    """Images from all over the set, not chosen for how they went."""
    network_ms: float
    """Median time of the network for an image."""
    after_ms: float
    """Median time of what follows it: decoding and suppression."""

    def figures(self) -> dict[str, float]:
        """COCO's twelve numbers."""
        return {name: getattr(self, name) for name in FIGURES}


def average_precision(*, details: bool = False) -> MeanAveragePrecision:
    """COCO's metric, by pycocotools; `details` adds classes and curves."""
    # Here, because torchmetrics takes seconds to import, and using a network needs none of it.
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        backend="pycocotools",
        # The metric's own are these in single precision, which moves AP by up to a thousandth:
        # a recall of 0.2 is less than 0.200000003.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        class_metrics=details,
        extended_summary=details,
    )
    metric.warn_on_many_detections = False  # that at most 100 count is COCO's rule
    return metric


def as_answer(found: Detections) -> dict[str, Tensor]:
    """What `MeanAveragePrecision` takes as an answer."""
    return {
        "boxes": found.boxes.as_subclass(Tensor).cpu(),
        "scores": found.scores.cpu(),
        "labels": found.labels.cpu(),
    }


def as_truth(said: Annotation) -> dict[str, Tensor]:
    """What `MeanAveragePrecision` takes as the truth; crowds are ignored in COCO's way."""
    return {
        "boxes": said.boxes,
        "labels": said.labels,
        "iscrowd": said.crowd.long(),
        "area": said.area,
    }


def coco_figures(values: dict[str, Tensor]) -> dict[str, float]:
    """COCO's twelve numbers out of what the metric computed; NaN for its -1, nothing to count."""
    named = {name: float(values[theirs]) for name, theirs in FIGURES.items()}
    return {name: float("nan") if value < 0 else value for name, value in named.items()}


def evaluate_detector(
    model: Detector,
    batches: Iterable[tuple[Tensor, Any, Tensor, Tensor]],
    samples: BoxSamples,
    *,
    rule: PostProcessing = PRESETS["later"],
    device: torch.device | str = "cpu",
    worst: int = 24,
    shown: int = 12,
) -> DetectionMetrics:
    """Evaluate a detector.

    Args:
        model: in evaluation mode on `device`; or what answers in a network's place.
        batches: images `[B, 3, H, W]`, anything, the samples' indices `[B]`, their (height, width).
        samples: where the boxes are, in pixels of the images.
        rule: what of the network's outputs is kept.
        device: where the images go.
        worst: how many of the worst images to keep.
        shown: how many others to keep.

    Raises:
        ValueError: there are no images.
    """
    metric = average_precision(details=True)
    metric.sync_on_compute = False  # each process has all answers by then
    network_times: list[float] = []
    after_times: list[float] = []
    answers: list[tuple[int, Detections, Annotation]] = []
    with torch.inference_mode():
        for images, _, indices, sizes in batches:
            on_device = images.to(device)
            anchors = model.anchors(*images.shape[-2:]).to(device)
            begun = now(device)
            said = model(on_device)
            between = now(device)
            found = detections(said, anchors, [(int(h), int(w)) for h, w in sizes], rule)
            network_times.append((between - begun) / len(images))
            after_times.append((now(device) - between) / len(images))
            for index, one in zip(indices.tolist(), found, strict=True):
                truth = samples.annotation(index)
                one = Detections(one.boxes.cpu(), one.scores.cpu(), one.labels.cpu())
                answers.append((index, one, truth))
    answers = sorted(gather_items(answers), key=lambda answer: answer[0])
    network_times, after_times = gather_items(network_times), gather_items(after_times)
    for _, one, truth in answers:
        metric.update([as_answer(one)], [as_truth(truth)])
    if not answers:
        raise ValueError("there is nothing to evaluate: no images")
    values = metric.compute()
    per_class, curves = _by_class(values, samples.classes, [said for *_, said in answers])
    threshold, precision, recall, per_image = _errors(answers)
    ranked = heapq.nlargest(worst, per_image, key=lambda image: image.errors)
    step = max(1, len(per_image) // shown)
    return DetectionMetrics(
        classes=samples.classes,
        images=len(answers),
        boxes=sum(int((~said.crowd).sum()) for *_, said in answers),
        **coco_figures(values),
        per_class=per_class,
        curves=curves,
        threshold=threshold,
        precision=precision,
        recall=recall,
        worst=tuple(image for image in ranked if image.errors),
        some=tuple(per_image[::step][:shown]),
        network_ms=1000 * float(np.median(network_times)),
        after_ms=1000 * float(np.median(after_times)),
    )


def _by_class(
    values: dict[str, Tensor], classes: Sequence[str], truth: Sequence[Annotation]
) -> tuple[tuple[ClassAP, ...], np.ndarray]:
    """Figures and curves of each class; the metric has only those that appear somewhere."""
    counts = torch.zeros(len(classes), dtype=torch.long)
    for said in truth:
        counts += said.labels[~said.crowd].bincount(minlength=len(classes))
    # [overlap, recall, class, area, most]: overlap 0.5 comes first, all areas, 100 boxes
    precision = values["precision"][:, :, :, 0, -1].numpy()
    curves = np.full((len(classes), precision.shape[1]), np.nan)
    ap = np.full(len(classes), np.nan)
    ap50 = ap.copy()
    for place, label in enumerate(torch.atleast_1d(values["classes"]).tolist()):
        mine = precision[:, :, place]
        if counts[label] and (mine > -1).any():
            curves[label], ap[label], ap50[label] = mine[0], mine.mean(), mine[0].mean()
    rows = zip(classes, counts.tolist(), ap.tolist(), ap50.tolist(), strict=True)
    return tuple(ClassAP(*row) for row in rows), curves


def matched(found: Detections, said: Annotation) -> tuple[Tensor, Tensor]:
    """Give each found box, likeliest first, the box of its class that it overlaps most.

    Returns:
        bool `[N]`: which found boxes are right (overlap at least 0.5, each box once); bool `[N]`:
        which are neither right nor wrong, since they lie in a crowd.
    """
    right = torch.zeros(len(found.labels), dtype=torch.bool)
    ignored = right.clone()
    if not len(found.labels) or not len(said.labels):
        return right, ignored
    same = found.labels[:, None] == said.labels[None, :]
    overlaps = box_iou(found.boxes.as_subclass(Tensor), said.boxes) * same
    free = ~said.crowd
    # In a crowd a box is as far as it lies in the crowd, as COCO has it.
    corners = found.boxes.as_subclass(Tensor)
    low = corners[:, None, :2].maximum(said.boxes[None, :, :2])
    high = corners[:, None, 2:].minimum(said.boxes[None, :, 2:])
    own = (corners[:, 2:] - corners[:, :2]).prod(1)[:, None]
    shares = (high - low).clamp(min=0).prod(2) / own.clamp(min=1e-9) * same * said.crowd
    for row in range(len(right)):
        mine = overlaps[row] * free
        best = int(mine.argmax())
        if mine[best] >= OVERLAP:
            right[row], free[best] = True, False
        elif said.crowd.any() and shares[row].max() >= OVERLAP:
            ignored[row] = True
    return right, ignored


def _errors(
    answers: Sequence[tuple[int, Detections, Annotation]],
) -> tuple[float, float, float, list[ImageResult]]:
    """The threshold of the best F1, precision and recall at it, and the images at it."""
    evaluated = [(index, found, said, *matched(found, said)) for index, found, said in answers]
    total = sum(int((~said.crowd).sum()) for *_, said in answers)
    counted = [(found.scores[~out], right[~out]) for _, found, _, right, out in evaluated]
    scores = torch.cat([score for score, _ in counted])
    order = scores.argsort(descending=True)
    hits = torch.cat([right for _, right in counted])[order].cumsum(0).double()
    number = torch.arange(1, len(order) + 1).double()
    if not len(order) or not total:
        threshold, precision, recall = 0.5, float("nan"), 0.0 if total else float("nan")
    else:
        best = int((2 * hits / (number + total)).argmax())
        threshold = float(scores[order[best]])
        precision, recall = float(hits[best] / number[best]), float(hits[best] / total)
    images = []
    for index, found, said, right, ignored in evaluated:
        shown = (found.scores >= threshold) & ~ignored
        kept = Detections(found.boxes[shown], found.scores[shown], found.labels[shown])
        missed = int((~said.crowd).sum()) - int(right[shown].sum())
        images.append(ImageResult(index, kept, right[shown], missed))
    return threshold, precision, recall, images


def coco_results(
    image_id: int, found: Detections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image as COCO's result files have them: x, y, width, height."""
    boxes = found.boxes.as_subclass(Tensor).tolist()
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 6),
        }
        for (x1, y1, x2, y2), label, score in zip(
            boxes, found.labels.tolist(), found.scores.tolist(), strict=True
        )
    ]

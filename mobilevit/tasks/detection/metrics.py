"""Metrics of detection: COCO's figures, and the errors behind them."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pycocotools import mask
from rich.console import RenderableType
from torch import Tensor
from torchvision.ops import box_convert

from mobilevit.tasks.base import Metric, Metrics, Timing
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.detection.dataset import Annotation
from mobilevit.tasks.detection.postprocess import Detections
from mobilevit.tasks.report import number
from mobilevit.utils.distributed import gather_items
from mobilevit.utils.tables import percent, table

FIGURES = {
    "ap": "map", "ap50": "map_50", "ap75": "map_75",
    "ap_small": "map_small", "ap_medium": "map_medium", "ap_large": "map_large",
    "ar1": "mar_1", "ar10": "mar_10", "ar100": "mar_100",
    "ar_small": "mar_small", "ar_medium": "mar_medium", "ar_large": "mar_large",
}  # fmt: skip
"""COCO's twelve numbers: our names -> torchmetrics'."""

IOU_THRESHOLD = 0.5
"""Lowest IoU at which a predicted box is correct, where single boxes are counted."""


class ClassAP(NamedTuple):
    """Metrics of one class; NaN if it has no boxes."""

    name: str
    boxes: int
    ap: float
    ap50: float


class ImageResult(NamedTuple):
    """Predictions and errors in one image."""

    sample: int
    """Index in the samples."""
    found: Detections
    """Without those in crowds, which are neither correct nor wrong."""
    correct: Tensor
    """bool `[N]`: which of `found` are correct."""
    missed: int
    """Number of true boxes that were not found."""

    @property
    def errors(self) -> int:
        return self.missed + int((~self.correct).sum())

    def above(self, threshold: float) -> Self:
        """With those boxes alone that have at least this score."""
        kept = self.found.scores >= threshold
        found = Detections(*(part[kept] for part in self.found))
        missed = self.missed + int(self.correct[~kept].sum())
        return self._replace(found=found, correct=self.correct[kept], missed=missed)


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics(Metrics):
    """COCO's metrics and more; NaN where there is nothing to count."""

    boxes: int
    """Without crowds."""
    ap: float
    """Mean over classes and IoU thresholds 0.50, 0.55, ..., 0.95; the next two: at one of them."""
    ap50: float
    ap75: float
    ap_small: float
    """Boxes under 32^2 pixels of the image; medium: under 96^2; large: the others."""
    ap_medium: float
    ap_large: float
    ar1: float
    """Mean recall with at most 1, 10, 100 boxes per image."""
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    ap_by_class: tuple[ClassAP, ...]
    curves: np.ndarray
    """Precision `[K, 101]` at IoU 0.5 and recall 0, 0.01, ..., 1; NaN without boxes."""
    threshold: float
    """The score at which F1 (IoU 0.5, all classes together) is best."""
    precision: float
    """Precision and recall at `threshold`."""
    recall: float
    worst: tuple[ImageResult, ...]
    """Images with most errors at `threshold`, worst first."""
    shown: tuple[ImageResult, ...]
    """Evenly spaced images."""
    network_ms: float
    """Median time of the network per image."""
    postprocess_ms: float
    """Median time of decoding and suppression."""

    def row(self) -> dict[str, str]:
        return {
            "boxes": str(self.boxes),
            **{key: number(getattr(self, key.lower()), 4) for key in ("AP", "AP50", "AP75")},
            "network": f"{self.network_ms:.1f} ms",
            "postprocessing": f"{self.postprocess_ms:.1f} ms",
        }

    def details(self) -> list[RenderableType]:
        numbers = table("COCO's twelve numbers", "")
        for name, value in self.figures().items():
            numbers.add_row(name, self.cell(value))
        balance = f"At a score of {self.threshold:.2f} {self.balance}"
        return [numbers, *super().details(), balance]

    def summary(self, train: Self) -> str:
        return (
            f"AP {self.ap:.3f}, AP50 {self.ap50:.3f}, AP75 {self.ap75:.3f} on {self.boxes} boxes "
            f"in {self.images} validation images; AP {train.ap:.3f} on training images\n"
            f"at a score of {self.threshold:.2f} {self.balance}"
        )

    @property
    def balance(self) -> str:
        """What `threshold` means, as the end of a sentence."""
        return (
            f"precision and recall balance best (IoU 0.5): {percent(self.precision, 1)} of "
            f"predicted boxes are correct, and {percent(self.recall, 1)} of true ones are found."
        )

    def cell(self, value: float) -> str:
        return number(value, 4)

    @property
    def per_class(self) -> tuple[ClassAP, ...]:
        return self.ap_by_class

    def figures(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in FIGURES}


def average_precision(
    found: Sequence[Detections], truth: Sequence[Annotation], *, details: bool = False
) -> dict[str, Tensor]:
    """COCO's metric of all images, by pycocotools; `details` adds classes and curves."""
    # Here, because torchmetrics takes seconds to import, and using a network needs none of it.
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        backend="pycocotools",
        # The metric's own are these in single precision, which moves AP by up to a thousandth:
        # a recall of 0.2 is less than 0.200000003.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
        extended_summary=details,
        sync_on_compute=False,  # it cannot if processes have different numbers of images
    )
    metric.warn_on_many_detections = False  # COCO counts at most 100
    metric.update(
        [
            {"boxes": one.boxes.as_subclass(Tensor), "scores": one.scores, "labels": one.labels}
            for one in found
        ],
        [{**vars(one), "iscrowd": one.crowd.long()} for one in truth],
    )
    values: dict[str, Tensor] = metric.compute()
    return values


def coco_figures(values: dict[str, Tensor]) -> dict[str, float]:
    """COCO's twelve numbers from the metric's values; its -1, nothing to count, becomes NaN."""
    named = {name: float(values[theirs]) for name, theirs in FIGURES.items()}
    return {name: float("nan") if value < 0 else value for name, value in named.items()}


@dataclass(eq=False)
class DetectionMetric(Metric[DetectionMetrics]):
    """Collects boxes; all of them stay in memory until the end."""

    def __post_init__(self) -> None:
        self.results: list[tuple[int, Detections]] = []

    def update(self, predictions: Sequence[Detections], batch: ImageBatch) -> None:
        for index, found in zip(batch.indices, predictions, strict=True):
            self.results.append((index, Detections(*(part.cpu() for part in found))))

    def _gather(self) -> tuple[list[int], list[Detections], list[Annotation]]:
        """Samples with their predicted and true boxes, from all processes."""
        results = sorted(gather_items(self.results), key=lambda result: result[0])
        indices, found = (list(column) for column in zip(*results, strict=True))
        return indices, found, [self.samples.annotation(index) for index in indices]

    def figures(self) -> dict[str, float]:
        _, found, truth = self._gather()
        return coco_figures(average_precision(found, truth))

    def compute(self, timing: Timing) -> DetectionMetrics:
        indices, found, truth = self._gather()
        values = average_precision(found, truth, details=True)
        ap_by_class, curves = _by_class(values, self.samples.classes, truth)
        images = [match_boxes(*one) for one in zip(indices, found, truth, strict=True)]
        threshold, precision, recall = best_balance(images)
        images = [image.above(threshold) for image in images]
        ranked = heapq.nlargest(self.worst, images, key=lambda image: image.errors)
        step = max(1, len(images) // self.shown)
        return DetectionMetrics(
            classes=self.samples.classes,
            images=len(images),
            boxes=sum(row.boxes for row in ap_by_class),
            **coco_figures(values),
            ap_by_class=ap_by_class,
            curves=curves,
            threshold=threshold,
            precision=precision,
            recall=recall,
            worst=tuple(image for image in ranked if image.errors),
            shown=tuple(images[::step][: self.shown]),
            **timing._asdict(),
        )


def _by_class(
    values: dict[str, Tensor], classes: Sequence[str], truth: Sequence[Annotation]
) -> tuple[tuple[ClassAP, ...], np.ndarray]:
    counts = torch.cat([one.labels[~one.crowd] for one in truth]).bincount(minlength=len(classes))
    # [IoU, recall, class, area, count]: all areas, 100 boxes; -1 where there is nothing to find
    found = values["precision"][..., 0, -1]
    # The metric has only the classes that appear somewhere.
    precision = found.new_full((*found.shape[:2], len(classes)), torch.nan)
    precision[..., torch.atleast_1d(values["classes"]).long()] = found.where(found >= 0, torch.nan)
    ap, ap50 = precision.mean((0, 1)), precision[0].mean(0)
    rows = zip(classes, counts.tolist(), ap.tolist(), ap50.tolist(), strict=True)
    return tuple(ClassAP(*row) for row in rows), precision[0].T.numpy()


def match_boxes(sample: int, found: Detections, annotation: Annotation) -> ImageResult:
    """Match each predicted box, most probable first, to the box of its class with the highest IoU.

    It is correct with an IoU of at least 0.5, and each true box is found once.
    """
    correct = torch.zeros(len(found.labels), dtype=torch.bool)
    kept = ~correct
    free = ~annotation.crowd
    count = int(free.sum())
    if len(found.labels) and len(annotation.labels):
        boxes, true = (_xywh(part).numpy() for part in (found.boxes, annotation.boxes))
        # In a crowd a box is as far as it lies in the crowd, as COCO has it.
        overlaps = torch.from_numpy(mask.iou(boxes, true, annotation.crowd.tolist()))  # [N, M]
        overlaps *= found.labels[:, None] == annotation.labels[None, :]
        for row, mine in enumerate(overlaps):
            best = int((mine * free).argmax())
            if free[best] and mine[best] >= IOU_THRESHOLD:
                correct[row], free[best] = True, False
            else:
                kept[row] = not (mine[annotation.crowd] >= IOU_THRESHOLD).any()
    found = Detections(*(part[kept] for part in found))
    return ImageResult(sample, found, correct[kept], count - int(correct.sum()))


def _xywh(corners: Tensor) -> Tensor:
    return box_convert(corners.as_subclass(Tensor).double(), "xyxy", "xywh")


def best_balance(images: Sequence[ImageResult]) -> tuple[float, float, float]:
    """The score at which F1 is best, and precision and recall at it."""
    total = sum(image.missed + int(image.correct.sum()) for image in images)
    scores = torch.cat([image.found.scores for image in images])
    if not len(scores) or not total:
        return 0.5, float("nan"), 0.0 if total else float("nan")
    order = scores.argsort(descending=True)
    hits = torch.cat([image.correct for image in images])[order].cumsum(0).double()
    found = torch.arange(1, len(order) + 1).double()
    best = int((2 * hits / (found + total)).argmax())
    return float(scores[order[best]]), float(hits[best] / found[best]), float(hits[best] / total)


def coco_results(
    image_id: int, found: Detections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of one image as in COCO's result files: x, y, width, height."""
    columns = (part.tolist() for part in (_xywh(found.boxes), found.labels, found.scores))
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 6),
        }
        for box, label, score in zip(*columns, strict=True)
    ]

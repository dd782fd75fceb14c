"""Metrics of segmentation: intersection over union."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.tasks.base import Metric, Metrics, Timing
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.utils.distributed import gather_items
from mobilevit.utils.tables import percent


class ClassIoU(NamedTuple):
    """Metrics of one class; NaN where there is nothing to count."""

    name: str
    pixels: int
    """Of this class in the masks."""
    iou: float
    accuracy: float
    """Share of the class's pixels that are correct."""


class SegmentedImage(NamedTuple):
    """An image with its predicted mask."""

    sample: int
    """Index in the samples."""
    classes: np.ndarray
    """Predicted classes `[H, W]`, at the image's own size."""
    miou: float
    """Mean over the classes that are in it or were predicted."""


@dataclass(frozen=True, kw_only=True)
class SegmentationMetrics(Metrics):
    """Metrics over all pixels of the images."""

    pixels: int
    """Pixels that have a class."""
    miou: float
    """Mean intersection over union, over classes that are in the masks or were predicted."""
    pixel_accuracy: float
    """Share of pixels that are correct."""
    boundary_miou: float
    """`miou` over pixels near true boundaries only; NaN without the option `boundary`."""
    confusion: Tensor
    """Counts `[K, K]`: row the label, column the prediction."""
    worst: tuple[SegmentedImage, ...]
    """Images with the lowest mIoU, worst first."""
    shown: tuple[SegmentedImage, ...]
    """Evenly spaced images."""
    network_ms: float
    """Median time of the network per image."""
    postprocess_ms: float
    """Median time of resizing to the image's size and comparing."""

    def row(self) -> dict[str, str]:
        return {
            "mean IoU": percent(self.miou),
            "correct pixels": percent(self.pixel_accuracy),
            "near edges": percent(self.boundary_miou),
            "network": f"{self.network_ms:.0f} ms",
            "postprocessing": f"{self.postprocess_ms:.0f} ms",
        }

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "confusion": self.confusion.tolist()}

    def summary(self, train: Self) -> str:
        return (
            f"mean IoU {self.miou:.3f}, {self.pixel_accuracy:.2%} of the pixels correct in "
            f"{self.images} validation images; mean IoU {train.miou:.3f} on training images"
        )

    @cached_property
    def per_class(self) -> list[ClassIoU]:
        iou, accuracy = class_figures(self.confusion)
        pixels = self.confusion.sum(1).long().tolist()
        rows = zip(self.classes, pixels, iou.tolist(), accuracy.tolist(), strict=True)
        return [ClassIoU(*row) for row in rows]


def class_figures(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and accuracy of each class `[K]`, NaN where there is no pixel."""
    counts = confusion.double()
    hits, true, seen = counts.diag(), counts.sum(1), counts.sum(0)
    return hits / (true + seen - hits), hits / true


def mean_iou(confusion: Tensor) -> float:
    """Mean over classes that are in the masks or were predicted; NaN where there is no pixel."""
    return float(class_figures(confusion)[0].nanmean())


def near_boundaries(mask: Tensor, width: int) -> Tensor:
    """Pixels of a mask `[H, W]` that have another value within `width` pixels, bool."""
    x = mask[None, None].float()
    side = 2 * width + 1
    highest = F.max_pool2d(x, side, stride=1, padding=width)
    lowest = -F.max_pool2d(-x, side, stride=1, padding=width)
    return (highest != lowest)[0, 0]


@dataclass(eq=False)
class SegmentationMetric(Metric[SegmentationMetrics]):
    """Counts pixels at the images' own size; keeps the `worst` and `shown` other images."""

    worst: int = 16
    shown: int = 8

    def __post_init__(self) -> None:
        count = len(self.samples.classes)
        self.confusion = torch.zeros((count, count), dtype=torch.long, device=self.device)
        self.at_boundaries = self.confusion.clone()
        self.lowest: list[SegmentedImage] = []
        self.spaced: list[SegmentedImage] = []
        self.images, self.step = 0, max(1, len(self.samples) // self.shown)

    def update(self, predictions: Sequence[Tensor], batch: ImageBatch) -> None:
        # Here, because torchmetrics takes seconds to import, and using a network needs none of it.
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        count = partial(
            multiclass_confusion_matrix,
            num_classes=len(self.samples.classes),
            ignore_index=self.samples.ignore,
            validate_args=False,
        )
        for index, predicted, mask in zip(batch.indices, predictions, batch.targets, strict=True):
            labels, true = predicted.long(), mask.to(predicted.device).long()
            counts = count(labels, true)
            self.confusion += counts
            if self.options.boundary:
                near = near_boundaries(true, self.options.boundary)
                self.at_boundaries += count(labels[near], true[near])
            if self.figures_only:
                continue
            image = SegmentedImage(index, predicted.cpu().numpy(), mean_iou(counts))
            if index % self.step == 0 and len(self.spaced) < self.shown:
                self.spaced.append(image)
            self.images += 1
            if image.miou == image.miou:  # NaN without any pixel that has a class
                every = (*self.lowest, image)
                self.lowest = heapq.nsmallest(self.worst, every, key=_worst_first)

    def figures(self) -> dict[str, float]:
        counts = _total(self.confusion)
        correct = counts.diag().sum() / counts.sum()
        return {"miou": mean_iou(counts), "pixel_accuracy": float(correct)}

    def compute(self, timing: Timing) -> SegmentationMetrics:
        counts = _total(self.confusion)
        at_edges = mean_iou(_total(self.at_boundaries)) if self.options.boundary else float("nan")
        worst = heapq.nsmallest(self.worst, gather_items(self.lowest), key=_worst_first)
        shown = sorted(gather_items(self.spaced), key=lambda image: image.sample)
        return SegmentationMetrics(
            classes=self.samples.classes,
            images=sum(gather_items([self.images])),
            pixels=int(counts.sum()),
            **self.figures(),
            boundary_miou=at_edges,
            confusion=counts,
            worst=tuple(worst),
            shown=tuple(shown[: self.shown]),
            **timing._asdict(),
        )


def _total(counts: Tensor) -> Tensor:
    """Counts of all processes."""
    return torch.stack(gather_items([counts.cpu()])).sum(0)


def _worst_first(image: SegmentedImage) -> tuple[float, int]:
    return image.miou, image.sample

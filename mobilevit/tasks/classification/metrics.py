"""Metrics of classification."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from rich.console import RenderableType
from rich.markup import escape
from torch import Tensor
from torch.nn import functional as F

from mobilevit.tasks.base import Metric, Metrics, Timing
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.utils.distributed import gather_items
from mobilevit.utils.tables import table

CALIBRATION_BINS = 15
MAX_CONFUSION = 20
"""For more classes, the confusion matrix is not printed."""


class Mistake(NamedTuple):
    """A misclassified sample."""

    sample: int
    """Index in the samples."""
    label: int
    predicted: int
    probability: float
    """Of the predicted class."""
    loss: float
    """-log of the label's probability."""


class ClassMetrics(NamedTuple):
    """Metrics of one class; NaN where a share is undefined."""

    name: str
    images: int
    correct: int
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics(Metrics):
    """Metrics of a classifier."""

    top1: float
    """Share of images whose most probable class is the label, in [0, 1]."""
    top5: float
    """Share whose label is among the five most probable classes (all, if there are fewer)."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    calibration_error: float
    """Expected calibration error: mean distance of confidence from accuracy over 15 bins."""
    confusion: Tensor
    """Counts `[K, K]`: row the label, column the prediction."""
    mistakes: tuple[Mistake, ...]
    """The worst mistakes, worst first."""

    def row(self) -> dict[str, str]:
        return {
            "top-1": f"{self.top1:.2%}",
            "top-5": f"{self.top5:.2%}",
            "loss": f"{self.loss:.4f}",
            "calibration error": f"{self.calibration_error:.4f}",
        }

    def details(self) -> list[RenderableType]:
        if len(self.classes) > MAX_CONFUSION:
            return super().details()
        confusion = table("label / prediction", *map(str, range(len(self.classes))))
        rows = zip(self.classes, self.confusion.tolist(), strict=True)
        for number, (name, counts) in enumerate(rows):
            confusion.add_row(f"{number} {escape(name)}", *(str(count or "·") for count in counts))
        return [*super().details(), confusion]

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "confusion": self.confusion.tolist(),
            "mistakes": self.mistakes,
        }

    def summary(self, train: Self) -> str:
        return (
            f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, calibration error "
            f"{self.calibration_error:.3f} on {self.images} validation images; "
            f"{train.top1:.2%} on training images"
        )

    @cached_property
    def per_class(self) -> list[ClassMetrics]:
        confusion = self.confusion.double()
        hits, support, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
        columns = (hits / support, hits / predicted, 2 * hits / (support + predicted))
        counts = (support.long().tolist(), hits.long().tolist())
        rows = zip(self.classes, *counts, *(column.tolist() for column in columns), strict=True)
        return [ClassMetrics(*row) for row in rows]


@dataclass(eq=False)
class ClassificationMetric(Metric[ClassificationMetrics]):
    """Counts logits and labels, and keeps the `worst` mistakes."""

    worst: int = 32

    def __post_init__(self) -> None:
        # Here, because torchmetrics takes seconds to import, and using a network needs none of it.
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassCalibrationError,
            MulticlassConfusionMatrix,
        )

        count = len(self.samples.classes)
        self.top1, self.top5 = (
            MulticlassAccuracy(count, top, "micro", validate_args=False).to(self.device)
            for top in (1, min(5, count))
        )
        if not self.figures_only:  # of very many classes, counts of all pairs do not fit in memory
            self.confusion = MulticlassConfusionMatrix(count, validate_args=False).to(self.device)
            self.calibration = MulticlassCalibrationError(
                count, CALIBRATION_BINS, validate_args=False
            ).to(self.device)
        self.loss = 0.0
        self.mistakes: list[Mistake] = []

    def update(self, predictions: Any, batch: ImageBatch) -> None:
        """Count logits `[B, K]`; targets are labels `[B]`."""
        logits, labels = predictions, batch.targets.to(predictions.device)
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        if self.figures_only:
            return
        losses = F.cross_entropy(logits, labels, reduction="none")
        probabilities, predicted = logits.softmax(-1), logits.argmax(-1)
        self.confusion.update(predicted, labels)
        self.calibration.update(probabilities, labels)
        self.loss += losses.double().sum().item()
        wrong = predicted != labels
        parts = (torch.tensor(batch.indices), labels, predicted, probabilities.amax(-1), losses)
        columns = (part[wrong.to(part.device)].tolist() for part in parts)
        mistakes = [Mistake(*row) for row in zip(*columns, strict=True)]
        self.mistakes = _worst(self.mistakes + mistakes, self.worst)

    def figures(self) -> dict[str, float]:
        return {"top1": float(self.top1.compute()), "top5": float(self.top5.compute())}

    def compute(self, timing: Timing) -> ClassificationMetrics:
        confusion = self.confusion.compute().cpu()
        images = int(confusion.sum())
        return ClassificationMetrics(
            classes=self.samples.classes,
            images=images,
            **self.figures(),
            loss=math.fsum(gather_items([self.loss])) / images,
            calibration_error=float(self.calibration.compute()),
            confusion=confusion,
            mistakes=tuple(_worst(gather_items(self.mistakes), self.worst)),
        )


def _worst(mistakes: list[Mistake], count: int) -> list[Mistake]:
    return heapq.nlargest(count, mistakes, key=lambda mistake: mistake.loss)

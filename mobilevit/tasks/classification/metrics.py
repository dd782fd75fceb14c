"""Classification: how a network is evaluated."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
)

from mobilevit.utils.distributed import gather_items

CALIBRATION_BINS = 15


class Mistake(NamedTuple):
    """One sample that a network got wrong."""

    sample: int
    """Its place in the samples."""
    label: int
    predicted: int
    probability: float
    """Of the wrong answer."""
    loss: float
    """-log of the right answer's probability."""


class ClassMetrics(NamedTuple):
    """How good a classifier is on one class; NaN where a share is of nothing."""

    name: str
    samples: int
    right: int
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics:
    """How good a classifier is on a set of samples, each counted once."""

    classes: tuple[str, ...]
    samples: int
    top1: float
    """Share of samples whose likeliest class is right, in [0, 1]."""
    top5: float
    """Share whose right class is among the five likeliest (or among all, where there are fewer)."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    calibration_error: float
    """Expected calibration error: mean distance of confidence from accuracy over 15 bins."""
    confusion: Tensor
    """Counts `[K, K]`: row the label, column the answer."""
    mistakes: tuple[Mistake, ...]
    """The worst ones, worst first."""

    def per_class(self) -> list[ClassMetrics]:
        """The figures of each class."""
        confusion = self.confusion.double()
        hits, support, answers = confusion.diag(), confusion.sum(1), confusion.sum(0)
        columns = (hits / support, hits / answers, 2 * hits / (support + answers))
        counts = (support.long().tolist(), hits.long().tolist())
        rows = zip(self.classes, *counts, *(column.tolist() for column in columns), strict=True)
        return [ClassMetrics(*row) for row in rows]


def accuracies(num_classes: int) -> MetricCollection:
    """Streaming top-1 and top-5 over all samples alike."""
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "top5": MulticlassAccuracy(
                num_classes, top_k=min(5, num_classes), average="micro", validate_args=False
            ),
        }
    )


def evaluate_classifier(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
    worst: int = 32,
) -> ClassificationMetrics:
    """Evaluate a classifier; processes that have joined get the figures of all their samples.

    Args:
        model: a network in evaluation mode on `device`, or what gives logits `[B, K]` in its place.
        batches: images `[B, 3, H, W]`, labels `[B]` and the samples' indices `[B]`.
        classes: names in the order of the logits.
        device: where the images go.
        worst: how many mistakes to keep.

    Raises:
        ValueError: there are no samples.
    """
    count = len(classes)
    rates = accuracies(count).to(device)
    confusion = MulticlassConfusionMatrix(count, validate_args=False).to(device)
    calibration = MulticlassCalibrationError(count, CALIBRATION_BINS, validate_args=False).to(
        device
    )
    samples, loss_sum = 0, 0.0
    heap: list[tuple[float, Mistake]] = []
    with torch.inference_mode():
        for images, labels, indices in batches:
            logits = model(images.to(device)).float()
            targets = labels.to(device)
            losses = F.cross_entropy(logits, targets, reduction="none")
            probabilities = logits.softmax(-1)
            top, predicted = probabilities.max(-1)
            rates.update(probabilities, targets)
            confusion.update(predicted, targets)
            calibration.update(probabilities, targets)
            samples += len(labels)
            loss_sum += losses.double().sum().item()
            for row in (predicted != targets).nonzero().flatten().tolist():
                mistake = Mistake(
                    int(indices[row]),
                    int(labels[row]),
                    int(predicted[row]),
                    float(top[row]),
                    float(losses[row]),
                )
                heapq.heappush(heap, (mistake.loss, mistake))
                if len(heap) > worst:
                    heapq.heappop(heap)
    samples, loss_sum = sum(gather_items([samples])), math.fsum(gather_items([loss_sum]))
    wrong = heapq.nlargest(worst, gather_items([mistake for _, mistake in heap]), key=_worst_first)
    if not samples:
        raise ValueError("there is nothing to evaluate: no samples")
    figures = rates.compute()
    return ClassificationMetrics(
        classes=tuple(classes),
        samples=samples,
        top1=float(figures["top1"]),
        top5=float(figures["top5"]),
        loss=loss_sum / samples,
        calibration_error=float(calibration.compute()),
        confusion=confusion.compute().cpu(),
        mistakes=tuple(wrong),
    )


def _worst_first(mistake: Mistake) -> tuple[float, Mistake]:
    return mistake.loss, mistake

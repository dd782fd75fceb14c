"""What a training run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilevit.tasks.classification.metrics import ClassificationMetrics
from mobilevit.tasks.detection.metrics import DetectionMetrics
from mobilevit.tasks.segmentation.metrics import SegmentationMetrics


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run gave."""

    folder: Path
    """The run folder; the best weights are in its `model`."""
    metrics: ClassificationMetrics
    """The best weights on all validation images."""
    train_top1: float
    """The same weights on (a sample of) the training images, preprocessed as in validation."""

    def __str__(self) -> str:
        """Say how good it is, and where to look."""
        m = self.metrics
        return (
            f"top-1 {m.top1:.2%}, top-5 {m.top5:.2%}, calibration error {m.calibration_error:.3f} "
            f"on {m.samples} validation images; {self.train_top1:.2%} on training images\n"
            f"model:  {self.folder / 'model'}\n"
            f"report: {self.folder / 'report.html'}"
        )


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """What a run of detection gave."""

    folder: Path
    """The run folder; the best weights are in its `model`."""
    metrics: DetectionMetrics
    """The best weights on all validation images."""
    train_metrics: DetectionMetrics
    """The same weights on (a sample of) the training images, preprocessed as in validation."""

    def __str__(self) -> str:
        """Say how good it is, and where to look."""
        m = self.metrics
        return (
            f"AP {m.ap:.3f}, AP50 {m.ap50:.3f}, AP75 {m.ap75:.3f} on {m.boxes} boxes in "
            f"{m.images} validation images; AP {self.train_metrics.ap:.3f} on training "
            f"images\nat a score of {m.threshold:.2f}: {m.precision:.1%} of the boxes found are "
            f"right, {m.recall:.1%} of all are found\n"
            f"model:  {self.folder / 'model'}\n"
            f"report: {self.folder / 'report.html'}"
        )


@dataclass(frozen=True, kw_only=True)
class SegmentationResult:
    """What a run of segmentation gave."""

    folder: Path
    """The run folder; the best weights are in its `model`."""
    metrics: SegmentationMetrics
    """The best weights on all validation images."""
    train_miou: float
    """The same weights on (a sample of) the training images, preprocessed as in validation."""

    def __str__(self) -> str:
        """Say how good it is, and where to look."""
        m = self.metrics
        return (
            f"mean IoU {m.miou:.3f}, {m.pixel_accuracy:.2%} of the pixels right in {m.images} "
            f"validation images; mean IoU {self.train_miou:.3f} on training images\n"
            f"model:  {self.folder / 'model'}\n"
            f"report: {self.folder / 'report.html'}"
        )

"""What a training run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilevit.tasks.classification import ClassificationMetrics


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run gave."""

    folder: Path
    """The run folder; the best weights are in its `model`."""
    metrics: ClassificationMetrics
    """The best weights on all validation pictures."""
    train_top1: float
    """The same weights on (a sample of) the training pictures, preprocessed as in validation."""

    def __str__(self) -> str:
        """Say how good it is, and where to look."""
        m = self.metrics
        return (
            f"top-1 {m.top1:.2%}, top-5 {m.top5:.2%}, calibration error {m.calibration_error:.3f} "
            f"on {m.samples} validation pictures; {self.train_top1:.2%} on training pictures\n"
            f"model:  {self.folder / 'model'}\n"
            f"report: {self.folder / 'report.html'}"
        )

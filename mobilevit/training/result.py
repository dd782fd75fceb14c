"""What a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from mobilevit.tasks.base import M


@dataclass(frozen=True, kw_only=True)
class TrainingResult(Generic[M]):
    """Metrics of a run's best weights, and where these are."""

    folder: Path
    """The run folder; the best weights are in its `model`."""
    metrics: M
    """On all validation images."""
    train_metrics: M
    """On (a sample of) the training images, preprocessed as in validation."""

    def __str__(self) -> str:
        return (
            f"{self.metrics.summary(self.train_metrics)}\n"
            f"model:  {self.folder / 'model'}\n"
            f"report: {self.folder / 'report.html'}"
        )

"""The state of a run between the steps of `train`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch
from rich.console import Console

from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.data.splits import Splits
from mobilevit.models.registry import Network
from mobilevit.tasks.base import M, Task
from mobilevit.training.options import OptimOptions, TrainOptions
from mobilevit.utils.distributed import Processes

# Not in `train`, whose imports for types the command line makes too: Lightning takes seconds.
if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mobilevit.training.callbacks import History
    from mobilevit.training.module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with validated options, and its machine."""

    options: TrainOptions
    """With `batch_size` and `task_options` filled in."""
    model: str
    task: Task
    task_options: Any
    resume: bool
    folder: Path
    checkpoint: Path
    device: torch.device
    threads: int
    workers: int
    processes: Processes
    console: Console
    """Silent in all processes but the main one."""

    def print(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Data, network and schedule of a run."""

    splits: Splits[Any]
    network: Network
    order: Any
    """The order of the samples in this process, by epoch."""
    schedule: MultiScaleSchedule
    batches: int
    """Of the entire run, in each process."""
    steps: int
    optim: OptimOptions
    """With `lr` and `head_lr` filled in."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects with which Lightning trains."""

    loader: EpochLoader
    val: EvaluationLoader
    module: TrainingModule
    history: History
    trainer: Trainer


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

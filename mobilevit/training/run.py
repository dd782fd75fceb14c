"""The state of a run between the steps of `train`, and its result."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from rich.console import Console

from mobilevit.data.cache import ImageCache
from mobilevit.data.loader import EvaluationLoader
from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.data.splits import Splits
from mobilevit.models.registry import Network
from mobilevit.tasks.base import M, Task
from mobilevit.tasks.dataset import EvaluationSet
from mobilevit.training.options import OptimOptions, TrainOptions
from mobilevit.training.precision import Precision
from mobilevit.utils.distributed import Processes

LOADER_BOUND = 0.2
"""Share of waiting time above which the loader is called the bottleneck."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with validated options, and its machine."""

    options: TrainOptions
    """With `batch_size` and `task_options` filled in."""
    model: str
    task: Task
    folder: Path
    checkpoint: Path | None
    """From which the run is resumed; None for a new run."""
    step: int
    """Optimizer steps at that checkpoint."""
    device: torch.device
    precision: Precision
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
    cache: ImageCache | None


def evaluation_loader(run: Run, setup: Setup, samples: Any) -> EvaluationLoader:
    """Batches of samples for evaluation."""
    batch_size = run.options.batch_size
    assert batch_size is not None
    return EvaluationLoader(
        EvaluationSet(
            samples,
            setup.network.config.preprocessing,
            # Each epoch needs those of validation again, and no others.
            setup.cache if samples is setup.splits.val else None,
        ),
        batch_size=min(batch_size, run.task.max_eval_batch_size or batch_size),
        workers=run.workers,
        rank=run.processes.rank,
        world_size=run.processes.world_size,
    )


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

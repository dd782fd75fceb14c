"""What training asks of a task; each task's own file answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from rich.console import Console

from mobilevit.data.decode import Decode
from mobilevit.data.loader import BatchSource, EvaluationLoader
from mobilevit.models.config import ModelConfig, Preprocessing

if TYPE_CHECKING:
    # These import Lightning or torchmetrics, which take seconds.
    from mobilevit.data.options import DataOptions
    from mobilevit.training.callbacks import History
    from mobilevit.training.learner import Learner

S = TypeVar("S")


class Opened(NamedTuple, Generic[S]):
    """Samples to train on and to validate on."""

    train: S
    val: S
    classes: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    """Detection: the classes' numbers in the annotations."""
    size: int
    """Of the training samples."""


class Job(Protocol):
    """One task to train: its data, its loss, its figures, its report."""

    default_model: str
    lr_new: float
    """Peak learning rate for new weights."""
    lr_given: float
    """Peak learning rate for given weights."""
    batch_size: int
    """Images in a batch of training at the base size."""
    eval_batch_size: int | None
    """Images in a batch of validation at most; None: as many as in training."""
    head_lr: float
    """The head's learning rate, as a multiple of the backbone's."""

    def open(self, data: DataOptions, *, seed: int, console: Console) -> Opened[Any]:
        """Find the samples, and look at their files.

        Raises:
            DataError: they cannot be used as they lie; the message names which and why.
        """

    def training_set(
        self, some: Any, rule: Preprocessing, *, seed: int, decode: Decode
    ) -> BatchSource:
        """Augmented batches, by lists of `SampleKey`s."""

    def evaluation_set(self, some: Any, rule: Preprocessing) -> BatchSource:
        """Batches as the network is evaluated on them, by lists of indices."""

    def chosen(self, some: Any, indices: list[int]) -> Any:
        """Some of the samples."""

    def learner(
        self, val: Any, config: ModelConfig, *, sizes: Sequence[int], console: Console
    ) -> Learner:
        """The loss and the figures.

        Args:
            val: the samples to validate on.
            config: of the network that will learn.
            sizes: of the images in training, in pixels.
            console: where to say what is not seen elsewhere.

        Raises:
            TrainingError: the network's teacher cannot teach it.
        """

    def finish(
        self,
        run: Path,
        network: Any,
        *,
        val: tuple[Any, EvaluationLoader],
        train: tuple[Any, EvaluationLoader],
        device: torch.device,
        history: History,
    ) -> Any:
        """Evaluate the best weights, and write the report.

        Args:
            run: the run folder.
            network: the best weights, in the form for inference, on `device`.
            val: validation samples and their batches.
            train: (some) training samples and their batches, prepared as in validation.
            device: where to compute.
            history: of the run.
        """

"""`TrainingTask`: a task's loss, and its figures over an epoch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor, nn

from mobilevit.models.config import ModelConfig, TaskName
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.dataset import ImageBatch


class TrainingTask(nn.Module, ABC):
    """One task's loss and figures, counted from one `reset` to the next.

    In validation the figures are those of the task's `Metric`.
    """

    task: ClassVar[TaskName]
    line: ClassVar[str]
    """The figures of an epoch in one line, as a format of their names."""

    def __init__(
        self,
        options: Any,
        val: Any,
        config: ModelConfig,
        *,
        sizes: Sequence[int],
        console: Console,
    ) -> None:
        """Prepare a run; ValueError if the options do not fit the network.

        Args:
            options: the task's training options.
            val: samples to validate on.
            config: of the network in training.
            sizes: of training images, in pixels.
            console: for messages.
        """
        # Here, because torchmetrics takes seconds to import, and prediction needs none of it.
        from mobilevit.tasks.mean import Mean

        super().__init__()
        self.options, self.val = options, val
        names = ("loss", *self.mean_names())
        self.means: Any = nn.ModuleDict({name: Mean(persistent=True) for name in names})
        # In validation a loss that is not finite must show in the mean.
        self.val_loss: Any = Mean()
        self._validated: dict[str, float] = {}
        self.reset("val")

    def mean_names(self) -> Sequence[str]:
        """What `count` averages besides the loss."""
        return ()

    @abstractmethod
    def training_loss(self, model: Network, batch: Any) -> Tensor:
        """The loss of a batch of the task's `TrainingSet`; calls `count`."""

    @abstractmethod
    def validation_loss(self, model: Network, outputs: Any, batch: ImageBatch) -> Tensor:
        """The loss of a network's outputs in evaluation mode."""

    def count(self, images: int, **values: Tensor) -> None:
        """Count means over training images, by name; in them, what is not finite does not count."""
        for name, value in values.items():
            finite = torch.isfinite(value)
            self.means[name].update(value.detach().where(finite, 0.0), finite * images)

    def validate(self, model: Network, batches: Sequence[ImageBatch]) -> None:
        """Count a batch of an `EvaluationSet`."""
        for batch in batches:
            outputs = model(batch.images)
            loss = self.validation_loss(model, outputs, batch)
            self.val_loss.update(loss, len(batch.images))
            results = get_task(self.task).postprocess(model, outputs, batch, InferenceOptions())
            self.metric.update(results, batch)

    def figures(self, stage: str) -> dict[str, float]:
        """Loss and figures of the epoch so far, `train_loss`, ...; `stage` is `train` or `val`."""
        if stage == "train":
            return {f"train_{name}": float(mean.compute()) for name, mean in self.means.items()}
        if not self._validated:
            values = {"loss": float(self.val_loss.compute()), **self.metric.figures()}
            self._validated = {f"val_{name}": value for name, value in values.items()}
        return self._validated

    def summary(self, figures: Mapping[str, float]) -> str:
        """The figures of an epoch in one line."""
        return self.line.format_map(figures)

    def reset(self, stage: str) -> None:
        """Begin an epoch."""
        if stage == "train":
            for mean in self.means.values():
                mean.reset()
            return
        self.val_loss.reset()
        device = self.val_loss.device
        self.metric = get_task(self.task).metric(self.val, device=device, figures_only=True)
        self._validated = {}

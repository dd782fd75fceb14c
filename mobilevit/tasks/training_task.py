"""`TrainingTask`: a task's loss, and its figures over an epoch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from mobilevit.models.registry import Network


class FiniteMean(MeanMetric):
    """A mean over finite values: steps without a finite loss do not count."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")
        self.persistent(True)  # in checkpoints, so that a resumed epoch counts in full

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        value = torch.as_tensor(value)
        finite = torch.isfinite(value)
        super().update(value.where(finite, 0.0), finite * (1.0 if weight is None else weight))


class TrainingTask(nn.Module, ABC):
    """One task's loss and figures, counted from one `reset` to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.train_loss = FiniteMean()
        # In validation a loss that is not finite must show in the mean.
        self.val_loss = MeanMetric(nan_strategy="disable")

    @abstractmethod
    def training_loss(self, model: Network, batch: Any) -> Tensor:
        """The loss of a training batch, counted for `figures("train")`."""

    @abstractmethod
    def validate(self, model: Network, batch: Any) -> None:
        """Count a validation batch for `figures("val")`."""

    @abstractmethod
    def figures(self, stage: str) -> dict[str, float]:
        """Loss and figures of the epoch so far, `train_loss`, ...; `stage` is `train` or `val`."""

    @abstractmethod
    def summary(self, figures: Mapping[str, float]) -> str:
        """The figures of an epoch in one line."""

    def reset(self, stage: str) -> None:
        getattr(self, f"{stage}_loss").reset()

"""What tasks have in common while they train: a loss, figures, and how they are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from mobilevit.models.registry import Network


class FiniteMean(MeanMetric):
    """A mean over those values that are numbers: of steps that are not skipped for want of one."""

    def update(self, value: float | Tensor, weight: float | Tensor | None = None) -> None:
        """Count a value with a weight (by default 1), if it is finite."""
        value = torch.as_tensor(value)
        finite = torch.isfinite(value)
        super().update(value.where(finite, 0.0), finite * (1.0 if weight is None else weight))


class Learner(nn.Module, ABC):
    """One task's loss and figures; `figures` counts from one `reset` to the next."""

    best: str
    """The figure of validation by which weights are chosen: the larger, the better."""

    def __init__(self) -> None:
        """Start counting."""
        super().__init__()
        self.train_loss = FiniteMean(nan_strategy="disable")
        # Of validation a loss that is no number must show in the mean, not be left out of it.
        self.val_loss = MeanMetric(nan_strategy="disable")
        # In checkpoints, so that the figures of an epoch that was interrupted are of all of it.
        self.train_loss.persistent(True)

    @abstractmethod
    def training_loss(self, model: Network, batch: Any) -> Tensor:
        """The loss of a batch of training, counted for `figures("train")`."""

    @abstractmethod
    def validate(self, model: Network, batch: Any) -> None:
        """Count a batch of validation for `figures("val")`; every sample once."""

    @abstractmethod
    def figures(self, stage: str) -> dict[str, float]:
        """Loss and figures of the epoch so far, `train_loss`, ...; `stage` is `train` or `val`."""

    @abstractmethod
    def line(self, figures: Mapping[str, float]) -> str:
        """The figures of an epoch in one line."""

    def reset(self, stage: str) -> None:
        """Start counting anew."""
        getattr(self, f"{stage}_loss").reset()

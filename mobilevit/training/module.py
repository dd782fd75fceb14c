"""What Lightning trains: a network, what it learns, its optimiser."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.models.variants import Network
from mobilevit.training.learner import Learner
from mobilevit.training.optim import adamw, rate_factor
from mobilevit.training.options import OptimOptions


class TaskTraining(LightningModule):
    """A network in training."""

    def __init__(
        self,
        model: Network,
        learner: Learner,
        *,
        optim: OptimOptions,
        lr: float,
        steps: int,
        freeze_backbone: bool,
    ) -> None:
        """`steps`: optimiser steps of the whole run, over which the learning rate falls."""
        super().__init__()
        self.model, self.learner = model, learner
        self.optim, self.lr, self.steps = optim, lr, steps
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            model.backbone.requires_grad_(False)
        self.train()  # Lightning keeps the modes that it finds

    def train(self, mode: bool = True) -> TaskTraining:
        """Switch to training; a frozen backbone keeps its batch statistics."""
        super().train(mode)
        if self.freeze_backbone:
            self.model.backbone.eval()
        return self

    def configure_optimizers(self) -> Any:
        """AdamW, its rates set anew at each step."""
        mixed = self.trainer.precision != "32-true"
        optimizer = adamw(self.model, self.optim, self.lr, mixed=mixed)
        schedule = LambdaLR(optimizer, rate_factor(self.steps, self.optim))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The task's loss."""
        return self.learner.training_loss(self.model, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The task's figures."""
        self.learner.validate(self.model, batch)

    def figures(self, stage: str) -> dict[str, float]:
        """Loss and figures of the epoch so far; `stage` is `train` or `val`."""
        return self.learner.figures(stage)

    def on_train_epoch_start(self) -> None:
        """Start counting anew."""
        self.learner.reset("train")

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.learner.reset("val")

    def on_validation_epoch_end(self) -> None:
        """Tell loggers and early stopping."""
        if not self.trainer.sanity_checking:
            self.log_dict(self.figures("val"))

    def on_train_epoch_end(self) -> None:
        """Tell loggers."""
        self.log_dict(self.figures("train"))

    def learning_rate(self) -> float:
        """The rate of the backbone, or of the head where that is all that trains."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])


class Batches(LightningDataModule):
    """The loaders of a run, as Lightning asks for them."""

    def __init__(self, train: EpochLoader, val: EvaluationLoader) -> None:
        """Hand out `train` anew each epoch, and `val`."""
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self) -> EpochLoader:
        """The epoch's batches; here, because Lightning asks for their number right after."""
        assert self.trainer is not None
        self.train.sampler.set_epoch(self.trainer.current_epoch)
        return self.train

    def val_dataloader(self) -> EvaluationLoader:
        """The validation batches."""
        return self.val

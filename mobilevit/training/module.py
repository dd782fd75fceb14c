"""What Lightning trains: a classifier, its loss, its optimiser, its figures."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.models.classifier import Classifier
from mobilevit.tasks.classification import accuracies
from mobilevit.training.optim import adamw, rate_factor
from mobilevit.training.options import OptimOptions


class ClassifierTraining(LightningModule):
    """A classifier in training."""

    def __init__(
        self,
        model: Classifier,
        *,
        optim: OptimOptions,
        lr: float,
        steps: int,
        label_smoothing: float,
        freeze_backbone: bool,
    ) -> None:
        """`steps`: optimiser steps of the whole run, over which the learning rate falls."""
        super().__init__()
        self.model = model
        self.optim, self.lr, self.steps = optim, lr, steps
        self.label_smoothing = label_smoothing
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            model.backbone.requires_grad_(False)
        count = model.config.num_classes
        # A loss that is no number must show in the mean, not be left out of it.
        self.train_loss, self.val_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))
        self.train_rates, self.val_rates = accuracies(count), accuracies(count)
        # In checkpoints, so that the figures of an epoch that was interrupted are of all of it.
        self.train_loss.persistent(True)
        self.train_rates.persistent(True)
        self.train()  # Lightning keeps the modes that it finds

    def train(self, mode: bool = True) -> ClassifierTraining:
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

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy with label smoothing; targets are labels `[B]` or shares `[B, K]`."""
        images, targets = batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        labels = targets if targets.ndim == 1 else targets.argmax(-1)
        self.train_rates.update(logits.detach().float(), labels)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Count what is right; every sample once."""
        images, labels, _ = batch
        logits = self.model(images).float()
        self.val_rates.update(logits, labels)
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))

    def figures(self, stage: str) -> dict[str, float]:
        """Loss and accuracies of the epoch so far; `stage` is `train` or `val`."""
        rates, loss = getattr(self, f"{stage}_rates"), getattr(self, f"{stage}_loss")
        named = {"loss": loss.compute(), **rates.compute()}
        return {f"{stage}_{name}": float(value) for name, value in named.items()}

    def on_train_epoch_start(self) -> None:
        """Start counting anew."""
        self.train_loss.reset()
        self.train_rates.reset()

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.val_loss.reset()
        self.val_rates.reset()

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

"""What Lightning trains: a network, what it learns, its optimiser."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mobilevit.data.loader import EpochLoader, EvaluationLoader
from mobilevit.models.registry import Network
from mobilevit.tasks.training_task import TrainingTask
from mobilevit.training.compiling import Compiler, Shape
from mobilevit.training.errors import DivergedError
from mobilevit.training.optim import optimizer_of, rate_factor
from mobilevit.training.options import OptimOptions
from mobilevit.training.quantize_aware import Rounding

MOST_SKIPPED = 20
"""Steps in a row without a finite gradient, at which a run stops."""

log = logging.getLogger(__name__)


class TaskTraining(LightningModule):
    """A network in training."""

    def __init__(
        self,
        model: Network,
        task: TrainingTask,
        *,
        optim: OptimOptions,
        lr: float,
        steps: int,
        freeze_backbone: bool,
        quantize_aware: bool = False,
        compiled: Collection[Shape] = (),
    ) -> None:
        """`steps`: optimiser steps of the whole run, over which the learning rate falls.

        `compiled`: shapes of batches for which the network is compiled.
        """
        super().__init__()
        self.model, self.task = model, task
        self.rounding = Rounding(model) if quantize_aware else None
        self.compiler = Compiler(model, compiled) if compiled else None
        self.optim, self.lr, self.steps = optim, lr, steps
        self.freeze_backbone = freeze_backbone
        self.skipped, self._skipped_in_a_row = 0, 0
        """Steps whose gradient was not finite; none of them has changed anything."""
        self._statistics: list[Tensor] = []
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
        """The optimiser, its rates set anew at each step."""
        scaled = self.trainer.precision == "16-mixed"
        optimizer = optimizer_of(self.model, self.optim, self.lr, scaled=scaled)
        schedule = LambdaLR(optimizer, rate_factor(self.steps, self.optim))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _rounding(self) -> AbstractContextManager[None]:
        """Within it the network rounds, if it is to."""
        return nullcontext() if self.rounding is None else self.rounding.around(self.model)

    def _compiling(self, images: Tensor | None) -> AbstractContextManager[None]:
        """Within it the network is the compiled one, if it is to be for these."""
        return nullcontext() if self.compiler is None else self.compiler.around(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The task's loss."""
        with self._rounding(), self._compiling(batch[0]):
            return self.task.training_loss(self.model, batch)

    def _observed(self) -> Iterator[Tensor]:
        """Batch norm's statistics and the ranges of what is rounded, which a step moves."""
        return chain(self.model.buffers(), self.rounding.buffers() if self.rounding else ())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep what was observed as it is ahead of the step, should it be skipped."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._statistics = [buffer.clone() for buffer in self._observed()]

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient; where it is not finite, make the step change nothing.

        Processes that share a run agree, since they have the same gradient by now. Mixed precision
        that scales the loss gets here too while it looks for its scale.

        Raises:
            DivergedError: `MOST_SKIPPED` steps in a row were like that.
        """
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            self._skipped_in_a_row = 0
            if gradient_clip_val is not None:
                nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
            return
        for value in parameters:
            value.grad = None  # optimisers leave parameters without one alone
        for buffer, before in zip(self._observed(), self._statistics, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        self._skipped_in_a_row += 1
        step = self.trainer.global_step
        log.warning("step %d is skipped: its gradient is not finite (norm %s)", step, float(norm))
        if self._skipped_in_a_row == MOST_SKIPPED:
            raise DivergedError(
                f"{MOST_SKIPPED} steps in a row had no finite gradient, up to step {step}: "
                "training has diverged, or the images hold what is no number. Try a smaller "
                "optim.lr, optim.clip 1, precision bf16 or fp32 in place of fp16"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped steps."""
        checkpoint["skipped"] = (self.skipped, self._skipped_in_a_row)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        self.skipped, self._skipped_in_a_row = checkpoint["skipped"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The task's figures."""
        with self._rounding(), self._compiling(None):
            self.task.validate(self.model, batch)

    def figures(self, stage: str) -> dict[str, float]:
        """Loss and figures of the epoch so far; `stage` is `train` or `val`."""
        return self.task.figures(stage)

    def on_train_epoch_start(self) -> None:
        """Start counting anew."""
        self.task.reset("train")

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.task.reset("val")

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

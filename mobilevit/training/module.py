"""The Lightning modules: a network with its loss and optimizer, and its batches."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR

from mobilevit.data.loader import EpochLoader, EvaluationLoader, WorkerError
from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.tasks.training_task import TrainingTask
from mobilevit.training.compiling import Compiler, full_batch_shapes
from mobilevit.training.errors import DivergedError
from mobilevit.training.optim import optimizer_of, rate_factor
from mobilevit.training.options import OptimOptions, TrainOptions
from mobilevit.training.probe import check_memory
from mobilevit.training.quantize_aware import FakeQuantize, add_fake_quantization

MAX_SKIPPED = 20
"""A run stops after this many consecutive steps without a finite gradient."""

log = logging.getLogger(__name__)


class TrainingModule(LightningModule):
    """A network in training, changed in place, with its task's loss and its optimizer.

    Args:
        model: the network.
        task: its loss and figures.
        options: of the run; those of the optimizer are in `optim`, with a learning rate.
        steps: optimizer steps of the entire run, over which the learning rate falls.
        schedule: of the training batches.
    """

    def __init__(
        self,
        model: Network,
        task: TrainingTask,
        options: TrainOptions,
        *,
        optim: OptimOptions,
        steps: int,
        schedule: MultiScaleSchedule,
    ) -> None:
        super().__init__()
        self.model, self.task = model, task
        if options.quantize_aware:
            add_fake_quantization(model)
        self.full_shapes = full_batch_shapes(schedule)
        self.compiler = Compiler(model, self.full_shapes) if options.compile else None
        self.optim, self.steps, self.schedule = optim, steps, schedule
        self.freeze_backbone, self.quantize_aware = options.freeze_backbone, options.quantize_aware
        self._evaluated: list[Network] = []  # a list, or it would be a part of this module
        self.skipped, self.consecutive_skipped = 0, 0
        """Steps whose gradient was not finite; none of them has changed anything."""
        self._buffers_before: list[Tensor] = []
        self._planned = lru_cache(maxsize=1)(schedule.epoch)  # each batch looks into it
        if self.freeze_backbone:
            model.backbone.requires_grad_(False)
        self.train()  # Lightning keeps the modes it finds

    def train(self, mode: bool = True) -> TrainingModule:
        """Set the mode; a frozen backbone stays in evaluation, except for its int8 ranges."""
        super().train(mode)
        if self.freeze_backbone:
            self.model.backbone.eval()
            for module in self.model.backbone.modules():
                if isinstance(module, FakeQuantize):
                    module.train(mode)
        return self

    def configure_optimizers(self) -> Any:
        scaled = self.trainer.precision == "16-mixed"
        optimizer = optimizer_of(self.model, self.optim, scaled=scaled)
        schedule = LambdaLR(optimizer, rate_factor(self.steps, self.optim))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _compiling(self, images: Tensor | None) -> AbstractContextManager[None]:
        return nullcontext() if self.compiler is None else self.compiler.around(images)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        with self._compiling(batch[0]):
            loss = self.task.training_loss(self.model, batch)
        return {"loss": self._weight(batch_idx) * loss, "unweighted": loss.detach()}

    def _weight(self, batch_idx: int) -> float:
        """What makes every image of an optimizer step weigh the same."""
        count = self.trainer.accumulate_grad_batches
        if count == 1:
            return 1.0
        steps = self._planned(self.current_epoch)
        first = batch_idx - batch_idx % count
        images = sum(step.batch_size for step in steps[first : first + count])
        # Lightning divides by the count, also in a last step of fewer batches.
        return count * (steps[batch_idx].batch_size / images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Batch norm's statistics and int8 ranges, to restore them if the step is skipped.
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._buffers_before = [buffer.clone() for buffer in self.model.buffers()]
        # On a GPU, cuDNN times its algorithms on the first batch of a shape. That takes seconds, so
        # not for the shape of an epoch's last batch, which rarely comes again.
        torch.backends.cudnn.benchmark = tuple(batch[0].shape) in self.full_shapes

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient; if it is not finite, make the step change nothing.

        All processes decide the same, since they have the same gradient by now. Steps in which
        fp16's loss scaling still looks for its scale are skipped too. `MAX_SKIPPED` consecutive
        skips raise `DivergedError`.
        """
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            self.consecutive_skipped = 0
            if gradient_clip_val is not None:
                nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
            return
        for value in parameters:
            value.grad = None  # optimisers leave parameters without one alone
        for buffer, before in zip(self.model.buffers(), self._buffers_before, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        self.consecutive_skipped += 1
        step = self.trainer.global_step
        log.warning("step %d is skipped: its gradient is not finite (norm %s)", step, float(norm))
        if self.consecutive_skipped == MAX_SKIPPED:
            raise DivergedError(
                f"{MAX_SKIPPED} consecutive steps had no finite gradient, up to step {step}: "
                "training has diverged. Try a smaller optim.lr, optim.clip 1, or precision bf16 or "
                "fp32 instead of fp16"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped"] = (self.skipped, self.consecutive_skipped)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped, self.consecutive_skipped = checkpoint["skipped"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with self._compiling(None):
            self.task.validate(self._evaluated[0], batch)

    def on_train_start(self) -> None:
        if len(self.schedule.sizes) > 1:
            # Of a single size the first step is the largest.
            precision = self.trainer.precision_plugin.forward_context()
            with self._compiling(None):
                check_memory(self.model, self.schedule, precision)

    def on_train_epoch_start(self) -> None:
        self.task.reset("train")

    def on_validation_epoch_start(self) -> None:
        self.task.reset("val")
        # DDP sends the first process's buffers ahead of each batch, of which processes may have
        # different numbers, or none: so it is done once here.
        if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, 0)
            self._parallel.broadcast_buffers = False
        # Faster, and as the evaluation after training; fake quantization needs the norms.
        self._evaluated = [self.model if self.quantize_aware else fuse(self.model)]

    def on_validation_epoch_end(self) -> None:
        self._evaluated.clear()
        if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            self._parallel.broadcast_buffers = True
        self.log_dict(self.task.figures("val"))  # for loggers and early stopping

    @property
    def _parallel(self) -> nn.Module | None:
        """What the strategy has around this module, if there are several processes."""
        return self.trainer.strategy.model

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.task.figures("train"))


class Batches(LightningDataModule):
    """The loaders of a run."""

    def __init__(self, train: EpochLoader, val: EvaluationLoader) -> None:
        super().__init__()
        self.train, self.val = train, val
        train.finishes_alone = val.finishes_alone = True  # up to the next checkpoint

    @property
    def failure(self) -> WorkerError | None:
        """A worker's death, after which the run must save its state and stop."""
        return self.train.failure or self.val.failure

    def train_dataloader(self) -> EpochLoader:
        # The epoch is set here, because Lightning asks for the number of batches right after.
        assert self.trainer is not None
        self.train.sampler.set_epoch(self.trainer.current_epoch)
        return self.train

    def val_dataloader(self) -> EvaluationLoader:
        return self.val

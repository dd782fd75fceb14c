"""Classification in training: its loss, top-1 and top-5."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from mobilevit.models.config import ModelConfig
from mobilevit.models.registry import Network
from mobilevit.tasks.classification.distill import distillation_loss, load_teacher
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.training_task import TrainingTask


class ClassificationTraining(TrainingTask):
    """Cross-entropy with label smoothing, a teacher's predictions, or both."""

    task = "classification"
    line = (
        "train loss {train_loss:.4f}, top-1 {train_top1:.2%}"
        "  val loss {val_loss:.4f}, top-1 {val_top1:.2%}"
    )

    def __init__(
        self,
        options: ClassificationOptions,
        val: Any,
        config: ModelConfig,
        *,
        sizes: Sequence[int],
        console: Console,
    ) -> None:
        super().__init__(options, val, config, sizes=sizes, console=console)
        name = options.distill.teacher
        self.teacher = (
            None if name is None else load_teacher(name, config, sizes=sizes, console=console)
        )

    def mean_names(self) -> Sequence[str]:
        teacher = self.options.distill.teacher
        return ("top1", "top5", *(() if teacher is None else ("label_loss", "teacher_loss")))

    def training_loss(self, model: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Targets are labels `[B]` or shares `[B, K]`."""
        images, targets = batch
        logits = model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.options.label_smoothing)
        if self.teacher is not None:
            distill = self.options.distill
            taught = distillation_loss(logits.float(), self.teacher(images), distill.temperature)
            self.count(len(images), label_loss=loss, teacher_loss=taught)
            loss = (1 - distill.weight) * loss + distill.weight * taught
        labels = targets if targets.ndim == 1 else targets.argmax(-1)
        first = logits.topk(min(5, logits.shape[1])).indices  # [B, 5]
        correct = (first == labels[:, None]).float()
        self.count(len(images), loss=loss, top1=correct[:, 0].mean(), top5=correct.sum(1).mean())
        return loss

    def validation_loss(self, model: Network, outputs: Tensor, batch: ImageBatch) -> Tensor:
        return F.cross_entropy(outputs.float(), batch.targets)

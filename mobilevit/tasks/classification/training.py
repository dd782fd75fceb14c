"""Classification in training: its loss, top-1 and top-5."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional as F

from mobilevit.models.registry import Network
from mobilevit.tasks.classification.distill import distillation_loss
from mobilevit.tasks.classification.metrics import accuracies
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.training_task import FiniteMean, TrainingTask


class ClassificationTraining(TrainingTask):
    """Cross-entropy with label smoothing, a teacher's predictions, or both."""

    def __init__(
        self,
        num_classes: int,
        options: ClassificationOptions,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.options, self.teacher = options, teacher
        self.train_rates, self.val_rates = accuracies(num_classes), accuracies(num_classes)
        self.train_rates.persistent(True)
        # The two parts of the loss, where there is a teacher.
        self.label_loss, self.teacher_loss = FiniteMean(), FiniteMean()

    def training_loss(self, model: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Targets are labels `[B]` or shares `[B, K]`."""
        images, targets = batch
        logits = model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.options.label_smoothing)
        if self.teacher is not None:
            distill = self.options.distill
            taught = distillation_loss(logits.float(), self.teacher(images), distill.temperature)
            self.label_loss.update(loss.detach(), len(images))
            self.teacher_loss.update(taught.detach(), len(images))
            loss = (1 - distill.weight) * loss + distill.weight * taught
        labels = targets if targets.ndim == 1 else targets.argmax(-1)
        self.train_rates.update(logits.detach().float(), labels)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def validate(self, model: Network, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        images, labels, _ = batch
        logits = model(images).float()
        self.val_rates.update(logits, labels)
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))

    def figures(self, stage: str) -> dict[str, float]:
        rates, loss = getattr(self, f"{stage}_rates"), getattr(self, f"{stage}_loss")
        values = {"loss": loss.compute(), **rates.compute()}
        if stage == "train" and self.teacher is not None:
            values["label_loss"] = self.label_loss.compute()
            values["teacher_loss"] = self.teacher_loss.compute()
        return {f"{stage}_{name}": float(value) for name, value in values.items()}

    def summary(self, figures: Mapping[str, float]) -> str:
        return (
            f"train loss {figures['train_loss']:.4f}, top-1 {figures['train_top1']:.2%}"
            f"  val loss {figures['val_loss']:.4f}, top-1 {figures['val_top1']:.2%}"
        )

    def reset(self, stage: str) -> None:
        super().reset(stage)
        getattr(self, f"{stage}_rates").reset()
        if stage == "train":
            self.label_loss.reset()
            self.teacher_loss.reset()

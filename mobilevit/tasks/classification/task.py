"""Classification in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from mobilevit.data.decode import Decode
from mobilevit.data.loader import BatchSource, EvaluationLoader
from mobilevit.data.options import DataOptions
from mobilevit.data.samples import Samples, SampleSubset
from mobilevit.data.shards.samples import ShardSamples
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import Network
from mobilevit.tasks.base import Opened
from mobilevit.tasks.classification.dataset import EvaluationSet, TrainingSet
from mobilevit.tasks.classification.distill import DistillOptions, Teacher, soft_loss, teacher_of
from mobilevit.tasks.classification.metrics import accuracies, evaluate_classifier
from mobilevit.tasks.classification.transforms import AugmentOptions, BatchMix, TrainTransform
from mobilevit.tasks.training_result import TrainingResult
from mobilevit.training.learner import FiniteMean, Learner
from mobilevit.training.prepare import samples

if TYPE_CHECKING:
    from mobilevit.training.callbacks import History


class ClassificationLearner(Learner):
    """Cross-entropy with label smoothing, or a teacher's answers; top-1 and top-5."""

    best = "top1"

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float,
        teacher: Teacher | None = None,
        distill: DistillOptions = DistillOptions(),
    ) -> None:
        """Count rates over `num_classes`; of `distill` the teacher's weight and temperature."""
        super().__init__()
        self.label_smoothing = label_smoothing
        self.train_rates, self.val_rates = accuracies(num_classes), accuracies(num_classes)
        self.train_rates.persistent(True)
        self.teacher, self.distill = teacher, distill
        # What the loss is made of where there is a teacher.
        self.label_loss = FiniteMean(nan_strategy="disable")
        self.teacher_loss = FiniteMean(nan_strategy="disable")
        self.label_loss.persistent(True)
        self.teacher_loss.persistent(True)

    def training_loss(self, model: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Targets are labels `[B]` or shares `[B, K]`."""
        images, targets = batch
        logits = model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if self.teacher is not None:
            taught = soft_loss(logits.float(), self.teacher(images), self.distill.temperature)
            self.label_loss.update(loss.detach(), len(images))
            self.teacher_loss.update(taught.detach(), len(images))
            loss = (1 - self.distill.weight) * loss + self.distill.weight * taught
        labels = targets if targets.ndim == 1 else targets.argmax(-1)
        self.train_rates.update(logits.detach().float(), labels)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def validate(self, model: Network, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Count what is right."""
        images, labels, _ = batch
        logits = model(images).float()
        self.val_rates.update(logits, labels)
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))

    def figures(self, stage: str) -> dict[str, float]:
        """Loss, top-1, top-5; in training with a teacher also the two parts of the loss."""
        rates, loss = getattr(self, f"{stage}_rates"), getattr(self, f"{stage}_loss")
        named = {"loss": loss.compute(), **rates.compute()}
        if stage == "train" and self.teacher is not None:
            named["label_loss"] = self.label_loss.compute()
            named["teacher_loss"] = self.teacher_loss.compute()
        return {f"{stage}_{name}": float(value) for name, value in named.items()}

    def line(self, figures: Mapping[str, float]) -> str:
        """Loss and top-1 of both."""
        return (
            f"train loss {figures['train_loss']:.4f}, top-1 {figures['train_top1']:.2%}"
            f"  val loss {figures['val_loss']:.4f}, top-1 {figures['val_top1']:.2%}"
        )

    def reset(self, stage: str) -> None:
        """Start counting anew."""
        super().reset(stage)
        getattr(self, f"{stage}_rates").reset()
        if stage == "train":
            self.label_loss.reset()
            self.teacher_loss.reset()


class ClassificationJob:
    """Train a classifier on folders of class folders."""

    default_model = "mobilevit_xs"
    lr_new, lr_given = 0.002, 0.001
    batch_size = 64
    eval_batch_size: int | None = None
    head_lr = 1.0

    def __init__(
        self, augment: AugmentOptions, *, label_smoothing: float, distill: DistillOptions
    ) -> None:
        """See `train`."""
        self.augment, self.label_smoothing, self.distill = augment, label_smoothing, distill

    def open(self, data: DataOptions, *, seed: int, console: Console) -> Opened[Samples]:
        """Find the images, and look at their files."""
        train, val = samples(data, seed=seed, console=console)
        return Opened(train, val, train.classes, None, len(train.labels))

    def training_set(
        self, some: Samples, rule: Preprocessing, *, seed: int, decode: Decode
    ) -> BatchSource:
        """Augmented batches."""
        transform = TrainTransform(self.augment, rule)
        mix = BatchMix(self.augment, len(some.classes))
        return TrainingSet(some, transform, mix, seed=seed, decode=decode)

    def evaluation_set(self, some: Samples, rule: Preprocessing) -> BatchSource:
        """Batches as the network is evaluated on them."""
        return EvaluationSet(some, rule)

    def chosen(self, some: Samples, indices: list[int]) -> Samples:
        """Some of the samples; of sequential shards as many neighbours."""
        if isinstance(some, ShardSamples) and some.shards.sequential:
            indices = some.neighbours(indices)
        return SampleSubset(some, indices)

    def learner(
        self, val: Samples, config: ModelConfig, *, sizes: Sequence[int], console: Console
    ) -> Learner:
        """The loss and the figures; the teacher is read here."""
        name = self.distill.teacher
        teacher = None if name is None else teacher_of(name, config, sizes=sizes, console=console)
        return ClassificationLearner(
            len(val.classes),
            label_smoothing=self.label_smoothing,
            teacher=teacher,
            distill=self.distill,
        )

    def finish(
        self,
        run: Path,
        network: Any,
        *,
        val: tuple[Samples, EvaluationLoader],
        train: tuple[Samples, EvaluationLoader],
        device: torch.device,
        history: History,
    ) -> TrainingResult:
        """Evaluate the best weights, and write the report."""
        from mobilevit.training.report import write_report

        config = network.config
        metrics = evaluate_classifier(network, val[1], classes=config.classes, device=device)
        on_train = evaluate_classifier(network, train[1], classes=config.classes, device=device)
        result = TrainingResult(folder=run, metrics=metrics, train_top1=on_train.top1)
        write_report(run / "report.html", result, history, val[0], config=config)
        return result

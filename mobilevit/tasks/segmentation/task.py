"""Segmentation in training."""

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
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import Network
from mobilevit.models.segmentation import Segmenter
from mobilevit.tasks.base import Opened
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.metrics import (
    AT_ONCE,
    confusion_of,
    evaluate_segmenter,
    full_size,
    mean_iou,
    segmentation_loss,
)
from mobilevit.tasks.segmentation.open import mask_splits
from mobilevit.tasks.segmentation.transforms import (
    SegmentationAugment,
    SegmentationEvaluationSet,
    SegmentationSet,
    SegmentationTransform,
    by_shape,
)
from mobilevit.tasks.training_result import SegmentationResult
from mobilevit.training.learner import Learner

if TYPE_CHECKING:
    from mobilevit.training.callbacks import History


class SegmentationLearner(Learner):
    """Cross-entropy over pixels; mean intersection over union in validation."""

    best = "miou"

    def __init__(self, val: MaskSamples) -> None:
        """`val`: the samples to validate on."""
        super().__init__()
        self.ignore = val.ignore
        self.confusion = confusion_of(len(val.classes), val.ignore)

    def training_loss(self, model: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean over pixels that have a class, with the auxiliary head's if there is one."""
        images, masks = batch
        loss = segmentation_loss(model(images), masks, ignore=self.ignore)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def validate(self, model: Network, batch: list[tuple[Tensor, Tensor, int]]) -> None:
        """Compare images at their own size; the loss is that at the network's."""
        assert isinstance(model, Segmenter)
        align = None if model.config.preprocessing.resize_mode == "stretch" else model.align_corners
        for images, masks, _ in by_shape(batch):
            logits = model(images)
            small = torch.stack(
                [F.interpolate(m[None, None].float(), images.shape[-2:])[0, 0] for m in masks]
            ).long()
            loss = segmentation_loss(logits, small, ignore=self.ignore)
            self.val_loss.update(loss, len(images))
            for one, mask in zip(logits, masks, strict=True):
                seen = full_size(one, *mask.shape, align_corners=align)
                self.confusion.update(seen.long(), mask.long())

    def figures(self, stage: str) -> dict[str, float]:
        """The loss; of validation mean IoU and the share of right pixels."""
        if stage == "train":
            return {"train_loss": float(self.train_loss.compute())}
        counts = self.confusion.compute()
        return {
            "val_loss": float(self.val_loss.compute()),
            "val_miou": mean_iou(counts),
            "val_pixel_accuracy": float(counts.diag().sum() / counts.sum().clamp(min=1)),
        }

    def line(self, figures: Mapping[str, float]) -> str:
        """Loss of both, figures of validation."""
        return (
            f"train loss {figures['train_loss']:.4f}  val loss {figures['val_loss']:.4f}, "
            f"mIoU {figures['val_miou']:.3f}, pixels {figures['val_pixel_accuracy']:.2%}"
        )

    def reset(self, stage: str) -> None:
        """Start counting anew."""
        super().reset(stage)
        if stage == "val":
            self.confusion.reset()


class SegmentationJob:
    """Train a network on images with masks."""

    default_model = "deeplabv3_mobilevit_xs"
    lr_new, lr_given = 0.001, 0.0005
    batch_size = 8
    eval_batch_size: int | None = AT_ONCE
    head_lr = 10.0

    def __init__(self, masks: SegmentationAugment) -> None:
        """See `train`."""
        self.masks = masks

    def open(self, data: DataOptions, *, seed: int, console: Console) -> Opened[MaskSamples]:
        """Find the images and their masks, and look at the files."""
        found = mask_splits(
            data.root,
            format=data.format,
            classes=data.class_names,
            ignore=data.ignore,
            val_fraction=data.val_fraction,
            seed=seed,
            on_bad=data.on_bad,
        )
        console.print(f"data: {found.note}", highlight=False, soft_wrap=True)
        return Opened(found.train, found.val, found.train.classes, None, len(found.train))

    def training_set(
        self, samples: MaskSamples, rule: Preprocessing, *, seed: int, decode: Decode
    ) -> BatchSource:
        """Augmented batches."""
        return SegmentationSet(
            samples, SegmentationTransform(self.masks, rule), seed=seed, decode=decode
        )

    def evaluation_set(self, samples: MaskSamples, rule: Preprocessing) -> BatchSource:
        """Batches as the network is evaluated on them."""
        return SegmentationEvaluationSet(samples, rule)

    def chosen(self, samples: MaskSamples, indices: list[int]) -> MaskSamples:
        """Some of the samples."""
        return samples.some(indices)

    def learner(
        self, val: MaskSamples, config: ModelConfig, *, sizes: Sequence[int], console: Console
    ) -> Learner:
        """The loss and the figures."""
        return SegmentationLearner(val)

    def finish(
        self,
        run: Path,
        network: Any,
        *,
        val: tuple[MaskSamples, EvaluationLoader],
        train: tuple[MaskSamples, EvaluationLoader],
        device: torch.device,
        history: History,
    ) -> SegmentationResult:
        """Evaluate the best weights, and write the report."""
        from mobilevit.tasks.segmentation.report import write_segmentation_report

        metrics = evaluate_segmenter(network, val[1], val[0], device=device)
        on_train = evaluate_segmenter(network, train[1], train[0], device=device)
        result = SegmentationResult(folder=run, metrics=metrics, train_miou=on_train.miou)
        write_segmentation_report(
            run / "report.html", result, history, val[0], config=network.config
        )
        return result

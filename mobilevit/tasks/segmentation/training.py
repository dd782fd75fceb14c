"""Segmentation in training: cross-entropy over pixels, mean IoU in validation."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from mobilevit.models.registry import Network
from mobilevit.models.segmentation import Segmenter
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.loss_and_postprocess import (
    full_size,
    segmentation_loss,
    stretch_mode,
)
from mobilevit.tasks.segmentation.metrics import mean_iou
from mobilevit.tasks.segmentation.transforms import by_shape
from mobilevit.tasks.training_task import TrainingTask


class SegmentationTraining(TrainingTask):
    """Cross-entropy over pixels; mean intersection over union in validation."""

    def __init__(self, val: MaskSamples) -> None:
        super().__init__()
        self.ignore = val.ignore
        self.confusion = MulticlassConfusionMatrix(
            len(val.classes), ignore_index=val.ignore, validate_args=False
        )

    def training_loss(self, model: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        loss = segmentation_loss(model(images), masks, ignore=self.ignore)
        self.train_loss.update(loss.detach(), len(images))
        return loss

    def validate(self, model: Network, batch: list[tuple[Tensor, Tensor, int]]) -> None:
        assert isinstance(model, Segmenter)
        align = stretch_mode(model)
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
        if stage == "train":
            return {"train_loss": float(self.train_loss.compute())}
        counts = self.confusion.compute()
        return {
            "val_loss": float(self.val_loss.compute()),
            "val_miou": mean_iou(counts),
            "val_pixel_accuracy": float(counts.diag().sum() / counts.sum().clamp(min=1)),
        }

    def summary(self, figures: Mapping[str, float]) -> str:
        return (
            f"train loss {figures['train_loss']:.4f}  val loss {figures['val_loss']:.4f}, "
            f"mIoU {figures['val_miou']:.3f}, pixels {figures['val_pixel_accuracy']:.2%}"
        )

    def reset(self, stage: str) -> None:
        super().reset(stage)
        if stage == "val":
            self.confusion.reset()

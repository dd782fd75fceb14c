"""Segmentation in training: cross-entropy over pixels, mean IoU in validation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.models.registry import Network
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.segmentation.loss_and_postprocess import segmentation_loss
from mobilevit.tasks.training_task import TrainingTask


class SegmentationTraining(TrainingTask):
    """Cross-entropy over pixels; mean intersection over union in validation."""

    task = "segmentation"
    line = (
        "train loss {train_loss:.4f}  val loss {val_loss:.4f}, "
        "mIoU {val_miou:.3f}, pixels {val_pixel_accuracy:.2%}"
    )

    def training_loss(self, model: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        loss = segmentation_loss(model(images), masks, ignore=self.val.ignore)
        self.count(len(images), loss=loss)
        return loss

    def validation_loss(self, model: Network, outputs: Tensor, batch: ImageBatch) -> Tensor:
        size = batch.images.shape[-2:]
        small = [F.interpolate(mask[None, None].float(), size)[0, 0] for mask in batch.targets]
        return segmentation_loss(outputs, torch.stack(small).long(), ignore=self.val.ignore)

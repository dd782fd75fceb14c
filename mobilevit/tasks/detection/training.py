"""Detection in training: SSD's loss, and COCO's metrics in validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mobilevit.models.registry import Network
from mobilevit.models.ssdlite import SSDLite
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.detection.loss_and_postprocess import (
    DetectionLoss,
    DetectionLossOptions,
    Targets,
    detection_loss,
    detections,
)
from mobilevit.tasks.detection.metrics import (
    as_prediction,
    as_target,
    average_precision,
    coco_figures,
)
from mobilevit.tasks.detection.transforms import BoxBatch
from mobilevit.tasks.training_task import FiniteMean, TrainingTask


class DetectionTraining(TrainingTask):
    """SSD's loss, and COCO's metrics in validation against the boxes of `val`."""

    def __init__(self, val: BoxSamples, options: DetectionLossOptions) -> None:
        super().__init__()
        self.val, self.options = val, options
        self.train_classes, self.train_location = FiniteMean(), FiniteMean()
        self.precision = average_precision()

    def _loss(self, model: Network, images: Tensor, boxes: BoxBatch) -> tuple[Tensor, Any]:
        assert isinstance(model, SSDLite)
        raw = model(images)
        anchors = model.anchors(*images.shape[-2:]).to(images.device)
        parts = detection_loss(raw, Targets(*boxes), anchors, self.options)
        return parts.classes + self.options.location_weight * parts.location, (raw, anchors, parts)

    def training_loss(self, model: Network, batch: tuple[Tensor, BoxBatch]) -> Tensor:
        images, boxes = batch
        loss, (_, _, parts) = self._loss(model, images, boxes)
        self.train_loss.update(loss.detach(), len(images))
        detached: DetectionLoss = parts
        self.train_classes.update(detached.classes.detach(), len(images))
        self.train_location.update(detached.location.detach(), len(images))
        return loss

    def validate(self, model: Network, batch: tuple[Tensor, BoxBatch, Tensor, Tensor]) -> None:
        images, boxes, indices, sizes = batch
        loss, (raw, anchors, _) = self._loss(model, images, boxes)
        self.val_loss.update(loss, len(images))
        found = detections(raw, anchors, [(int(h), int(w)) for h, w in sizes])
        truth = [as_target(self.val.annotation(index)) for index in indices.tolist()]
        self.precision.update([as_prediction(one) for one in found], truth)

    def figures(self, stage: str) -> dict[str, float]:
        if stage == "train":
            parts = {"loss": self.train_loss, "classes": self.train_classes}
            parts["location"] = self.train_location
            return {f"train_{name}": float(metric.compute()) for name, metric in parts.items()}
        figures = coco_figures(self.precision.compute())
        values = {"loss": float(self.val_loss.compute()), **figures}
        return {f"val_{name}": value for name, value in values.items()}

    def summary(self, figures: Mapping[str, float]) -> str:
        return (
            f"train loss {figures['train_loss']:.4f}  val loss {figures['val_loss']:.4f}, "
            f"AP {figures['val_ap']:.3f}, AP50 {figures['val_ap50']:.3f}"
        )

    def reset(self, stage: str) -> None:
        super().reset(stage)
        if stage == "train":
            self.train_classes.reset()
            self.train_location.reset()
        else:
            self.precision.reset()

"""Detection in training: SSD's loss, and COCO's metrics in validation."""

from collections.abc import Mapping

from torch import Tensor

from mobilevit.models.registry import Network
from mobilevit.models.ssdlite import RawDetections, SSDLite
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.detection.loss import DetectionLossOptions, Targets, detection_loss
from mobilevit.tasks.detection.metrics import (
    DetectionMetric,
    average_precision,
    coco_figures,
)
from mobilevit.tasks.detection.postprocess import detections
from mobilevit.tasks.training_task import FiniteMean, TrainingTask


class DetectionTraining(TrainingTask):
    """SSD's loss, and COCO's metrics in validation against the boxes of `val`."""

    def __init__(self, val: BoxSamples, options: DetectionLossOptions) -> None:
        super().__init__()
        self.val, self.options = val, options
        self.train_classes, self.train_location = FiniteMean(), FiniteMean()
        self.evaluation = DetectionMetric(val)
        self.coco: dict[str, float] | None = None
        """COCO's figures of the epoch, once they have been computed."""

    def _loss(
        self, model: Network, images: Tensor, targets: Targets
    ) -> tuple[dict[str, Tensor], RawDetections, Tensor]:
        """The loss with its two parts, the outputs, and their anchors."""
        assert isinstance(model, SSDLite)
        raw = model(images)
        anchors = model.anchors(*images.shape[-2:]).to(images.device)
        parts = detection_loss(raw, targets, anchors, self.options)._asdict()
        loss = parts["classes"] + self.options.location_weight * parts["location"]
        return {"loss": loss, **parts}, raw, anchors

    def training_loss(self, model: Network, batch: tuple[Tensor, Targets]) -> Tensor:
        images, targets = batch
        losses, _, _ = self._loss(model, images, targets)
        for name, value in losses.items():
            getattr(self, f"train_{name}").update(value.detach(), len(images))
        return losses["loss"]

    def validate(self, model: Network, batch: tuple[Tensor, Targets, Tensor, Tensor]) -> None:
        images, targets, indices, sizes = batch
        losses, raw, anchors = self._loss(model, images, targets)
        self.val_loss.update(losses["loss"], len(images))
        found = detections(raw, anchors, [(int(h), int(w)) for h, w in sizes])
        self.evaluation.update(found, indices.tolist())

    def figures(self, stage: str) -> dict[str, float]:
        if stage == "train":
            names = ("train_loss", "train_classes", "train_location")
            return {name: float(getattr(self, name).compute()) for name in names}
        if self.coco is None:
            results, truth = self.evaluation.gather()
            self.coco = coco_figures(average_precision([found for _, found in results], truth))
        values = {"loss": float(self.val_loss.compute()), **self.coco}
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
            self.evaluation, self.coco = DetectionMetric(self.val), None

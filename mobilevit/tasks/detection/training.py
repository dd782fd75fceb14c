"""Detection in training: SSD's loss, and COCO's metrics in validation."""

from collections.abc import Sequence

from torch import Tensor

from mobilevit.models.registry import Network
from mobilevit.models.ssdlite import RawDetections, SSDLite
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.detection.dataset import Targets
from mobilevit.tasks.detection.loss import detection_loss
from mobilevit.tasks.training_task import TrainingTask


class DetectionTraining(TrainingTask):
    """SSD's loss, and COCO's metrics in validation against the boxes of `val`."""

    task = "detection"
    line = (
        "train loss {train_loss:.4f}  val loss {val_loss:.4f}, AP {val_ap:.3f}, AP50 {val_ap50:.3f}"
    )

    def mean_names(self) -> Sequence[str]:
        return ("classes", "location")

    def _losses(
        self, model: Network, raw: RawDetections, images: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """The loss and its two parts."""
        assert isinstance(model, SSDLite)
        anchors = model.anchors(*images.shape[-2:]).to(images.device)
        parts = detection_loss(raw, targets, anchors, self.options.loss)
        loss = parts.classes + self.options.loss.location_weight * parts.location
        return {"loss": loss, **parts._asdict()}

    def training_loss(self, model: Network, batch: tuple[Tensor, Targets]) -> Tensor:
        images, targets = batch
        losses = self._losses(model, model(images), images, targets)
        self.count(len(images), **losses)
        return losses["loss"]

    def validation_loss(self, model: Network, outputs: RawDetections, batch: ImageBatch) -> Tensor:
        return self._losses(model, outputs, batch.images, batch.targets)["loss"]

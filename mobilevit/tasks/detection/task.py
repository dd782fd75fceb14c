"""Detection in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from mobilevit.data.decode import Decode
from mobilevit.data.formats.folders import DataError
from mobilevit.data.loader import BatchSource, EvaluationLoader
from mobilevit.data.options import DataOptions
from mobilevit.data.validate import unreadable
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.registry import Network
from mobilevit.models.ssdlite import SSDLite
from mobilevit.tasks.base import Opened
from mobilevit.tasks.detection.dataset import BoxSamples, some
from mobilevit.tasks.detection.loss_and_postprocess import (
    DetectionLoss,
    DetectionLossOptions,
    Targets,
    detection_loss,
    detections,
)
from mobilevit.tasks.detection.metrics import (
    as_answer,
    as_truth,
    average_precision,
    coco_figures,
    evaluate_detector,
)
from mobilevit.tasks.detection.open import box_splits
from mobilevit.tasks.detection.transforms import (
    BoxAugmentOptions,
    BoxBatch,
    BoxTransform,
    DetectionEvaluationSet,
    DetectionSet,
)
from mobilevit.tasks.training_result import DetectionResult
from mobilevit.training.learner import FiniteMean, Learner

if TYPE_CHECKING:
    from mobilevit.training.callbacks import History


class DetectionLearner(Learner):
    """SSD's loss; COCO's figures in validation."""

    best = "ap"

    def __init__(self, val: BoxSamples, options: DetectionLossOptions) -> None:
        """`val`: the samples to validate on, whose boxes are the truth."""
        super().__init__()
        self.val, self.options = val, options
        self.train_classes = FiniteMean(nan_strategy="disable")
        self.train_location = FiniteMean(nan_strategy="disable")
        for metric in (self.train_classes, self.train_location):
            metric.persistent(True)
        self.precision = average_precision()

    def _loss(self, model: Network, images: Tensor, boxes: BoxBatch) -> tuple[Tensor, Any]:
        assert isinstance(model, SSDLite)
        raw = model(images)
        anchors = model.anchors(*images.shape[-2:]).to(images.device)
        parts = detection_loss(raw, Targets(*boxes), anchors, self.options)
        return parts.classes + self.options.location_weight * parts.location, (raw, anchors, parts)

    def training_loss(self, model: Network, batch: tuple[Tensor, BoxBatch]) -> Tensor:
        """Cross-entropy and smooth L1, each for one box on average."""
        images, boxes = batch
        loss, (_, _, parts) = self._loss(model, images, boxes)
        self.train_loss.update(loss.detach(), len(images))
        detached: DetectionLoss = parts
        self.train_classes.update(detached.classes.detach(), len(images))
        self.train_location.update(detached.location.detach(), len(images))
        return loss

    def validate(self, model: Network, batch: tuple[Tensor, BoxBatch, Tensor, Tensor]) -> None:
        """Compare what is found with the images' boxes."""
        images, boxes, indices, sizes = batch
        loss, (raw, anchors, _) = self._loss(model, images, boxes)
        self.val_loss.update(loss, len(images))
        found = detections(raw, anchors, [(int(h), int(w)) for h, w in sizes])
        truth = [as_truth(self.val.annotation(index)) for index in indices.tolist()]
        self.precision.update([as_answer(one) for one in found], truth)

    def figures(self, stage: str) -> dict[str, float]:
        """The loss; of training its parts, of validation COCO's numbers."""
        if stage == "train":
            parts = {"loss": self.train_loss, "classes": self.train_classes}
            parts["location"] = self.train_location
            return {f"train_{name}": float(metric.compute()) for name, metric in parts.items()}
        figures = coco_figures(self.precision.compute())
        named = {"loss": float(self.val_loss.compute()), **figures}
        return {f"val_{name}": value for name, value in named.items()}

    def line(self, figures: Mapping[str, float]) -> str:
        """Loss of both, AP of validation."""
        return (
            f"train loss {figures['train_loss']:.4f}  val loss {figures['val_loss']:.4f}, "
            f"AP {figures['val_ap']:.3f}, AP50 {figures['val_ap50']:.3f}"
        )

    def reset(self, stage: str) -> None:
        """Start counting anew."""
        super().reset(stage)
        if stage == "train":
            self.train_classes.reset()
            self.train_location.reset()
        else:
            self.precision.reset()


class DetectionJob:
    """Train a detector on images with boxes: COCO, Pascal VOC or YOLO."""

    default_model = "ssdlite_mobilevit_xs"
    lr_new, lr_given = 0.001, 0.001
    batch_size = 16
    eval_batch_size: int | None = None
    head_lr = 1.0

    def __init__(self, boxes: BoxAugmentOptions, detection: DetectionLossOptions) -> None:
        """See `train`."""
        self.boxes, self.detection = boxes, detection

    def open(self, data: DataOptions, *, seed: int, console: Console) -> Opened[BoxSamples]:
        """Find the images and their boxes, and look at the images' files."""
        found = box_splits(
            data.root,
            format=data.format,
            val_fraction=data.val_fraction,
            seed=seed,
            on_bad=data.on_bad,
        )
        console.print(f"data: {found.note}", highlight=False, soft_wrap=True)
        train, val = found.train, found.val
        if data.check or data.on_bad == "skip":
            train, val = (readable_boxes(part, on_bad=data.on_bad) for part in (train, val))
        return Opened(train, val, train.classes, train.category_ids, len(train))

    def training_set(
        self, samples: BoxSamples, rule: Preprocessing, *, seed: int, decode: Decode
    ) -> BatchSource:
        """Augmented batches."""
        return DetectionSet(samples, BoxTransform(self.boxes, rule), seed=seed, decode=decode)

    def evaluation_set(self, samples: BoxSamples, rule: Preprocessing) -> BatchSource:
        """Batches as the network is evaluated on them."""
        return DetectionEvaluationSet(samples, rule)

    def chosen(self, samples: BoxSamples, indices: list[int]) -> BoxSamples:
        """Some of the samples."""
        return some(samples, indices)

    def learner(
        self, val: BoxSamples, config: ModelConfig, *, sizes: Sequence[int], console: Console
    ) -> Learner:
        """The loss and the figures."""
        return DetectionLearner(val, self.detection)

    def finish(
        self,
        run: Path,
        network: Any,
        *,
        val: tuple[BoxSamples, EvaluationLoader],
        train: tuple[BoxSamples, EvaluationLoader],
        device: torch.device,
        history: History,
    ) -> DetectionResult:
        """Evaluate the best weights, and write the report."""
        from mobilevit.tasks.detection.report import write_detection_report

        metrics = evaluate_detector(network, val[1], val[0], device=device)
        on_train = evaluate_detector(network, train[1], train[0], device=device)
        result = DetectionResult(folder=run, metrics=metrics, train_metrics=on_train)
        write_detection_report(run / "report.html", result, history, val[0], config=network.config)
        return result


def readable_boxes(samples: BoxSamples, *, on_bad: str) -> BoxSamples:
    """See that every image can be read, or leave out those that cannot.

    Raises:
        DataError: images cannot be read, and are not to be skipped; or none is left.
    """
    paths = [samples.source(index) for index in range(len(samples))]
    bad = unreadable(paths, quick=on_bad == "error")
    if not bad:
        return samples
    if on_bad == "error":
        listing = "\n".join(f"  {path}: {reason}" for path, reason in bad.items())
        raise DataError(
            f"{len(bad)} of {len(paths)} images cannot be read; mend or remove them, or leave "
            f"them out by --data.on_bad skip:\n{listing}"
        )
    kept = [index for index, path in enumerate(paths) if path not in bad]
    if not kept:
        raise DataError(f"{samples.root}: not one of its {len(paths)} images can be read")
    return some(samples, kept)

"""Labelled images of a data set, and how a network is evaluated on them, whatever its task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import torch

from mobilevit.data.formats.folders import evaluation_split, relabel, splits
from mobilevit.data.formats.torchvision import named_samples
from mobilevit.data.loader import BatchSource, EvaluationLoader
from mobilevit.data.options import DataOptions
from mobilevit.data.samples import FolderSamples, RelabelledSamples, Samples, SampleSubset
from mobilevit.data.shards.open import is_sharded, shard_evaluation, shard_splits
from mobilevit.data.validate import readable
from mobilevit.exports.runtime_model import AnyNetwork, FileDetector, FileSegmenter
from mobilevit.models.config import Preprocessing, Task
from mobilevit.models.segmentation import Segmenter
from mobilevit.models.ssdlite import SSDLite
from mobilevit.tasks.classification.dataset import EvaluationSet
from mobilevit.tasks.classification.metrics import ClassificationMetrics, evaluate_classifier
from mobilevit.tasks.detection.dataset import BoxSamples, relabelled, some
from mobilevit.tasks.detection.loss_and_postprocess import PRESETS, Preset
from mobilevit.tasks.detection.metrics import DetectionMetrics, evaluate_detector
from mobilevit.tasks.detection.open import box_evaluation, box_splits
from mobilevit.tasks.detection.transforms import DetectionEvaluationSet
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.metrics import SegmentationMetrics, evaluate_segmenter
from mobilevit.tasks.segmentation.open import mask_evaluation, mask_splits
from mobilevit.tasks.segmentation.transforms import SegmentationEvaluationSet
from mobilevit.utils.distributed import Processes

log = logging.getLogger(__name__)

AnySamples: TypeAlias = Samples | BoxSamples | MaskSamples
AnyMetrics: TypeAlias = ClassificationMetrics | DetectionMetrics | SegmentationMetrics


def evaluation_samples(data: DataOptions, task: Task, classes: tuple[str, ...]) -> AnySamples:
    """The images to evaluate by: those held out, else all; their labels count `classes`.

    Raises:
        DataError: they cannot be used; the message names which and why.
        ValueError: an option that means nothing to the task.
    """
    data.refuse_foreign(task)
    if task == "detection":
        # Here, because it imports Lightning, which takes seconds.
        from mobilevit.tasks.detection.task import readable_boxes

        boxes = box_evaluation(data.root, format=data.format, split=data.split, on_bad=data.on_bad)
        boxes = relabelled(boxes, classes)
        if data.check or data.on_bad == "skip":
            return readable_boxes(boxes, on_bad=data.on_bad)
        return boxes
    if task == "segmentation":
        return mask_evaluation(
            data.root,
            format=data.format,
            classes=classes,
            ignore=data.ignore,
            on_bad=data.on_bad,
        )
    if data.name is not None:
        return RelabelledSamples(named_samples(data.name, data.root)[1], classes)
    if is_sharded(data.root, data.index):
        return shard_evaluation(data.root, classes, index=data.index)
    found = evaluation_split(data.root)
    if found.root == Path(data.root):
        log.info(
            "%s: all its %d images are evaluated, whether trained on or not", found.root, len(found)
        )
    split = relabel(found, classes)
    if data.check or data.on_bad == "skip":
        (split,) = readable(split, on_bad=data.on_bad)
    return FolderSamples(split)


def training_samples(data: DataOptions, task: Task, classes: tuple[str, ...]) -> AnySamples:
    """The images that training takes; where the data is not divided, those it does not hold out.

    Raises:
        DataError: there are none, or they cannot be used.
    """
    how = {"format": data.format, "val_fraction": data.val_fraction, "on_bad": data.on_bad}
    if task == "detection":
        return box_splits(data.root, **how).train  # type: ignore[arg-type]
    if task == "segmentation":
        return mask_splits(data.root, classes=classes, ignore=data.ignore, **how).train  # type: ignore[arg-type]
    if data.name is not None:
        return named_samples(data.name, data.root)[0]
    if is_sharded(data.root, data.index):
        sharded = shard_splits(data.root, index=data.index, val_fraction=data.val_fraction)
        return sharded.train
    split = splits(data.root, val_fraction=data.val_fraction).train
    if data.on_bad == "skip":
        (split,) = readable(split, on_bad=data.on_bad)
    return FolderSamples(split)


def count(samples: AnySamples) -> int:
    """The number of images."""
    return len(samples) if isinstance(samples, BoxSamples | MaskSamples) else len(samples.labels)


def chosen(samples: AnySamples, indices: Sequence[int]) -> AnySamples:
    """Some of the images."""
    if isinstance(samples, BoxSamples):
        return some(samples, indices)
    return (
        samples.some(indices)
        if isinstance(samples, MaskSamples)
        else SampleSubset(samples, indices)
    )


def evaluated(
    network: AnyNetwork,
    samples: AnySamples,
    rule: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    postprocessing: Preset = "later",
    boundary: int = 0,
    processes: Processes = Processes(),
) -> AnyMetrics:
    """Evaluate a network, or what answers in its place, on images of its task.

    Args:
        network: in its form for inference, on `device`.
        samples: of `evaluation_samples`.
        rule: how images are prepared.
        batch_size: images at a time.
        workers: processes that decode.
        device: where to compute.
        postprocessing: detection: a name out of `PRESETS`.
        boundary: segmentation: see `evaluate_segmenter`.
        processes: which of those that have joined this one is; each takes its share.

    Raises:
        ImageError: an image cannot be read.
    """

    def batches(dataset: BatchSource) -> EvaluationLoader:
        return EvaluationLoader(
            dataset,
            batch_size=batch_size,
            workers=workers,
            rank=processes.rank,
            world_size=processes.world_size,
        )

    if isinstance(network, SSDLite | FileDetector):
        boxes = cast(BoxSamples, samples)
        return evaluate_detector(
            network,
            batches(DetectionEvaluationSet(boxes, rule)),
            boxes,
            rule=PRESETS[postprocessing],
            device=device,
        )
    if isinstance(network, Segmenter | FileSegmenter):
        masks = cast(MaskSamples, samples)
        return evaluate_segmenter(
            network,
            batches(SegmentationEvaluationSet(masks, rule)),
            masks,
            device=device,
            boundary=boundary,
        )
    images = cast(Samples, samples)
    return evaluate_classifier(
        network,
        batches(EvaluationSet(images, rule)),
        classes=images.classes,
        device=device,
    )

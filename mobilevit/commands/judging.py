"""Labelled pictures of a data set, and how a network is judged on them, whatever its task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import torch

from mobilevit.data.box_transforms import DetectionEvaluationSet
from mobilevit.data.boxes import BoxSamples, relabelled, some
from mobilevit.data.check import readable
from mobilevit.data.datasets import (
    EvaluationSet,
    FolderSamples,
    RelabelledSamples,
    Samples,
    SomeSamples,
)
from mobilevit.data.find_boxes import box_evaluation, box_splits
from mobilevit.data.find_masks import mask_evaluation, mask_splits
from mobilevit.data.find_shards import is_sharded, shard_evaluation, shard_splits
from mobilevit.data.folder import evaluation_split, relabel, splits
from mobilevit.data.loader import BatchSource, EvaluationLoader
from mobilevit.data.mask_transforms import SegmentationEvaluationSet
from mobilevit.data.masks import MaskSamples
from mobilevit.data.named import named_samples
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.data.processes import Processes
from mobilevit.exports.network import AnyNetwork, FileDetector, FileSegmenter
from mobilevit.models.deeplabv3 import Segmenter
from mobilevit.models.ssdlite import SSDLite
from mobilevit.models.variants import Task
from mobilevit.tasks.classification import ClassificationMetrics, judge
from mobilevit.tasks.detection import PRESETS, Preset
from mobilevit.tasks.detection_metrics import DetectionMetrics, judge_detector
from mobilevit.tasks.segmentation import SegmentationMetrics, judge_segmenter
from mobilevit.training.options import DataOptions

log = logging.getLogger(__name__)

AnySamples: TypeAlias = Samples | BoxSamples | MaskSamples
AnyMetrics: TypeAlias = ClassificationMetrics | DetectionMetrics | SegmentationMetrics


def evaluation_samples(data: DataOptions, task: Task, classes: tuple[str, ...]) -> AnySamples:
    """The pictures to judge by: those held out, else all; their labels count `classes`.

    Raises:
        DataError: they can not be used; the message names which and why.
        ValueError: an option that means nothing to the task.
    """
    data.refuse_foreign(task)
    if task == "detection":
        # Here, because it imports Lightning, which takes seconds.
        from mobilevit.training.detection import readable_boxes

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
            "%s: all its %d pictures are judged, whether trained on or not", found.root, len(found)
        )
    split = relabel(found, classes)
    if data.check or data.on_bad == "skip":
        (split,) = readable(split, on_bad=data.on_bad)
    return FolderSamples(split)


def training_samples(data: DataOptions, task: Task, classes: tuple[str, ...]) -> AnySamples:
    """The pictures that training takes; where the data is not divided, those it does not hold out.

    Raises:
        DataError: there are none, or they can not be used.
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
    """The number of pictures."""
    return len(samples) if isinstance(samples, BoxSamples | MaskSamples) else len(samples.labels)


def chosen(samples: AnySamples, indices: Sequence[int]) -> AnySamples:
    """Some of the pictures."""
    if isinstance(samples, BoxSamples):
        return some(samples, indices)
    return (
        samples.some(indices) if isinstance(samples, MaskSamples) else SomeSamples(samples, indices)
    )


def judged(
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
    """Judge a network, or what answers in its place, on pictures of its task.

    Args:
        network: in its form for inference, on `device`.
        samples: of `evaluation_samples`.
        rule: how pictures are prepared.
        batch_size: pictures at a time.
        workers: processes that decode.
        device: where to compute.
        postprocessing: detection: a name out of `PRESETS`.
        boundary: segmentation: see `judge_segmenter`.
        processes: which of those that have joined this one is; each takes its share.

    Raises:
        ImageError: a picture can not be read.
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
        return judge_detector(
            network,
            batches(DetectionEvaluationSet(boxes, rule)),
            boxes,
            rule=PRESETS[postprocessing],
            device=device,
        )
    if isinstance(network, Segmenter | FileSegmenter):
        masks = cast(MaskSamples, samples)
        return judge_segmenter(
            network,
            batches(SegmentationEvaluationSet(masks, rule)),
            masks,
            device=device,
            boundary=boundary,
        )
    pictures = cast(Samples, samples)
    return judge(
        network,
        batches(EvaluationSet(pictures, rule)),
        classes=pictures.classes,
        device=device,
    )

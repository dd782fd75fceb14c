"""Segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mobilevit.tasks.base import Colour, InferenceOptions, Task
from mobilevit.tasks.dataset import ImageBatch
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.export import EXPORT
from mobilevit.tasks.segmentation.loss_and_postprocess import (
    MAX_BATCH,
    full_size,
)
from mobilevit.tasks.segmentation.metrics import SegmentationMetric
from mobilevit.tasks.segmentation.options import SegmentationOptions
from mobilevit.tasks.segmentation.report import make_report
from mobilevit.tasks.segmentation.results import (
    SegmentationPrediction,
    SegmentationPredictions,
    encode_mask,
    palette_of,
)
from mobilevit.tasks.segmentation.training import SegmentationTraining
from mobilevit.tasks.segmentation.transforms import SegmentationSet


class Segmentation(Task):
    """Images with masks."""

    name = "segmentation"
    metric_key, metric_name = "miou", "mean IoU"
    export = EXPORT
    default_model = "deeplabv3_mobilevit_xs"
    lr_scratch, lr_finetune = 0.001, 0.0005
    head_lr = 10.0
    batch_size, max_eval_batch_size = 8, MAX_BATCH
    samples_type, training_dataset = MaskSamples, SegmentationSet
    data_options = frozenset({"format", "classes", "ignore"})
    options, training_task = SegmentationOptions, SegmentationTraining
    metric, report = SegmentationMetric, staticmethod(make_report)
    prediction_type, predictions_type = SegmentationPrediction, SegmentationPredictions

    def postprocess(
        self, model: Any, outputs: Tensor, batch: ImageBatch, options: InferenceOptions
    ) -> list[Tensor]:
        stretched = model.config.preprocessing.resize_mode == "stretch"
        align = None if stretched else model.align_corners
        return [
            full_size(output, *size, align_corners=align)
            for output, size in zip(outputs, batch.sizes, strict=True)
        ]

    def palette(self, classes: Sequence[str]) -> list[Colour]:
        return palette_of(tuple(classes))[: len(classes)]

    def prediction(
        self, source: str, classes: tuple[str, ...], result: Tensor, options: InferenceOptions
    ) -> SegmentationPrediction:
        png = encode_mask(result.cpu().numpy(), classes)
        return SegmentationPrediction(source=source, classes=classes, png=png)

    def parquet_columns(self, pyarrow: Any) -> list[tuple[str, Any]]:
        return [
            ("width", pyarrow.int32()),
            ("height", pyarrow.int32()),
            ("classes", pyarrow.list_(pyarrow.string())),
            ("shares", pyarrow.list_(pyarrow.float32())),
            ("mask", pyarrow.binary()),
        ]


TASK = Segmentation()

"""Classification: one class for an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mobilevit.data.splits import LabelSamples
from mobilevit.tasks.base import InferenceOptions, Task
from mobilevit.tasks.classification.export import EXPORT
from mobilevit.tasks.classification.metrics import ClassificationMetric
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.report import make_report
from mobilevit.tasks.classification.results import (
    ClassificationPrediction,
    ClassificationPredictions,
)
from mobilevit.tasks.classification.training import ClassificationTraining
from mobilevit.tasks.classification.transforms import ClassificationSet
from mobilevit.tasks.dataset import ImageBatch


class Classification(Task):
    """Images in class folders, tables, shards or torchvision's data sets."""

    name = "classification"
    metric_key, metric_name = "top1", "top-1"
    export = EXPORT
    default_model = "mobilevit_xs"
    lr_scratch, lr_finetune = 0.002, 0.001
    batch_size = 64
    samples_type, training_dataset = LabelSamples, ClassificationSet
    data_options = frozenset({"name", "index", "pool", "check", "format"})
    inference_options = ("top",)
    options, training_task = ClassificationOptions, ClassificationTraining
    metric, report = ClassificationMetric, staticmethod(make_report)
    prediction_type, predictions_type = ClassificationPrediction, ClassificationPredictions

    def source_note(self, options: ClassificationOptions) -> str:
        teacher = options.distill.teacher
        return "" if teacher is None else f", taught by {teacher}"

    def postprocess(
        self, model: Any, outputs: Tensor, batch: ImageBatch, options: InferenceOptions
    ) -> Any:
        return outputs.float()

    def prediction(
        self, source: str, classes: tuple[str, ...], result: Tensor, options: InferenceOptions
    ) -> ClassificationPrediction:
        return ClassificationPrediction(
            source=source,
            classes=classes,
            logits=result.cpu().numpy(),
            listed=options.top,
        )

    def parquet_columns(self, pyarrow: Any) -> list[tuple[str, Any]]:
        return [
            ("class", pyarrow.string()),
            ("probability", pyarrow.float32()),
            ("classes", pyarrow.list_(pyarrow.string())),
            ("probabilities", pyarrow.list_(pyarrow.float32())),
        ]


TASK = Classification()

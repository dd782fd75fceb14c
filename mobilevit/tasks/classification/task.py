"""Classification: one class for an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import Tensor

from mobilevit.data.loader import BatchSource
from mobilevit.data.splits import LabelSamples
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.tasks.base import InferenceOptions, Task
from mobilevit.tasks.classification.dataset import EvaluationSet, TrainingSet
from mobilevit.tasks.classification.distill import load_teacher
from mobilevit.tasks.classification.export import EXPORT
from mobilevit.tasks.classification.metrics import ClassificationMetric
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.report import make_report
from mobilevit.tasks.classification.results import (
    ClassificationPrediction,
    ClassificationPredictions,
)
from mobilevit.tasks.classification.transforms import BatchMix, TrainTransform

if TYPE_CHECKING:
    from mobilevit.tasks.training_task import TrainingTask


class Classification(Task):
    """Images in class folders, tables, shards or torchvision's data sets."""

    name = "classification"
    metric_key, metric_name = "top1", "top-1"
    export = EXPORT
    default_model = "mobilevit_xs"
    lr_scratch, lr_finetune = 0.002, 0.001
    batch_size = 64
    samples_type = LabelSamples
    data_options = frozenset({"name", "index", "pool", "check", "format"})
    inference_options = ("top",)
    options = ClassificationOptions
    evaluation_dataset = EvaluationSet
    metric, report = ClassificationMetric, staticmethod(make_report)
    prediction_type, predictions_type = ClassificationPrediction, ClassificationPredictions

    def training_dataset(
        self,
        samples: LabelSamples,
        preprocessing: Preprocessing,
        options: ClassificationOptions,
        **loading: Any,
    ) -> BatchSource:
        transform = TrainTransform(options.augment, preprocessing)
        mix = BatchMix(options.augment, len(samples.classes))
        return TrainingSet(samples, transform, mix, **loading)

    def source_note(self, options: ClassificationOptions) -> str:
        teacher = options.distill.teacher
        return "" if teacher is None else f", taught by {teacher}"

    def training_task(
        self,
        options: ClassificationOptions,
        val: LabelSamples,
        config: ModelConfig,
        *,
        sizes: Sequence[int],
        console: Console,
    ) -> TrainingTask:
        from mobilevit.tasks.classification.training import ClassificationTraining

        name = options.distill.teacher
        teacher = None if name is None else load_teacher(name, config, sizes=sizes, console=console)
        return ClassificationTraining(len(val.classes), options, teacher)

    def postprocess(
        self,
        model: Any,
        outputs: Tensor,
        *,
        input_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        options: InferenceOptions,
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

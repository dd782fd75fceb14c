"""Detection: boxes with classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mobilevit.data.loader import BatchSource
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.ssdlite import RawDetections
from mobilevit.tasks.base import InferenceOptions, Task
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.detection.export import EXPORT
from mobilevit.tasks.detection.metrics import DetectionMetric
from mobilevit.tasks.detection.options import DetectionOptions
from mobilevit.tasks.detection.postprocess import (
    PRESETS,
    Detections,
    SuppressedBoxes,
    detections,
)
from mobilevit.tasks.detection.report import make_report
from mobilevit.tasks.detection.results import (
    CORNERS,
    DetectionPrediction,
    DetectionPredictions,
)
from mobilevit.tasks.detection.transforms import BoxTransform, DetectionEvaluationSet, DetectionSet

if TYPE_CHECKING:
    from rich.console import Console

    from mobilevit.tasks.training_task import TrainingTask


class Detection(Task):
    """Images with boxes: COCO, Pascal VOC, YOLO or CSV tables."""

    name = "detection"
    metric_key, metric_name = "ap", "AP"
    export = EXPORT
    default_model = "ssdlite_mobilevit_xs"
    lr_scratch, lr_finetune = 0.001, 0.001
    batch_size = 16
    samples_type = BoxSamples
    data_options = frozenset({"format", "split", "check"})
    inference_options = ("score", "postprocessing")
    options = DetectionOptions
    evaluation_dataset = DetectionEvaluationSet
    metric, report = DetectionMetric, staticmethod(make_report)
    prediction_type, predictions_type = DetectionPrediction, DetectionPredictions

    def training_dataset(
        self,
        samples: BoxSamples,
        preprocessing: Preprocessing,
        options: DetectionOptions,
        **loading: Any,
    ) -> BatchSource:
        return DetectionSet(samples, BoxTransform(options.augment, preprocessing), **loading)

    def training_task(
        self,
        options: DetectionOptions,
        val: BoxSamples,
        config: ModelConfig,
        *,
        sizes: Sequence[int],
        console: Console,
    ) -> TrainingTask:
        from mobilevit.tasks.detection.training import DetectionTraining

        return DetectionTraining(val, options.loss)

    def postprocess(
        self,
        model: Any,
        outputs: RawDetections | SuppressedBoxes,
        *,
        input_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        options: InferenceOptions,
    ) -> list[Detections]:
        preset = PRESETS[options.postprocessing]
        if options.score is not None:
            preset = replace(preset, score=options.score)
        anchors = model.anchors(*input_size).to(outputs[0].device)
        return detections(outputs, anchors, sizes, preset)

    def refused_by_files(self, options: InferenceOptions) -> str | None:
        # A file with non-maximum suppression inside has the preset `later`.
        lowest = PRESETS["later"].score
        if options.postprocessing != "later":
            return (
                "the file has the postprocessing later inside, not "
                f"{options.postprocessing}: export it with raw to choose"
            )
        if options.score is not None and options.score < lowest:
            return (
                f"score is {options.score:g}, but the file returns boxes from {lowest:g} on: "
                "export it with raw for others"
            )
        return None

    def prediction(
        self, source: str, classes: tuple[str, ...], result: Detections, options: InferenceOptions
    ) -> DetectionPrediction:
        return DetectionPrediction(source=source, classes=classes, detections=result)

    def parquet_columns(self, pyarrow: Any) -> list[tuple[str, Any]]:
        corners = [(name, pyarrow.float32()) for name in CORNERS]
        box = [("class", pyarrow.string()), ("score", pyarrow.float32()), *corners]
        return [
            ("width", pyarrow.int32()),
            ("height", pyarrow.int32()),
            ("boxes", pyarrow.list_(pyarrow.struct(box))),
        ]


TASK = Detection()

"""Detection: boxes with classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mobilevit.models.ssdlite import RawDetections
from mobilevit.tasks.base import Colour, InferenceOptions, Task
from mobilevit.tasks.dataset import ImageBatch
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
from mobilevit.tasks.detection.training import DetectionTraining
from mobilevit.tasks.detection.transforms import DetectionSet
from mobilevit.tasks.visualize import class_colour


class Detection(Task):
    """Images with boxes: COCO, Pascal VOC, YOLO or CSV tables."""

    name = "detection"
    metric_key, metric_name = "ap", "AP"
    export = EXPORT
    default_model = "ssdlite_mobilevit_xs"
    lr_scratch, lr_finetune = 0.001, 0.001
    batch_size = 16
    samples_type, training_dataset = BoxSamples, DetectionSet
    data_options = frozenset({"format", "split", "check"})
    inference_options = ("score", "postprocessing")
    options, training_task = DetectionOptions, DetectionTraining
    metric, report = DetectionMetric, staticmethod(make_report)
    prediction_type, predictions_type = DetectionPrediction, DetectionPredictions

    def postprocess(
        self,
        model: Any,
        outputs: RawDetections | SuppressedBoxes,
        batch: ImageBatch,
        options: InferenceOptions,
    ) -> list[Detections]:
        preset = PRESETS[options.postprocessing]
        if options.score is not None:
            preset = replace(preset, score=options.score)
        anchors = model.anchors(*batch.images.shape[-2:]).to(outputs[0].device)
        return detections(outputs, anchors, batch.sizes, preset)

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

    def palette(self, classes: Sequence[str]) -> list[Colour]:
        return [class_colour(label) for label in range(len(classes))]

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

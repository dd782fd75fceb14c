"""Predictions of detectors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from PIL import Image

from mobilevit.models.config import ModelConfig
from mobilevit.tasks.detection.loss_and_postprocess import Detections
from mobilevit.tasks.results import ClassScore, Prediction, Predictions
from mobilevit.tasks.visualize import DrawnBox, class_colour, draw_boxes

CONTACT_SHEET = 100
"""Most boxes of an image on a contact sheet."""
CORNERS = ("x1", "y1", "x2", "y2")


class DetectedBox(NamedTuple):
    """A detected object."""

    name: str
    score: float
    """Probability, in [0, 1]."""
    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionPrediction(Prediction):
    """The objects in one image."""

    detections: Detections | None = None
    """Boxes, scores and labels; None where the image could not be read."""

    @property
    def found(self) -> Detections:
        """The detections; ImageError if the image could not be read."""
        self.check()
        assert self.detections is not None
        return self.detections

    @property
    def boxes(self) -> list[DetectedBox]:
        """The objects, most probable first; ImageError if the image could not be read."""
        columns = (part.tolist() for part in self.found)
        return [
            DetectedBox(self.classes[label], score, (x1, y1, x2, y2))
            for (x1, y1, x2, y2), score, label in zip(*columns, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "boxes": [
                {
                    "class": box.name,
                    "score": round(box.score, 6),
                    "corners": [round(value, 2) for value in box.corners],
                }
                for box in self.boxes
            ]
        }

    def csv_rows(self) -> list[dict[str, str]]:
        return [
            {
                "class": box.name,
                "score": f"{box.score:.6f}",
                **{key: f"{value:.2f}" for key, value in zip(CORNERS, box.corners, strict=True)},
            }
            for box in self.boxes
        ]

    def table_row(self) -> tuple[str, ...]:
        counts = Counter(box.name for box in self.boxes)
        return str(counts.total()), ", ".join(f"{n} {name}" for name, n in counts.most_common())

    def parquet_row(self) -> dict[str, Any]:
        height, width = self.found.boxes.canvas_size
        boxes = [
            {"class": box.name, "score": box.score, **dict(zip(CORNERS, box.corners, strict=True))}
            for box in self.boxes
        ]
        return {"width": width, "height": height, "boxes": boxes}

    def scores(self) -> list[ClassScore]:
        return [ClassScore(box.name, box.score) for box in self.boxes[:CONTACT_SHEET]]

    def draw(self, image: Image.Image) -> Image.Image:
        return draw_boxes(image, self._drawn())

    def draw_thumbnail(self, image: Image.Image) -> Image.Image:
        height, width = self.found.boxes.canvas_size
        scale = (image.width / width, image.height / height) * 2
        return draw_boxes(
            image,
            [
                box._replace(
                    corners=tuple(a * b for a, b in zip(box.corners, scale, strict=True)), text=""
                )
                for box in self._drawn()[:CONTACT_SHEET]
            ],
            longest=max(image.size),
        )

    def _drawn(self) -> list[DrawnBox]:
        labels = self.found.labels.tolist()
        return [
            DrawnBox(box.corners, f"{box.name} {box.score:.0%}", class_colour(label))
            for box, label in zip(self.boxes, labels, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class DetectionPredictions(Predictions[DetectionPrediction]):
    """The objects in several images."""

    task = "detection"
    table_columns = ("image", "objects", "classes")
    csv_columns = ("class", "score", *CORNERS)

    category_ids: tuple[int, ...] | None = None
    """The classes' ids in COCO's format: those of the training data, or 1, 2, ..."""

    @classmethod
    def collect(
        cls, items: Iterable[DetectionPrediction], config: ModelConfig, format: Any = "table"
    ) -> Self:
        return replace(super().collect(items, config, format), category_ids=config.category_ids)

    def files(self) -> dict[str, str]:
        return {**super().files(), "detections.json": json.dumps(self.to_coco())}

    def to_coco(self) -> dict[str, Any]:
        """COCO's format: `images` with their names, `categories`, `annotations` with scores.

        COCO's own tools take `annotations` alone as results; image ids count from 1.
        """
        from mobilevit.tasks.detection.metrics import coco_results

        ids = self.category_ids or tuple(range(1, len(self.classes) + 1))
        images, found = [], []
        for number, item in enumerate(self.items, start=1):
            if item.error is not None:
                continue
            height, width = item.found.boxes.canvas_size
            size = {"width": width, "height": height}
            images.append({"id": number, "file_name": item.source, **size})
            found += coco_results(number, item.found, ids)
        categories = [
            {"id": number, "name": name} for number, name in zip(ids, self.classes, strict=True)
        ]
        return {"images": images, "categories": categories, "annotations": found}

"""Predictions of detectors."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image
from torchvision.transforms.v2 import functional as TF

from mobilevit.tasks.detection.metrics import coco_results
from mobilevit.tasks.detection.postprocess import Detections
from mobilevit.tasks.results import Prediction, Predictions
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

    def scores(self) -> list[tuple[str, float]]:
        return [(box.name, box.score) for box in self.boxes[:CONTACT_SHEET]]

    def draw(self, image: Image.Image) -> Image.Image:
        return draw_boxes(image, self._drawn(image))

    def draw_thumbnail(self, image: Image.Image) -> Image.Image:
        boxes = [box._replace(text="") for box in self._drawn(image)[:CONTACT_SHEET]]
        return draw_boxes(image, boxes, longest=max(image.size))

    def _drawn(self, image: Image.Image) -> list[DrawnBox]:
        """The boxes in an image that may have been reduced."""
        corners = TF.resize(self.found.boxes, [image.height, image.width]).tolist()
        return [
            DrawnBox(place, f"{box.name} {box.score:.0%}", class_colour(label))
            for place, box, label in zip(
                corners, self.boxes, self.found.labels.tolist(), strict=True
            )
        ]


@dataclass(frozen=True, kw_only=True)
class DetectionPredictions(Predictions[DetectionPrediction]):
    """The objects in several images."""

    task = "detection"
    table_columns = ("image", "objects", "classes")
    csv_columns = ("class", "score", *CORNERS)

    def files(self) -> dict[str, str]:
        return {**super().files(), "detections.json": json.dumps(self.to_coco())}

    def to_coco(self) -> dict[str, Any]:
        """COCO's format: `images` with their names, `categories`, `annotations` with scores.

        COCO's own tools take `annotations` alone as results; image ids count from 1.
        """
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

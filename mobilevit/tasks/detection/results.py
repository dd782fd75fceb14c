"""What `mobilevit predict` says of a detector's images."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.data.images import ImageError
from mobilevit.data.sources import PreparedImage
from mobilevit.tasks.detection.loss_and_postprocess import (
    Detections,
    Detector,
    PostProcessing,
    detections,
)
from mobilevit.tasks.detection.metrics import coco_results
from mobilevit.tasks.results import Answers
from mobilevit.tasks.visualize import DrawnBox, colour_of
from mobilevit.utils.tables import render


class FoundBox(NamedTuple):
    """One object."""

    name: str
    score: float
    """Probability, in [0, 1]."""
    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionPrediction:
    """What a detector sees in one image."""

    source: str
    """The file, the address, or what the image is called in messages."""
    classes: tuple[str, ...] = ()
    found: Detections | None = None
    """Boxes, scores and labels; None where the image could not be read."""
    error: str | None = None
    """Why the image could not be read."""

    @property
    def boxes(self) -> list[FoundBox]:
        """The objects, likeliest first.

        Raises:
            ImageError: the image could not be read.
        """
        if self.error is not None:
            raise ImageError(self.source, self.error)
        assert self.found is not None
        boxes = []
        for corners, score, label in zip(
            self.found.boxes.tolist(),
            self.found.scores.tolist(),
            self.found.labels.tolist(),
            strict=True,
        ):
            x1, y1, x2, y2 = corners
            boxes.append(FoundBox(self.classes[label], score, (x1, y1, x2, y2)))
        return boxes

    def drawn(self) -> list[DrawnBox]:
        """The objects as they are drawn."""
        assert self.found is not None
        labels = self.found.labels.tolist()
        return [
            DrawnBox(one.corners, f"{one.name} {one.score:.0%}", colour_of(label))
            for one, label in zip(self.boxes, labels, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class DetectionPredictions(Answers[DetectionPrediction]):
    """What a detector sees in images, in the order they were named."""

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The classes' numbers in COCO's form: those of the training data, or 1, 2, ..."""

    def to_coco(self) -> dict[str, Any]:
        """COCO's form: `images` with their names, `categories`, `annotations` with scores.

        `annotations` alone is what COCO's own tools take as results; images count from 1.
        """
        images, found = [], []
        for number, item in enumerate(self.items, start=1):
            if item.found is None:
                continue
            height, width = item.found.boxes.canvas_size
            size = {"width": width, "height": height}
            images.append({"id": number, "file_name": item.source, **size})
            found += coco_results(number, item.found, self.category_ids)
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"images": images, "categories": categories, "annotations": found}

    def to_jsonl(self) -> str:
        """One JSON object a line: file, and boxes or error."""
        lines = []
        for item in self.items:
            row: dict[str, Any] = {"file": item.source}
            if item.error is not None:
                row["error"] = item.error
            else:
                row["boxes"] = [
                    {
                        "class": one.name,
                        "score": round(one.score, 6),
                        "corners": [round(value, 2) for value in one.corners],
                    }
                    for one in item.boxes
                ]
            lines.append(json.dumps(row, ensure_ascii=False))
        return "\n".join(lines)

    def to_csv(self) -> str:
        """A table with a head, one box a row: file, error, class, score, x1, y1, x2, y2."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "error", "class", "score", "x1", "y1", "x2", "y2"])
        for item in self.items:
            if item.error is not None:
                writer.writerow([item.source, item.error, *[""] * 6])
                continue
            for one in item.boxes:
                corners = (f"{value:.2f}" for value in one.corners)
                writer.writerow([item.source, "", one.name, f"{one.score:.6f}", *corners])
        return text.getvalue().rstrip("\n")

    def to_table(self) -> str:
        """A row for each image."""
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("image", "objects", "what"):
            table.add_column(
                column, justify="right" if column == "objects" else "left", overflow="fold"
            )
        for item in self.items:
            if item.error is not None:
                table.add_row(escape(item.source), "not read", escape(item.error))
                continue
            counts = Counter(one.name for one in item.boxes)
            what = ", ".join(f"{count} {name}" for name, count in counts.most_common())
            table.add_row(escape(item.source), str(counts.total()), escape(what))
        return render(table)


def detected(
    model: Detector,
    batch: list[PreparedImage | str],
    names: Sequence[str],
    device: torch.device,
    rule: PostProcessing,
) -> list[DetectionPrediction]:
    """Predictions for a batch of images, with the failed ones where they stood."""
    ready = [item for item in batch if not isinstance(item, str)]
    found: Iterator[Detections] = iter(())
    if ready:
        images = torch.stack([item.tensor for item in ready]).to(device)
        anchors = model.anchors(*images.shape[-2:]).to(device)
        found = iter(detections(model(images), anchors, [item.size for item in ready], rule))
    return [
        DetectionPrediction(source="", error=item)
        if isinstance(item, str)
        else DetectionPrediction(source="", classes=tuple(names), found=next(found))
        for item in batch
    ]

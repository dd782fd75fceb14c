"""What `mobilevit evaluate` says of a network for segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from mobilevit.commands.by_size import BySize
from mobilevit.tasks.segmentation.metrics import SegmentationMetrics
from mobilevit.utils.tables import json_value, percent, render, table


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation(BySize[SegmentationMetrics]):
    """A network's figures at one or several input sizes."""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        sizes = {}
        for size, m in self.by_size.items():
            sizes[str(size)] = {
                "images": m.images,
                "pixels": m.pixels,
                "miou": json_value(m.miou),
                "pixel_accuracy": json_value(m.pixel_accuracy),
                "boundary_miou": json_value(m.boundary_miou),
                "network_ms": m.network_ms,
                "postprocess_ms": m.postprocess_ms,
                "per_class": [
                    {key: json_value(value) for key, value in row._asdict().items()}
                    for row in m.per_class()
                ],
                "confusion": m.confusion.tolist(),
            }
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        """Tables: figures by size, then the classes at the last size."""
        summary = table(
            *("size", "images", "mean IoU", "right pixels", "near edges", "network", "after it")
        )
        for size, m in self.by_size.items():
            summary.add_row(
                f"{size} px",
                str(m.images),
                *(percent(value) for value in (m.miou, m.pixel_accuracy, m.boundary_miou)),
                f"{m.network_ms:.0f} ms",
                f"{m.postprocess_ms:.0f} ms",
            )
        last = list(self.by_size.values())[-1]
        classes = table("class", "share of pixels", "IoU", "right pixels")
        for row in last.per_class():
            part = row.pixels / max(1, last.pixels)
            classes.add_row(
                escape(row.name), *(percent(value) for value in (part, row.iou, row.accuracy))
            )
        return render(summary, classes)

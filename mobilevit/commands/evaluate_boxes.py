"""What `mobilevit evaluate` says of a detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from mobilevit.commands.by_size import BySize
from mobilevit.tasks.detection.metrics import FIGURES, DetectionMetrics
from mobilevit.utils.tables import json_value, percent, render, table


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(BySize[DetectionMetrics]):
    """A detector's figures at one or several image sizes."""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        sizes = {}
        for size, m in self.by_size.items():
            sizes[str(size)] = {
                "images": m.images,
                "boxes": m.boxes,
                **{name: json_value(value) for name, value in m.figures().items()},
                "threshold": m.threshold,
                "precision": json_value(m.precision),
                "recall": json_value(m.recall),
                "network_ms": m.network_ms,
                "postprocess_ms": m.postprocess_ms,
                "per_class": [
                    {key: json_value(value) for key, value in row._asdict().items()}
                    for row in m.per_class
                ],
            }
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        """Tables: figures by size, then the classes at the last size."""
        columns = ("size", "images", "boxes", "AP", "AP50", "AP75", "network", "after it")
        summary = table(*columns)
        for size, m in self.by_size.items():
            summary.add_row(
                f"{size} px",
                str(m.images),
                str(m.boxes),
                *(_number(value) for value in (m.ap, m.ap50, m.ap75)),
                f"{m.network_ms:.1f} ms",
                f"{m.postprocess_ms:.1f} ms",
            )
        last = list(self.by_size.values())[-1]
        every = table("COCO's twelve numbers", "")
        for name in FIGURES:
            every.add_row(name, _number(getattr(last, name)))
        classes = table("class", "boxes", "AP", "AP50")
        for row in last.per_class:
            classes.add_row(escape(row.name), str(row.boxes), _number(row.ap), _number(row.ap50))
        balance = (
            f"At a score of {last.threshold:.2f} precision and recall balance best: "
            f"{percent(last.precision, 1)} of the boxes found are right, "
            f"{percent(last.recall, 1)} of all are found (overlap 0.5)."
        )
        return render(summary, every, classes) + f"\n{balance}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"

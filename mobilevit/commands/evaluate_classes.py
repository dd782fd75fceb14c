"""What `mobilevit evaluate` says of a classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from mobilevit.commands.by_size import BySize
from mobilevit.tasks.classification.metrics import ClassificationMetrics
from mobilevit.utils.tables import render, table

MAX_CONFUSION = 20
"""Up to so many classes the confusion matrix is printed."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(BySize[ClassificationMetrics]):
    """A model's figures at one or several image sizes."""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        sizes = {}
        for size, metrics in self.by_size.items():
            values = asdict(metrics)
            values["confusion"] = metrics.confusion.tolist()
            values["per_class"] = [row._asdict() for row in metrics.per_class()]
            sizes[str(size)] = values
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        """Tables: figures by size, then classes and confusion of the last size."""
        parts: list[Any] = [_by_size(self.by_size)]
        metrics = list(self.by_size.values())[-1]
        parts.append(_per_class(metrics))
        if len(metrics.classes) <= MAX_CONFUSION:
            parts.append(_confusion(metrics))
        return render(*parts)


def _by_size(by_size: dict[int, ClassificationMetrics]) -> Table:
    rows = table("size", "images", "top-1", "top-5", "loss", "calibration error")
    for size, m in by_size.items():
        rows.add_row(
            f"{size} px",
            str(m.images),
            f"{m.top1:.2%}",
            f"{m.top5:.2%}",
            f"{m.loss:.4f}",
            f"{m.calibration_error:.4f}",
        )
    return rows


def _per_class(metrics: ClassificationMetrics) -> Table:
    rows = table("class", "images", "right", "recall", "precision", "F1")
    for row in metrics.per_class():
        rows.add_row(
            escape(row.name),
            str(row.samples),
            str(row.right),
            *(
                "-" if value != value else f"{value:.1%}"
                for value in (row.recall, row.precision, row.f1)
            ),
        )
    return rows


def _confusion(metrics: ClassificationMetrics) -> Table:
    rows = table("label / answer", *(str(number) for number in range(len(metrics.classes))))
    for number, name in enumerate(metrics.classes):
        counts = metrics.confusion[number].tolist()
        rows.add_row(f"{number} {escape(name)}", *(str(count or "·") for count in counts))
    return rows

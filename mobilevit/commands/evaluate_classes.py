"""What `mobilevit evaluate` says of a classifier."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.commands.tables import render
from mobilevit.tasks.classification import ClassificationMetrics

MAX_CONFUSION = 20
"""Up to so many classes the confusion matrix is printed."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's figures at one or several picture sizes."""

    model: str
    by_size: dict[int, ClassificationMetrics]
    """Crop in pixels -> figures."""

    @property
    def metrics(self) -> ClassificationMetrics:
        """The figures, where there is one size.

        Raises:
            ValueError: there are several.
        """
        if len(self.by_size) != 1:
            raise ValueError(f"evaluated at {len(self.by_size)} sizes: choose one of by_size")
        return next(iter(self.by_size.values()))

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


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table


def _by_size(by_size: dict[int, ClassificationMetrics]) -> Table:
    table = _table("size", "pictures", "top-1", "top-5", "loss", "calibration error")
    for size, m in by_size.items():
        table.add_row(
            f"{size} px",
            str(m.samples),
            f"{m.top1:.2%}",
            f"{m.top5:.2%}",
            f"{m.loss:.4f}",
            f"{m.calibration_error:.4f}",
        )
    return table


def _per_class(metrics: ClassificationMetrics) -> Table:
    table = _table("class", "pictures", "right", "recall", "precision", "F1")
    for row in metrics.per_class():
        table.add_row(
            escape(row.name),
            str(row.samples),
            str(row.right),
            *(
                "-" if value != value else f"{value:.1%}"
                for value in (row.recall, row.precision, row.f1)
            ),
        )
    return table


def _confusion(metrics: ClassificationMetrics) -> Table:
    table = _table("label / answer", *(str(number) for number in range(len(metrics.classes))))
    for number, name in enumerate(metrics.classes):
        counts = metrics.confusion[number].tolist()
        table.add_row(f"{number} {escape(name)}", *(str(count or "·") for count in counts))
    return table

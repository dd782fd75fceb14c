"""What `mobilevit evaluate` says of a detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.commands.tables import render
from mobilevit.tasks.detection_metrics import FIGURES, DetectionMetrics


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """A detector's figures at one or several picture sizes."""

    model: str
    by_size: dict[int, DetectionMetrics]
    """Side of the input in pixels -> figures."""

    @property
    def metrics(self) -> DetectionMetrics:
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
        for size, m in self.by_size.items():
            sizes[str(size)] = {
                "pictures": m.pictures,
                "boxes": m.boxes,
                **{name: _plain(value) for name, value in m.figures().items()},
                "threshold": m.threshold,
                "precision": _plain(m.precision),
                "recall": _plain(m.recall),
                "network_ms": m.network_ms,
                "after_ms": m.after_ms,
                "per_class": [
                    {key: _plain(value) for key, value in row._asdict().items()}
                    for row in m.per_class
                ],
            }
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        """Tables: figures by size, then the classes at the last size."""
        columns = ("size", "pictures", "boxes", "AP", "AP50", "AP75", "network", "after it")
        summary = _table(*columns)
        for size, m in self.by_size.items():
            summary.add_row(
                f"{size} px",
                str(m.pictures),
                str(m.boxes),
                *(_number(value) for value in (m.ap, m.ap50, m.ap75)),
                f"{m.network_ms:.1f} ms",
                f"{m.after_ms:.1f} ms",
            )
        last = list(self.by_size.values())[-1]
        every = _table("COCO's twelve numbers", "")
        for name in FIGURES:
            every.add_row(name, _number(getattr(last, name)))
        classes = _table("class", "boxes", "AP", "AP50")
        for row in last.per_class:
            classes.add_row(escape(row.name), str(row.boxes), _number(row.ap), _number(row.ap50))
        balance = (
            f"At a score of {last.threshold:.2f} precision and recall balance best: "
            f"{_share(last.precision)} of the boxes found are right, {_share(last.recall)} of all "
            "are found (overlap 0.5)."
        )
        return render(summary, every, classes) + f"\n{balance}"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table

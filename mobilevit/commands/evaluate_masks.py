"""What `mobilevit evaluate` says of a network for segmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.commands.tables import render
from mobilevit.tasks.segmentation import SegmentationMetrics


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation:
    """A network's figures at one or several input sizes."""

    model: str
    by_size: dict[int, SegmentationMetrics]
    """Side of the input in pixels -> figures."""

    @property
    def metrics(self) -> SegmentationMetrics:
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
                "pixels": m.pixels,
                "miou": _plain(m.miou),
                "pixel_accuracy": _plain(m.pixel_accuracy),
                "boundary_miou": _plain(m.boundary_miou),
                "network_ms": m.network_ms,
                "after_ms": m.after_ms,
                "per_class": [
                    {key: _plain(value) for key, value in row._asdict().items()}
                    for row in m.per_class()
                ],
                "confusion": m.confusion.tolist(),
            }
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        """Tables: figures by size, then the classes at the last size."""
        summary = _table(
            *("size", "pictures", "mean IoU", "right pixels", "near edges", "network", "after it")
        )
        for size, m in self.by_size.items():
            summary.add_row(
                f"{size} px",
                str(m.pictures),
                *(_share(value) for value in (m.miou, m.pixel_accuracy, m.boundary_miou)),
                f"{m.network_ms:.0f} ms",
                f"{m.after_ms:.0f} ms",
            )
        last = list(self.by_size.values())[-1]
        classes = _table("class", "share of pixels", "IoU", "right pixels")
        for row in last.per_class():
            share = row.pixels / max(1, last.pixels)
            classes.add_row(
                escape(row.name), *(_share(value) for value in (share, row.iou, row.accuracy))
            )
        return render(summary, classes)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table

"""Predictions and evaluations of any task: as text, JSON Lines, CSV and drawings."""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from PIL import Image
from rich.markup import escape

from mobilevit.data.images import ImageError
from mobilevit.tasks.base import M
from mobilevit.utils.tables import render, table


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(ABC):
    """The prediction for one image."""

    source: str
    """File, address or another name, for messages."""
    classes: tuple[str, ...] = ()
    """Names of all classes, in the order of the model's outputs."""
    error: str | None = None
    """Why the image could not be read."""

    def check(self) -> None:
        """Raise ImageError if the image could not be read."""
        if self.error is not None:
            raise ImageError(self.source, self.error)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The prediction as fields of a JSON object."""

    @abstractmethod
    def csv_rows(self) -> list[dict[str, str]]:
        """Rows in a CSV table."""

    @abstractmethod
    def table_row(self) -> tuple[str, ...]:
        """Row in a text table."""

    @abstractmethod
    def parquet_row(self) -> dict[str, Any]:
        """Row in a Parquet file, with the columns of the task's `parquet_columns`."""

    def scores(self) -> Sequence[tuple[str, float]]:
        """Classes with their values in [0, 1], by which a contact sheet filters, highest first."""
        return ()

    def draw(self, image: Image.Image) -> Image.Image:
        """Draw the prediction on its image; here nothing."""
        return image

    def draw_thumbnail(self, image: Image.Image) -> Image.Image:
        """Draw the prediction on its image reduced to a thumbnail, without text; here nothing."""
        return image

    def images(self) -> dict[str, Image.Image]:
        """Further images to write: endings of file names -> images."""
        return {}


P = TypeVar("P", bound=Prediction)


@dataclass(frozen=True, kw_only=True)
class Predictions(Sequence[P], ABC, Generic[P]):
    """Predictions for several images, in the images' order."""

    task: ClassVar[str]
    table_columns: ClassVar[tuple[str, ...]]
    csv_columns: ClassVar[tuple[str, ...]] = ()

    items: tuple[P, ...]
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] | None = None
    """Detection: the classes' ids in COCO's format, those of the training data; None: 1, 2, ..."""
    format: Literal["table", "jsonl", "csv"] = "table"
    """What `str` returns."""

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def failed(self) -> list[P]:
        return [item for item in self.items if item.error is not None]

    @property
    def exit_code(self) -> int:
        """1 if an image could not be read."""
        return 1 if self.failed else 0

    def files(self) -> dict[str, str]:
        """Files to write next to drawn images: names -> text."""
        return {"predictions.jsonl": self.to_jsonl()}

    def to_jsonl(self) -> str:
        """One JSON object per line and image: `file`, and the prediction or `error`."""
        return "\n".join(
            json.dumps(
                {
                    "file": item.source,
                    **(item.to_json() if item.error is None else {"error": item.error}),
                },
                ensure_ascii=False,
            )
            for item in self.items
        )

    def to_csv(self) -> str:
        """CSV with a header: `file`, `error` and the task's columns."""
        rows: list[dict[str, str]] = []
        for item in self.items:
            found = item.csv_rows() if item.error is None else [{"error": item.error}]
            rows += [{"file": item.source, **row} for row in found]
        head = dict.fromkeys(("file", "error", *self.csv_columns))
        for row in rows:
            head |= dict.fromkeys(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(head), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")

    def to_table(self) -> str:
        rows = table(*self.table_columns)
        for column in rows.columns:
            column.overflow = "fold"
            column.justify = "left"
        blank = [""] * (len(self.table_columns) - 2)
        for item in self.items:
            cells = item.table_row() if item.error is None else (*blank, f"not read: {item.error}")
            rows.add_row(escape(item.source), *map(escape, cells))
        return render(rows)

    def __str__(self) -> str:
        formats = {"jsonl": self.to_jsonl, "csv": self.to_csv, "table": self.to_table}
        return formats[self.format]()


@dataclass(frozen=True, kw_only=True)
class Evaluation(Generic[M]):
    """A model's metrics at one or several image sizes."""

    model: str
    by_size: dict[int, M]
    """Side of the input in pixels -> metrics."""

    @property
    def metrics(self) -> M:
        """The metrics of the only size; ValueError if there are several."""
        if len(self.by_size) != 1:
            raise ValueError(f"evaluated at {len(self.by_size)} sizes: choose one of by_size")
        return next(iter(self.by_size.values()))

    def to_json(self) -> dict[str, Any]:
        sizes = {str(size): metrics.to_json() for size, metrics in self.by_size.items()}
        return {"model": self.model, "sizes": sizes}

    def __str__(self) -> str:
        last = list(self.by_size.values())[-1]
        summary = table("size", "images", *last.row())
        for size, metrics in self.by_size.items():
            summary.add_row(f"{size} px", str(metrics.images), *metrics.row().values())
        return render(summary, *last.details())

"""What `mobilevit predict` says of a classifier's images."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from mobilevit.data.images import ImageError
from mobilevit.data.sources import PreparedImage
from mobilevit.tasks.results import Answers
from mobilevit.utils.tables import render


class Answer(NamedTuple):
    """One class and its probability, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a model sees in one image."""

    source: str
    """The file, the address, or what the image is called in messages."""
    classes: tuple[str, ...] = ()
    """Names of all classes, in the order of the model's outputs."""
    probabilities: np.ndarray | None = None
    """For each class its probability, float32 `[K]`; None where the image could not be read."""
    error: str | None = None
    """Why the image could not be read."""

    @property
    def answers(self) -> list[Answer]:
        """All classes, likeliest first; none where the image could not be read."""
        return [] if self.error is not None else self.top(len(self.classes))

    def top(self, count: int) -> list[Answer]:
        """The likeliest classes.

        Raises:
            ImageError: the image could not be read.
        """
        if self.error is not None:
            raise ImageError(self.source, self.error)
        assert self.probabilities is not None
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [Answer(self.classes[index], float(self.probabilities[index])) for index in order]


@dataclass(frozen=True, kw_only=True)
class Predictions(Answers[Prediction]):
    """What a model sees in images, in the order they were named."""

    shown: int = 5
    """Classes that the text forms name for each image."""

    def top(self, count: int) -> list[Answer]:
        """The likeliest classes of the only image.

        Raises:
            ImageError: it could not be read.
            ValueError: there are several images.
        """
        if len(self.items) != 1:
            raise ValueError(f"{len(self.items)} images: ask one of them, predictions[0].top(5)")
        return self.items[0].top(count)

    def to_jsonl(self) -> str:
        """One JSON object a line: file, and answers or error."""
        lines = []
        for item in self.items:
            row: dict[str, Any] = {"file": item.source}
            if item.error is not None:
                row["error"] = item.error
            else:
                row["answers"] = [
                    {"class": name, "probability": round(probability, 6)}
                    for name, probability in item.top(self.shown)
                ]
            lines.append(json.dumps(row, ensure_ascii=False))
        return "\n".join(lines)

    def to_csv(self) -> str:
        """A table with a head: file, error, class_1, probability_1, class_2, ..."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        width = max((min(len(item.classes), self.shown) for item in self.items), default=0)
        ranks = range(1, width + 1)
        head = [f"{column}_{rank}" for rank in ranks for column in ("class", "probability")]
        writer.writerow(["file", "error", *head])
        for item in self.items:
            answers = ((name, f"{share:.6f}") for name, share in item.answers[: self.shown])
            writer.writerow([item.source, item.error or "", *itertools.chain(*answers)])
        return text.getvalue().rstrip("\n")

    def to_table(self) -> str:
        """A row for each image."""
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("image", "answer", "probability", "then"):
            table.add_column(
                column, justify="right" if column == "probability" else "left", overflow="fold"
            )
        for item in self.items:
            if item.error is not None:
                table.add_row(escape(item.source), "not read", "", escape(item.error))
                continue
            first, *others = item.top(self.shown)
            rest = ", ".join(f"{name} {probability:.1%}" for name, probability in others)
            table.add_row(
                escape(item.source), escape(first.name), f"{first.probability:.1%}", escape(rest)
            )
        return render(table)


def classified(
    model: Callable[[torch.Tensor], torch.Tensor],
    batch: list[PreparedImage | str],
    names: Sequence[str],
    device: torch.device,
) -> list[Prediction]:
    """Predictions for a batch of images, with the failed ones where they stood."""
    tensors = [item.tensor for item in batch if not isinstance(item, str)]
    rows: Iterator[np.ndarray] = iter(())
    if tensors:
        rows = iter(model(torch.stack(tensors).to(device)).float().softmax(-1).cpu().numpy())
    return [
        Prediction(source="", error=item)
        if isinstance(item, str)
        else Prediction(source="", classes=tuple(names), probabilities=next(rows))
        for item in batch
    ]

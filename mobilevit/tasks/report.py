"""The report of a training run as data, which `mobilevit.training.report` renders.

Texts are not HTML. Names of classes and files are `Name`s, which keep their own reading direction.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from mobilevit.data.images import ImageError, open_image

# Readable on white and on black.
TRAINING, VALIDATION = "#d97706", "#3b82f6"
FREQUENT = 30
"""Pairs of confused classes to list."""


class Name(str):
    """The name of a class or a file."""


class Tile(NamedTuple):
    """A figure at the top of the page."""

    name: str
    value: str
    text: str


class Bar(NamedTuple):
    """A cell with a bar as long as a share, in [0, 1]."""

    text: str
    share: float


class Curve(NamedTuple):
    """A line of a plot; NaN and infinite values leave gaps."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = VALIDATION
    dashed: bool = False
    faint: bool = False
    """Drawn lightly, behind the others and without marks."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves with axes and a caption."""

    block: ClassVar = "plot"
    curves: Sequence[Curve]
    x: str
    y: str
    name: str
    """One word, unique on the page."""
    alt: str
    caption: str
    percent: bool = False
    """Whether values are shares, shown in per cent."""
    mark: float | None = None
    """Where a vertical line is drawn."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells, the first of which is the row's header."""

    block: ClassVar = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Name | Bar]]
    heading: bool = False
    """Whether the title stands above the table."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrix:
    """Counts `[K, K]`: row the label, column the prediction."""

    block: ClassVar = "matrix"
    classes: Sequence[str]
    counts: np.ndarray


class Line(NamedTuple):
    """A line below an image: text, a name, more text."""

    text: str
    name: str = ""
    rest: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A sample: images with their descriptions, or why there are none, and lines below."""

    images: Sequence[tuple[Image.Image, str]] = ()
    error: str = ""
    lines: Sequence[Line]
    file: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Cards in a grid."""

    block: ClassVar = "gallery"
    cards: Sequence[Card]
    wide: bool = False


Block: TypeAlias = str | Plot | Table | ConfusionMatrix | Gallery
"""A part of a section; a string is a paragraph."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The task's part of the report."""

    tiles: Sequence[Tile]
    figures: Mapping[str, str]
    """Figures of epochs to plot, without `train_` or `val_` -> names; the first names the plot."""
    about_figures: str
    sections: Mapping[str, Sequence[Block]]
    """Titles -> what follows them."""


def percent(share: float) -> str:
    """A share in per cent; a dash for NaN."""
    return "–" if math.isnan(share) else f"{share:.1%}"


def number(value: float, digits: int = 3) -> str:
    """A number; a dash for NaN and infinity."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def timing_tile(network_ms: float, postprocess_ms: float, postprocessing: str) -> Tile:
    """A tile with the time per image."""
    digits = 0 if network_ms + postprocess_ms >= 10 else 1
    return Tile(
        "Time per image",
        f"{network_ms + postprocess_ms:.{digits}f} ms",
        f"{network_ms:.{digits}f} ms network, {postprocess_ms:.{digits}f} ms {postprocessing}, in "
        "batches, on the machine that trained.",
    )


def image_tiles(images: int, about: str, metric: str, training: str) -> list[Tile]:
    """Tiles of the validation images, and of a metric's value on training images."""
    return [
        Tile(
            "Validation images",
            f"{images:,}",
            f"{about}. The best epoch was selected on them, so expect slightly less on others.",
        ),
        Tile(
            "Training images",
            training,
            f"{metric} of the same weights on (a sample of) the training images. What it is above "
            "that of validation is overfitting.",
        ),
    ]


def column_head(field: str) -> str:
    """The head of a column for a field of `Metrics.per_class`."""
    heads = {"name": "class", "f1": "F1", "iou": "IoU", "ap": "AP", "ap50": "AP50"}
    return heads.get(field, field)


def class_table(rows: Sequence[Any], by: str, text: Callable[[float], str]) -> Table:
    """A table of `Metrics.per_class`, lowest `by` first; `text` formats fractions."""
    ranked = sorted(rows, key=lambda row: (math.isnan(getattr(row, by)), getattr(row, by)))
    return Table(
        title="Classes, worst first",
        columns=[head[0].upper() + head[1:] for head in map(column_head, ranked[0]._fields)],
        rows=[
            [
                Name(row.name),
                *(Bar(text(v), v) if isinstance(v, float) else f"{v:,}" for v in row[1:]),
            ]
            for row in ranked
        ],
    )


def gallery(
    samples: Any,
    results: Iterable[Any],
    draw: Callable[[Any, Image.Image], Sequence[tuple[Image.Image, str]]],
    lines: Callable[[Any], Sequence[Line]],
    *,
    wide: bool = False,
) -> Gallery:
    """Cards of results, each of a `sample`: what `draw` makes of its image, and lines below."""
    cards = []
    for result in results:
        images: Sequence[tuple[Image.Image, str]] = ()
        error, file = "", samples.name(result.sample)
        try:
            images = draw(result, open_image(samples.source(result.sample)))
        except ImageError as unreadable:
            error = unreadable.reason
        cards.append(Card(images=images, error=error, lines=lines(result), file=file))
    return Gallery(cards=cards, wide=wide)


def frequent_confusions(classes: Sequence[str], confusion: Tensor, unit: str) -> Table | str:
    """The most frequent confusions in counts `[K, K]`, row the label, column the prediction.

    `unit` is what is counted, such as images.
    """
    wrong = confusion.clone().fill_diagonal_(0)
    totals = confusion.sum(1).clamp(min=1)
    order = wrong.flatten().argsort(descending=True, stable=True)[:FREQUENT].tolist()
    rows = []
    for place in order:
        label, predicted = divmod(place, len(classes))
        if count := int(wrong[label, predicted]):
            share = count / int(totals[label])
            names = Name(classes[label]), Name(classes[predicted])
            rows.append((*names, f"{count:,}", Bar(percent(share), share)))
    if not rows:
        return "Nothing is confused."
    columns = ("Label", "Predicted as", unit, "Share of the label")
    return Table(title="Most frequent confusions", columns=columns, rows=rows, heading=True)

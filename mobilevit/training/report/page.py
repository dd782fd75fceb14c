"""`report.html`: how good a trained model is, on one page that needs no other file."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from mobilevit.models.config import ModelConfig
from mobilevit.tasks.report import (
    TRAINING,
    VALIDATION,
    Bar,
    Curve,
    Name,
    Plot,
    Table,
    TaskReport,
    Tile,
    percent,
)
from mobilevit.training.report.plots import svg
from mobilevit.training.run import LOADER_BOUND
from mobilevit.utils.files import write_file

if TYPE_CHECKING:
    # Lightning, which callbacks are made of, takes seconds to import.
    from mobilevit.training.callbacks import History


def write_report(path: Path, report: TaskReport, history: History, *, config: ModelConfig) -> None:
    """Write the report of a training run as one HTML file, atomically.

    The same run gives the same file, byte by byte. `config`, that of the best weights, has their
    name, source and epoch.
    """
    best = config.metrics["epoch"]
    environment = Environment(loader=PackageLoader("mobilevit.training.report"), autoescape=True)
    environment.filters |= {
        "is_name": lambda value: isinstance(value, Name),
        "jpeg": _jpeg,
        "percent": percent,
        "percentage": lambda share: f"{0.0 if math.isnan(share) else 100 * share:.1f}",
        "svg": lambda plot: Markup(svg(plot)),  # matplotlib has escaped its texts
    }
    page = environment.get_template("report.html.jinja").render(
        config=config,
        report=report,
        tiles=[*report.tiles, *_throughput(history, best)],
        training=_training(history, best, report),
    )
    # File names need not be valid text: what is not is written as escapes of its bytes.
    write_file(path, page.encode("utf-8", "backslashreplace"))


def _throughput(history: History, best: float) -> list[Tile]:
    rate = median(row["images_per_second"] for row in history.epochs)
    waiting = median(row["loader_share"] for row in history.epochs)
    peak = max(row["peak_memory"] for row in history.epochs)
    bottleneck = (
        "The loader is the bottleneck: more loader workers or smaller files would speed it up."
        if waiting > LOADER_BOUND
        else "The network is the bottleneck, not the loader."
    )
    saved = f"The weights of epoch {best:.0f} were the best and are saved."
    return [
        Tile("Epochs", str(len(history.epochs)), saved),
        Tile("Throughput", f"{rate:,.0f} images/s", "in training, in the median epoch."),
        Tile("Waiting for the loader", f"{waiting:.0%}", f"of the training time. {bottleneck}"),
        Tile("Peak memory", f"{peak / 1e9:.1f} GB", "of the process, without loader workers."),
    ]


def _training(history: History, best: float, report: TaskReport) -> list[Plot | Table]:
    epochs, steps = history.epochs, history.steps
    numbers = [row["epoch"] for row in epochs]
    first = next(iter(report.figures.values()))
    sides = (("train", "training", TRAINING, True), ("val", "validation", VALIDATION, False))

    def curve(key: str, side: tuple[str, str, str, bool], label: str = "") -> Curve:
        prefix, name, colour, dashed = side
        values = [row[f"{prefix}_{key}"] for row in epochs]
        return Curve(f"{name}{label}", numbers, values, colour, dashed=dashed)

    ends = [0.0, *(row["step"] for row in epochs)]
    at = np.interp([row["step"] for row in steps], ends, [0.0, *numbers]).tolist()
    by_step = Curve("step", at, [row["loss"] for row in steps], TRAINING, faint=True)
    return [
        Plot(
            curves=[by_step, *(curve("loss", side) for side in sides)],
            x="epoch",
            y="loss",
            name="loss",
            mark=best,
            alt="Loss of training and validation by epoch",
            caption="Loss by epoch; the light line is that of single steps. The dotted line is the "
            "best epoch.",
        ),
        Plot(
            curves=[
                curve(key, side, "" if label == first else f" {label}")
                for key, label in report.figures.items()
                for side in sides
                if f"{side[0]}_{key}" in epochs[0]
            ],
            x="epoch",
            y=first,
            name=next(iter(report.figures)),
            percent=True,
            mark=best,
            alt=f"{first[0].upper()}{first[1:]} of training and validation by epoch",
            caption=report.about_figures,
        ),
        Plot(
            curves=[Curve("rate", [row["step"] for row in steps], [row["lr"] for row in steps])],
            x="step",
            y="learning rate",
            name="rate",
            alt="Learning rate by step",
            caption="Learning rate by step.",
        ),
        _sizes(history.seen),
    ]


def _sizes(seen: Mapping[tuple[int, int], tuple[int, int]]) -> Table:
    total = max(sum(images for _, images in seen.values()), 1)
    return Table(
        title="Training sizes",
        columns=("Height × width", "Batches", "Images"),
        rows=[
            (f"{height} × {width}", f"{batches:,}", Bar(f"{images:,}", images / total))
            for (height, width), (batches, images) in sorted(
                seen.items(), key=lambda entry: (entry[0][0] * entry[0][1], entry[0])
            )
        ],
        caption="Image sizes in training.",
    )


def _jpeg(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

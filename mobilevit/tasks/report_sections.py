"""Parts of report pages that all tasks share: frames, tables, the course of training."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mobilevit.training.page import PAGE, STYLE
from mobilevit.training.plots import TRAINING, VALIDATION, Curve, svg
from mobilevit.utils.files import write_file

if TYPE_CHECKING:
    # Lightning, which callbacks are made of, takes seconds to import.
    from mobilevit.training.callbacks import History


def write_page(path: Path, *, title: str, body: Iterable[str]) -> None:
    """Write sections as one HTML file, in one step.

    Raises:
        OSError: the file cannot be written.
    """
    page = PAGE.format(title=escape(title), style=STYLE, body="\n".join(body))
    # File names need not be valid text: what is not is written as escapes of its bytes.
    write_file(path, page.encode("utf-8", "backslashreplace"))


def headline(title: str, about: str, tiles: Iterable[tuple[str, str, str]]) -> str:
    """The top of a page: what it is about, and figures as (name, value, explanation)."""
    cards = "".join(
        f"<div><dt>{what}</dt><dd><strong>{value}</strong> {text}</dd></div>"
        for what, value, text in tiles
    )
    return (
        f"<header><h1>{name(title)}</h1><p>{name(about)}</p></header>\n"
        f'<section aria-label="Headline"><dl class="tiles">{cards}</dl></section>'
    )


def pace(history: History, best: float | None) -> list[tuple[str, str, str]]:
    """How long it was trained and how fast that went, as tiles."""
    if not history.epochs:
        return []
    # Here, because it imports Lightning.
    from mobilevit.training.progress import LOADER_IS_BRAKE

    rate = median(row["images_per_second"] for row in history.epochs)
    waiting = median(row["loader_share"] for row in history.epochs)
    brake = (
        "The loader is the brake: more loader workers or smaller files would speed training up."
        if waiting > LOADER_IS_BRAKE
        else "The network is the brake, not the loader."
    )
    kept = "" if best is None else f"The weights of epoch {best:.0f} were the best and are kept."
    return [
        ("Epochs", str(len(history.epochs)), kept),
        ("Speed", f"{rate:,.0f} images/s", "in training, in the median epoch."),
        ("Waiting for the loader", f"{waiting:.0%}", f"of the time of training. {brake}"),
    ]


def training_section(
    history: History, best: float | None, *, figures: Mapping[str, str], about: str
) -> str:
    """The curves, and the sizes that were seen.

    Args:
        history: figures of epochs and steps.
        best: the epoch that was kept.
        figures: what to draw beside the loss, as (part of a) name in the history -> its name for
            people; the first gives the plot its name.
        about: what there is to say of it.
    """
    if not history.epochs and not history.steps:
        return section("Training", "<p>No epoch was recorded.</p>")
    epochs, steps = history.epochs, history.steps
    numbers = [row["epoch"] for row in epochs]
    ends = [0.0, *(row["step"] for row in epochs)]
    first = next(iter(figures.values()))
    sides = (("train", "training", TRAINING, True), ("val", "validation", VALIDATION, False))

    def curve(key: str, stage: tuple[str, str, str, bool], named: str = "") -> Curve:
        side, what, colour, dashed = stage
        values = [row[f"{side}_{key}"] for row in epochs]
        return Curve(f"{what}{named}", numbers, values, colour, dashed=dashed)

    curves = [
        curve(key, stage, "" if label == first else f" {label}")
        for key, label in figures.items()
        for stage in sides
        if epochs and f"{stage[0]}_{key}" in epochs[0]
    ]
    losses = [curve("loss", stage) for stage in sides] if epochs else []
    if epochs:
        at = np.interp([row["step"] for row in steps], ends, [0.0, *numbers]).tolist()
        behind = Curve("step", at, [row["loss"] for row in steps], TRAINING, faint=True)
        losses.insert(0, behind)
    rates = [Curve("rate", [row["step"] for row in steps], [row["lr"] for row in steps])]
    kept = " The dotted line is the epoch that was kept." if best is not None else ""
    plots = (
        figure(
            svg(losses, x="epoch", y="loss", name="loss", mark=best),
            "Loss of training and validation by epoch",
            "Loss by epoch; the light line is that of single steps." + kept,
        ),
        figure(
            svg(curves, x="epoch", y=first, name=next(iter(figures)), percent=True, mark=best),
            f"{first[0].upper()}{first[1:]} of training and validation by epoch",
            about,
        ),
        figure(
            svg(rates, x="step", y="learning rate", name="rate"),
            "Learning rate by step",
            "Learning rate by step.",
        ),
        _sizes(history),
    )
    return section("Training", f'<div class="figures">{"".join(plots)}</div>')


def _sizes(history: History) -> str:
    """How many batches and images there were of each size."""
    total = max(sum(images for _, images in history.seen.values()), 1)
    rows = (
        (
            f'<th scope="row">{height} × {width}</th>',
            f"<td>{batches:,}</td>",
            bar(f"{images:,}", images / total),
        )
        for (height, width), (batches, images) in sorted(
            history.seen.items(), key=lambda entry: (entry[0][0] * entry[0][1], entry[0])
        )
    )
    counts = table("Sizes seen", ("Height × width", "Batches", "Images"), rows)
    return f"<figure>{counts}<figcaption>Sizes seen in training.</figcaption></figure>"


def section(title: str, content: str) -> str:
    """A part of the page under a title."""
    return f"<section><h2>{title}</h2>{content}</section>"


def figure(image: str, alt: str, caption: str) -> str:
    """An inline SVG with what it shows."""
    image = image.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box of its own; cells come as HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return scroll(title, f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


def scroll(title: str, content: str) -> str:
    """A box that scrolls what is too wide or too long; also by keyboard, hence the tabindex."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">{content}</div>'


def bar(text: str, share: float) -> str:
    """A cell with a bar as long as a share."""
    width = 0.0 if math.isnan(share) else 100 * share
    return f'<td class="bar" style="--v:{width:.1f}%">{text}</td>'


def name(text: str) -> str:
    """A name that users gave, harmless, and of its own reading direction."""
    return f"<bdi>{escape(text)}</bdi>"


def percent(share: float) -> str:
    """A share in per cent; a dash where there is none."""
    return "–" if math.isnan(share) else f"{share:.1%}"


def number(value: float, digits: int = 3) -> str:
    """A number; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def data_uri(content: bytes, kind: str) -> str:
    """An image to stand inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image_tag(image: Image.Image, alt: str, *, longest: int | None = None) -> str:
    """An image inside the page as JPEG, reduced to `longest` pixels at its long side."""
    if longest is not None:
        image.thumbnail((longest, longest))
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return f'<img src="{data_uri(file.getvalue(), "jpeg")}" alt="{escape(alt)}">'

"""The images of a report: curves as inline SVG, heat maps as PNG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mobilevit.tasks.report import TRAINING, VALIDATION, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the page's own text colour, for which matplotlib has no name."""
MARKED = 40
"""Curves of up to so many points have marks; a single point would not show without."""


def svg(
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    name: str,
    percent: bool = False,
    mark: float | None = None,
) -> str:
    """Draw curves as an `<svg>` that takes font and text colour from the page around it.

    For the arguments see `Plot`; identifiers in the SVG start with `name`.
    """
    # Here, because matplotlib takes long to import.
    from matplotlib import style
    from matplotlib.figure import Figure

    look = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": name,  # or identifiers would be random
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
    }
    # "default" first: a page must not depend on the settings of whoever makes it.
    with style.context(["default", look]):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            _draw(axes, curve)
        if mark is not None:
            axes.axvline(mark, color=INK, linestyle=":", linewidth=1, alpha=0.6)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _scale(axes, percent=percent)
        if len(curves) > 1:
            handles = axes.get_lines()[: len(curves)]
            # Names as they are: no formulas between dollars, none left out for its first letter.
            legend = axes.legend(handles, [curve.name for curve in curves if len(curve.y)])
            for written in legend.get_texts():
                written.set_parse_math(False)
        text = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), name)


def _draw(axes: Axes, curve: Curve) -> None:
    values = np.asarray(curve.y, dtype=float)
    if not len(values):
        return
    axes.plot(
        np.asarray(curve.x, dtype=float),
        np.where(np.isfinite(values), values, np.nan),
        label=curve.name,
        color=curve.colour,
        linestyle="--" if curve.dashed else "-",
        linewidth=0.8 if curve.faint else 1.8,
        alpha=0.35 if curve.faint else 1.0,
        zorder=1 if curve.faint else 2,
        marker="o" if len(values) <= MARKED and not curve.faint else None,
        markersize=4,
    )


def _scale(axes: Axes, *, percent: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    def number(value: float, _: float) -> str:
        return f"{value:g}"

    def share(value: float, _: float) -> str:
        return f"{100 * value:g} %"

    # min_n_ticks, or a single epoch would stand among fractions of epochs.
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(number)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(share if percent else number)
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    if percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.01), min(high, 1.01))
    axes.spines[["top", "right"]].set_visible(False)


def _inline(text: str, name: str) -> str:
    """Turn an SVG file into an element of a page."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    # Without the width and height of its head the plot is as wide as its place.
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\1{name}-", text)
    return text.replace(INK, "currentColor")


def shares(confusion: np.ndarray) -> np.ndarray:
    """Counts `[K, K]` -> share of each cell in its row; 0 in an empty row."""
    counts = confusion.astype(float)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def strength(share: np.ndarray) -> np.ndarray:
    """How strongly a share of a row is coloured, in [0, 1]: its root, so that small ones show."""
    return np.sqrt(share)


def heat_map(confusion: np.ndarray) -> bytes:
    """Counts `[K, K]` -> a PNG of K x K pixels: one colour for correct predictions, one for wrong.

    The weaker a cell, the more of the page shows through.
    """
    count = len(confusion)
    pixels = np.empty((count, count, 4), np.uint8)
    pixels[..., :3] = _rgb(TRAINING)
    pixels[np.arange(count), np.arange(count), :3] = _rgb(VALIDATION)
    pixels[..., 3] = np.rint(255 * strength(shares(confusion)))
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))

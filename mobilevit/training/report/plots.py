"""The plots of a report: curves as inline SVG."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import escape

from mobilevit.tasks.report import Curve, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the page's own text colour, for which matplotlib has no name."""
MARKED = 40
"""Curves of up to so many points have marks; a single point would not show without."""


def svg(plot: Plot) -> str:
    """Draw curves as an `<svg>` that takes font and text colour from the page around it.

    Identifiers in the SVG start with the plot's name.
    """
    # Here, because matplotlib takes long to import.
    from matplotlib import style
    from matplotlib.figure import Figure

    look = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": plot.name,  # or identifiers would be random
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
        for curve in plot.curves:
            _draw(axes, curve)
        if plot.mark is not None:
            axes.axvline(plot.mark, color=INK, linestyle=":", linewidth=1, alpha=0.6)
        axes.set_xlabel(plot.x)
        axes.set_ylabel(plot.y)
        _scale(axes, percent=plot.percent)
        if len(plot.curves) > 1:
            handles = axes.get_lines()[: len(plot.curves)]
            # Names as they are: no formulas between dollars, none left out for its first letter.
            legend = axes.legend(handles, [curve.name for curve in plot.curves if len(curve.y)])
            for written in legend.get_texts():
                written.set_parse_math(False)
        text = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), plot)


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
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    # min_n_ticks, or a single epoch would stand among fractions of epochs.
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %") if percent else "{x:g}")
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    if percent:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.01), min(high, 1.01))
    axes.spines[["top", "right"]].set_visible(False)


def _inline(text: str, plot: Plot) -> str:
    """Turn an SVG file into an element of a page."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    # Without the width and height of its head the plot is as wide as its place.
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\1{plot.name}-", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(plot.alt)}"', 1)
    return text.replace(INK, "currentColor")

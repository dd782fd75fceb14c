"""The plot of `mobilevit benchmark`: accuracy against time."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mobilevit.commands.bench_report import Row

METRICS = {"top1": "top-1, %", "ap": "AP, %", "miou": "mean IoU, %"}
"""Figures of accuracy as an axis calls them."""
MARKS = "os^DvPX*"
"""For the settings of a model that are compared: runtime, precision, threads, batch."""


def plot(rows: Sequence[Row]) -> str:
    """Draw all rows that were timed, as SVG.

    A panel for each figure of accuracy; models whose accuracy is not known are in one of their own,
    by name.
    """
    # Here, because matplotlib takes long to import.
    from matplotlib import style
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.median_ms is not None]
    panels: dict[str | None, list[Row]] = {}
    for row in timed:
        panels.setdefault(row.accuracy.metric if row.accuracy else None, []).append(row)
    ordered = sorted(panels.items(), key=lambda panel: panel[0] is None)
    marks = {setting: MARKS[i % len(MARKS)] for i, setting in enumerate(_settings(timed))}
    models = list(dict.fromkeys(row.model for row in timed))
    colours = {name: f"C{index % 10}" for index, name in enumerate(models)}
    # "default" first: the plot must not depend on the settings of whoever makes it.
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "benchmark"}]):
        figure = Figure(figsize=(6.4 * max(len(ordered), 1), 4.8), layout="constrained")
        for index, (metric, group) in enumerate(ordered):
            axes = figure.add_subplot(1, len(ordered), index + 1)
            _panel(axes, metric, group, marks, colours)
        content = StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _panel(
    axes: Axes,
    metric: str | None,
    rows: Sequence[Row],
    marks: dict[str, str],
    colours: dict[str, str],
) -> None:
    several = len(marks) > 1
    names = list(dict.fromkeys(row.model for row in rows))
    heights: dict[str, Any] = {name: -place for place, name in enumerate(names)}
    for row in rows:
        height = 100 * row.accuracy.value if row.accuracy else heights[row.model]
        axes.plot(row.median_ms or 0, height, marks[_setting(row)], color=colours[row.model])
        fastest = min(
            one.median_ms or 0 for one in rows if one.model == row.model and one.size == row.size
        )
        if metric is not None and row.median_ms == fastest:
            label = row.model if row.size == rows[0].size else f"{row.model}, {row.size} px"
            axes.annotate(
                *(label, (fastest, height)), xytext=(5, 5), textcoords="offset points", fontsize=8
            )
    if metric is None:
        axes.set_yticks(list(heights.values()), names, fontsize=8)
        axes.set_title("accuracy not known", fontsize=10)
    else:
        axes.set_ylabel(METRICS[metric])
    axes.set_xscale("log")
    axes.set_xlabel("median time of a batch, ms")
    axes.grid(alpha=0.3)
    if several:
        for setting, mark in marks.items():
            axes.plot([], [], mark, color="grey", label=setting)
        axes.legend(fontsize=8)


def _settings(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(map(_setting, rows)))


def _setting(row: Row) -> str:
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    batch = f", batch {row.batch}" if row.batch > 1 else ""
    return f"{row.runtime}, {row.kind}, {threads}{batch}"

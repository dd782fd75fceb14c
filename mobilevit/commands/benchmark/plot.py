"""The plot of `mobilevit benchmark`: accuracy against time."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from mobilevit.tasks import get_task

if TYPE_CHECKING:
    from mobilevit.commands.benchmark.report import Row

MARKS = "os^DvPX*"
"""Cycled through for settings: runtime, precision, threads, batch."""
PANEL = (4.8, 4.2)
"""Width and height in inches."""


def plot(rows: Sequence[Row]) -> str:
    """Draw the timed rows as SVG: a colour for each model, a mark for each setting.

    Each accuracy metric has a panel; so have models of unknown accuracy, by name.
    """
    # matplotlib takes long to import.
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    timed = [row for row in rows if row.median_ms is not None]
    panels = sorted({row.accuracy_metric for row in timed}, key=lambda metric: metric or "~")
    models = list(dict.fromkeys(f"{row.model}, {row.size} px" for row in timed))
    marks = {name: MARKS[place % 8] for place, name in enumerate(row.setting for row in timed)}
    # "default" first: the plot must not depend on the user's settings.
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "benchmark"}]):
        width = PANEL[0] * max(len(panels), 1) + 3  # for the legends
        figure = Figure(figsize=(width, PANEL[1]), layout="constrained")
        for index, metric in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            for row in (row for row in timed if row.accuracy_metric == metric):
                place = models.index(f"{row.model}, {row.size} px")
                height = -place if row.accuracy is None else 100 * row.accuracy
                axes.plot(
                    row.median_ms or 0, height, marks[row.setting], color=f"C{place}", alpha=0.8
                )
                axes.set_ylabel(f"{get_task(row.task).metric_name}, %" if metric else "")
            if metric is None:
                axes.set_yticks([])
                axes.set_title("unknown accuracy", fontsize=10)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.margins(0.1)
            axes.set_xlabel("median time of a batch, ms")
            axes.grid(alpha=0.3)
        colours = [Line2D([], [], color=f"C{i}", lw=4, label=name) for i, name in enumerate(models)]
        shapes = [Line2D([], [], color="grey", marker=m, lw=0, label=n) for n, m in marks.items()]
        figure.legend(handles=[*colours, *shapes], loc="outside right upper", fontsize=8)
        content = StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()

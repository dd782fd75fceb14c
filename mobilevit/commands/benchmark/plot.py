"""The plot of `mobilevit benchmark`: accuracy against time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from mobilevit.tasks import get_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    from matplotlib import colormaps, style
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    timed = [row for row in rows if row.timing is not None]
    panels: dict[str | None, list[Row]] = {}
    for row in timed:
        panels.setdefault(row.model.accuracy.metric if row.model.accuracy else None, []).append(row)
    ordered = sorted(panels.items(), key=lambda panel: panel[0] is None)
    marks = _assign(timed, _setting, MARKS)
    colours = _assign(timed, _model, [to_hex(colormaps["tab20"](place)) for place in range(20)])
    # "default" first: the plot must not depend on the user's settings.
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "benchmark"}]):
        width = PANEL[0] * max(len(ordered), 1) + 3  # for the legends
        figure = Figure(figsize=(width, PANEL[1]), layout="constrained")
        for index, (metric, group) in enumerate(ordered):
            axes = figure.add_subplot(1, len(ordered), index + 1)
            _panel(axes, metric, group, marks, colours)
        figure.legend(
            handles=[
                *(
                    Line2D([], [], color=colour, lw=4, label=name)
                    for name, colour in colours.items()
                ),
                *(
                    Line2D([], [], color="grey", marker=mark, lw=0, label=name)
                    for name, mark in marks.items()
                ),
            ],
            loc="outside right upper",
            fontsize=8,
        )
        content = StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _panel(
    axes: Axes,
    metric: str | None,
    rows: Sequence[Row],
    marks: Mapping[str, str],
    colours: Mapping[str, str],
) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    names = list(dict.fromkeys(map(_model, rows)))
    for row in rows:
        height = 100 * row.model.accuracy.value if row.model.accuracy else -names.index(_model(row))
        colour, mark = colours[_model(row)], marks[_setting(row)]
        axes.plot(row.timing.median_ms if row.timing else 0, height, mark, color=colour, alpha=0.8)
    if metric is None:
        axes.set_yticks([-place for place in range(len(names))], names, fontsize=8)
        axes.set_title("unknown accuracy", fontsize=10)
    else:
        axes.set_ylabel(f"{get_task(rows[0].model.task).metric_name}, %")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter("")
    axes.margins(0.1)
    axes.set_xlabel("median time of a batch, ms")
    axes.grid(alpha=0.3)


def _assign(
    rows: Sequence[Row], name: Callable[[Row], str], styles: Sequence[str]
) -> dict[str, str]:
    names = dict.fromkeys(map(name, rows))
    return {name: styles[place % len(styles)] for place, name in enumerate(names)}


def _model(row: Row) -> str:
    return f"{row.model.name}, {row.setting.size} px"


def _setting(row: Row) -> str:
    setting = row.setting
    threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    batch = f", batch {setting.batch}" if setting.batch > 1 else ""
    return f"{setting.runtime}, {setting.dtype}, {threads}{batch}"

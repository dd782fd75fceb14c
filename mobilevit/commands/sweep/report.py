"""What a sweep gives: a table, a plot, the best recipe."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevit.utils.files import write_file
from mobilevit.utils.tables import render, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"top1": "top-1", "ap": "AP", "miou": "mean IoU"}
PANEL = (3.6, 3.2)
"""Width and height in inches of an option's panel."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep."""

    number: int
    values: dict[str, Any]
    """Option -> its value in this trial."""
    accuracy: float | None
    """Share in [0, 1]; None where training gave no number."""
    folder: Path
    """Its run folder."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep gave; also in its folder, as results.csv, results.json and plot.svg."""

    folder: Path
    metric: str
    """What accuracy is: `top1`, `ap` or `miou`, of the best epoch on the validation images."""
    ranges: Mapping[str, str]
    """Option -> `linear` or `log`, for those that have a range; the others have a list."""
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The most accurate trial, the first of equals; None if all failed."""
        return max(
            (trial for trial in self.trials if trial.accuracy is not None),
            key=lambda trial: trial.accuracy or 0,
            default=None,
        )

    def __str__(self) -> str:
        """Show the trials from the best on, how far apart they are, and where to look."""
        options = list(self.trials[0].values)
        rows = table("trial", *options, NAMES[self.metric])
        for trial in sorted(self.trials, key=lambda trial: -(trial.accuracy or 0)):
            shown = "failed" if trial.accuracy is None else f"{trial.accuracy:.2%}"
            rows.add_row(f"{trial.number:03d}", *map(_short, trial.values.values()), shown)
        figures = [trial.accuracy for trial in self.trials if trial.accuracy is not None]
        if not figures:
            return render(rows, "all trials failed")
        return render(
            rows,
            f"{NAMES[self.metric]} from {min(figures):.2%} to {max(figures):.2%}, median "
            f"{statistics.median(figures):.2%}, in {len(figures)} trials",
            f"table:       {self.folder / 'results.csv'}, {self.folder / 'results.json'}",
            f"plot:        {self.folder / 'plot.svg'}",
            f"best recipe: {self.folder / 'best.yaml'}",
        )


def write(result: SweepResult) -> None:
    """Write results.csv, results.json, plot.svg and, if a trial succeeded, best.yaml."""
    rows = [
        {"trial": trial.number, **trial.values, result.metric: trial.accuracy}
        for trial in result.trials
    ]
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files: dict[str, Callable[[], str]] = {
        "results.csv": text.getvalue,
        "results.json": lambda: json.dumps(rows, indent=1) + "\n",
        "plot.svg": lambda: plot(result),
    }
    if (best := result.best) is not None:
        files["best.yaml"] = (best.folder / "config.yaml").read_text
    for name, content in files.items():
        write_file(result.folder / name, content())


def plot(result: SweepResult) -> str:
    """Draw accuracy against each option, as SVG: one panel for each, one point for each trial."""
    # Here, because matplotlib takes long to import.
    from matplotlib import style
    from matplotlib.figure import Figure

    options = list(result.trials[0].values)
    # "default" first: the plot must not depend on the settings of whoever makes it.
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "sweep"}]):
        figure = Figure(figsize=(PANEL[0] * len(options), PANEL[1]), layout="constrained")
        panels = figure.subplots(1, len(options), sharey=True, squeeze=False)[0]
        panels[0].set_ylabel(f"{NAMES[result.metric]}, %")
        for axes, option in zip(panels, options, strict=True):
            _panel(axes, option, result)
        content = StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _panel(axes: Axes, option: str, result: SweepResult) -> None:
    done = [trial for trial in result.trials if trial.accuracy is not None]
    values = [trial.values[option] for trial in done]
    heights = [100 * (trial.accuracy or 0) for trial in done]
    if option in result.ranges:
        axes.plot(values, heights, "o", alpha=0.7)
        axes.set_xscale(result.ranges[option])
    else:  # what was listed stands at even distances, numbers by their size
        numbers = all(isinstance(value, (int, float)) for value in values)
        names = list(dict.fromkeys(map(_short, sorted(values) if numbers else values)))
        axes.plot([names.index(_short(value)) for value in values], heights, "o", alpha=0.7)
        axes.set_xticks(range(len(names)), names)
    axes.set_xlabel(option)
    axes.margins(0.1)
    axes.grid(alpha=0.3)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)

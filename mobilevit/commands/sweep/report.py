"""Results of a sweep: a table, a plot, the best recipe."""

from __future__ import annotations

import csv
import json
import statistics
import warnings
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevit.utils.files import write_file
from mobilevit.utils.tables import render, table

if TYPE_CHECKING:
    from optuna import Study


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep."""

    number: int
    values: dict[str, Any]
    accuracy: float | None
    """Share in [0, 1]; None if training diverged."""
    folder: Path


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Results of a sweep; also in its folder, as results.csv, results.json and plot.svg."""

    folder: Path
    metric: str
    """What accuracy is: `top1`, `ap` or `miou`, of the best epoch on the validation images."""
    name: str
    """`metric` in words."""
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The most accurate trial, the first of equals; None if all failed."""
        done = [trial for trial in self.trials if trial.accuracy is not None]
        return max(done, key=lambda trial: trial.accuracy or 0, default=None)

    def __str__(self) -> str:
        rows = table("trial", *self.trials[0].values, self.name)
        for trial in sorted(self.trials, key=lambda trial: -(trial.accuracy or 0)):
            shown = "failed" if trial.accuracy is None else f"{trial.accuracy:.2%}"
            rows.add_row(f"{trial.number:03d}", *map(_short, trial.values.values()), shown)
        figures = [trial.accuracy for trial in self.trials if trial.accuracy is not None]
        if not figures:
            return render(rows, "all trials failed")
        return render(
            rows,
            f"{self.name} from {min(figures):.2%} to {max(figures):.2%}, median "
            f"{statistics.median(figures):.2%}, in {len(figures)} trials",
            f"table:       {self.folder / 'results.csv'}, {self.folder / 'results.json'}",
            f"plot:        {self.folder / 'plot.svg'}",
            f"best recipe: {self.folder / 'best.yaml'}",
        )


def write(result: SweepResult, study: Study) -> None:
    """Write results.csv, results.json and, if a trial succeeded, plot.svg and best.yaml."""
    rows = [
        {"trial": trial.number, **trial.values, result.metric: trial.accuracy}
        for trial in result.trials
    ]
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(result.folder / "results.csv", text.getvalue())
    write_file(result.folder / "results.json", json.dumps(rows, indent=1) + "\n")
    if result.best is not None:
        write_file(result.folder / "plot.svg", plot(study, result.name))
        write_file(result.folder / "best.yaml", (result.best.folder / "config.yaml").read_text())


def plot(study: Study, name: str) -> str:
    """Accuracy against each option, as SVG: one panel for each, one point for each trial."""
    # Here, because both take long to import.
    from matplotlib import pyplot, style
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization.matplotlib import plot_slice

    content = StringIO()
    with warnings.catch_warnings(), style.context(["default", {"svg.fonttype": "none"}]):
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", ".*identical low and high xlims.*")  # a single trial
        axes: Any = plot_slice(
            study, target=lambda trial: 100 * (trial.value or 0), target_name=f"{name}, %"
        )
        figure = np.ravel(axes)[0].figure
        figure.savefig(content, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return content.getvalue()


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)

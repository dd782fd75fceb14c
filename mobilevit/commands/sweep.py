"""The command `mobilevit sweep`: many trainings with options drawn from a space, by Optuna."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import logging
import os
import re
import statistics
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mobilevit.tasks.base import Task
from mobilevit.training.errors import DivergedError, TrainingError
from mobilevit.training.options import TrainOptions
from mobilevit.training.resume import CONFIG, check_same_options, claim_folder, locked, write_config
from mobilevit.training.train import choose_model, train
from mobilevit.utils.files import write_file
from mobilevit.utils.tables import render, table

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
"""Optuna's record of the trials, in the sweep's folder."""
FREE_TO_CHANGE = (
    *("trials", "device", "threads", "checkpoint_minutes"),
    *("data.root", "data.index", "data.workers", "data.check", "data.cache", "data.cache_gb"),
)
"""Options that a resumed sweep may change: trials stay comparable."""
FIXED = ("data", "out", "device", "threads", "checkpoint_minutes")
"""Options of training that do not vary."""
RANGE = re.compile(r"(log:)?([^:,]+?)\.\.([^:,]+?)(?::(\d+))?")
GRID_POINTS = "4"
"""Points that a grid takes of a range that does not say how many."""
Method = Literal["tpe", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Results of a sweep; also in its folder, as results.csv, results.json and plot.svg."""

    folder: Path
    metric: str
    """What accuracy is: `top1`, `ap` or `miou`, of the best epoch on the validation images."""
    name: str
    """`metric` in words."""
    trials: tuple[dict[str, Any], ...]
    """For each its folder's name ("trial"), the options that vary, and the `metric`: in [0, 1], or
    None if training diverged."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The most accurate trial, the first of equals; None if all failed."""
        done = [trial for trial in self.trials if trial[self.metric] is not None]
        return max(done, key=lambda trial: trial[self.metric], default=None)

    def __str__(self) -> str:
        rows = table(*self.trials[0])
        for trial in sorted(self.trials, key=lambda trial: -(trial[self.metric] or 0)):
            accuracy = trial[self.metric]
            shown = "failed" if accuracy is None else f"{accuracy:.2%}"
            rows.add_row(*map(_short, list(trial.values())[:-1]), shown)
        figures = [one for trial in self.trials if (one := trial[self.metric]) is not None]
        if not figures:
            return render(rows, "all trials failed")
        return render(
            rows,
            f"{self.name} from {min(figures):.2%} to {max(figures):.2%}, median "
            f"{statistics.median(figures):.2%}, in {len(figures)} trials",
            f"{self.folder} has the table (results.csv, results.json), a plot (plot.svg) and the "
            "best recipe (best.yaml)",
        )


def sweep(
    options: TrainOptions | None = None,
    *,
    space: str,
    trials: int = 12,
    method: Method = "tpe",
    resume: bool = False,
    **fields: Any,
) -> SweepResult:
    """Train many times with options drawn from a space, and see what they do to accuracy.

    All options of `mobilevit train` are options here too; those that are not in the space are the
    same in every trial. Trials run one after another, each in its own folder, `out`/trial_000 on.

    Args:
        options: all options of training; `out` is the folder of the sweep, and `seed` also seeds
            what is drawn. Or in Python `fields`.
        space: what to vary: `OPTION=VALUES`, several with semicolons between. VALUES are a list
            `0,0.2,1`, a range `0..1`, or one of even ratios `log:1e-4..0.5`; `log:1e-4..0.5:6` is
            a range of which a grid takes 6 points.
        trials: how many trainings; a grid has as many as it has points.
        method: how values are drawn: by the results of earlier trials (TPE), at random, or every
            combination.
        resume: go on with the sweep in `out`; it may have more trials than before.
        fields: of `TrainOptions` that are set or differ.

    Raises:
        TrainingError: `out` holds a sweep already, or none or another to resume; Optuna is missing;
            several processes.
        Interrupted: Ctrl-C or SIGTERM; the trial's state is saved.
        ValueError: the space has an unknown option, or values out of its range.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("a sweep runs in one process: start it without torchrun")
    if trials < 1:
        raise TrainingError(f"trials must be at least 1, not {trials}")
    try:
        from optuna.samplers import RandomSampler, TPESampler
        from optuna.trial import TrialState
    except ImportError as error:
        raise TrainingError(
            f"a sweep needs optuna, which is not installed ({error}): "
            "pip install 'mobilevit[sweep]'"
        ) from error
    options = TrainOptions(**fields) if options is None else replace(options, **fields)
    axes = read_space(space, TrainOptions.flag_types())
    for axis in axes:
        for point in axis.points:
            options.with_option(axis.name, axis.value(point))  # checks its range
    _, task = choose_model(options)
    grid = list(itertools.product(*(axis.points for axis in axes))) if method == "grid" else []
    trials = len(grid) or trials
    out = Path(options.out)
    recipe = {"space": space, "method": method, "trials": trials, **options.as_recipe()}
    with locked(out):
        study = _open_study(out, recipe, resume=resume)
        for point in grid:
            values = {axis.name: value for axis, value in zip(axes, point, strict=True)}
            study.enqueue_trial(values, skip_if_exists=True)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of an interrupted sweep
            _run(study, trial.number, trial.params, axes, options, task)
        ended = (TrialState.COMPLETE, TrialState.FAIL)
        while (number := len(study.get_trials(deepcopy=False, states=ended))) < trials:
            # A seed for each trial: a resumed sweep draws what an uninterrupted one would.
            seed = options.seed + 7919 * number
            tpe = method == "tpe"  # the points of a grid are waiting in the study
            study.sampler = (
                TPESampler(seed=seed, n_startup_trials=5) if tpe else RandomSampler(seed)
            )
            drawn = study.ask({axis.name: axis.distribution for axis in axes})
            text = ", ".join(f"{name}={value}" for name, value in drawn.params.items())
            logger.info("%s of %d: %s", _name(drawn.number), trials, text)
            _run(study, drawn.number, drawn.params, axes, options, task)
    rows = tuple(
        {
            "trial": _name(trial.number),
            **{axis.name: axis.value(trial.params[axis.name]) for axis in axes},
            task.metric_key: trial.value,
        }
        for trial in study.get_trials(states=ended)
    )
    result = SweepResult(folder=out, metric=task.metric_key, name=task.metric_name, trials=rows)
    _write(result, study)
    return result


def _name(number: int) -> str:
    return f"trial_{number:03d}"


def _open_study(out: Path, recipe: dict[str, Any], *, resume: bool) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = out / JOURNAL
    claim_folder(out, journal, resume=resume)
    if resume:
        check_same_options(out, recipe, free=FREE_TO_CHANGE)
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, recipe)
    return optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(journal))),
        direction="maximize",
        load_if_exists=True,
    )


def _run(
    study: Study,
    number: int,
    drawn: Mapping[str, Any],
    axes: Sequence[Axis],
    options: TrainOptions,
    task: Task,
) -> None:
    """Train one trial, from its checkpoint if there is one, and report to the study."""
    from optuna.trial import TrialState

    folder = Path(options.out) / _name(number)
    options = replace(options, out=str(folder))
    for axis in axes:
        options = options.with_option(axis.name, axis.value(drawn[axis.name]))
    try:
        trained = train(options, resume=(folder / "checkpoints" / "last.ckpt").is_file())
    except DivergedError as error:  # a result about its options; the sweep goes on
        logger.warning("%s failed: %s", _name(number), error)
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, float(getattr(trained.metrics, task.metric_key)))


def _write(result: SweepResult, study: Study) -> None:
    """Write results.csv, results.json and, if a trial succeeded, plot.svg and best.yaml."""
    text = StringIO()
    writer = csv.DictWriter(text, fieldnames=list(result.trials[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.trials)
    write_file(result.folder / "results.csv", text.getvalue())
    write_file(result.folder / "results.json", json.dumps(result.trials, indent=1) + "\n")
    if result.best is not None:
        best = result.folder / result.best["trial"]
        write_file(result.folder / "plot.svg", _plot(study, result.name))
        write_file(result.folder / "best.yaml", (best / CONFIG).read_text())


def _plot(study: Study, name: str) -> str:
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


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One option of the space, and the values that it takes."""

    name: str
    type: Any
    """Of the option."""
    distribution: BaseDistribution
    """Optuna's; choices are there as they are written, since Optuna stores no tuples."""
    points: list[Any]
    """All choices, or the points that a grid takes of a range, with both ends; as Optuna's."""

    def value(self, drawn: Any) -> Any:
        """The option's value for one that Optuna drew."""
        return _parse(self.name, self.type, str(drawn))


def read_space(text: str, types: Mapping[str, Any]) -> list[Axis]:
    """Read `OPTION=VALUES` to vary, several with semicolons or line breaks between.

    `types` has all options of training.
    """
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    if not parts:
        raise ValueError("the space is empty: give it as 'optim.weight_decay=log:1e-4..0.5'")
    axes = [_read_axis(part, types) for part in parts]
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the space has {name} twice")
    return axes


def _read_axis(part: str, types: Mapping[str, Any]) -> Axis:
    from optuna.distributions import CategoricalDistribution

    name, _, values = (word.strip() for word in part.partition("="))
    if not values:
        raise ValueError(f"the space takes OPTION=VALUES, not {part!r}")
    known = [option for option in types if option.partition(".")[0] not in FIXED]
    if name not in known:
        near = [option for option in known if option.endswith(f".{name}")]
        near = near or difflib.get_close_matches(name, known)
        hint = f"; is it {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"there is no option {name!r} to vary{hint} (those of mobilevit train, except "
            f"{', '.join(FIXED)})"
        )
    if found := RANGE.fullmatch(values):
        return _read_range(name, types[name], found)
    if values.startswith("log:") or ".." in values:
        raise ValueError(
            f"{name}: a range is 0..1, log:1e-4..0.5 or log:1e-4..0.5:6, not {values!r}"
        )
    choices = [word.strip() for word in re.split(r",(?![^\[]*\])", values)]  # not within brackets
    if len(set(choices)) < 2:
        raise ValueError(f"{name} has one value only, {values}: give it as --{name} instead")
    distribution = CategoricalDistribution(choices)
    return Axis(name=name, type=types[name], distribution=distribution, points=choices)


def _read_range(name: str, hint: Any, found: re.Match[str]) -> Axis:
    from optuna.distributions import FloatDistribution, IntDistribution

    inner = [one for one in typing.get_args(hint) if one is not NoneType] or [hint]
    if inner not in ([int], [float]):  # a pair of numbers is none
        raise ValueError(f"{name} is not a number, so it has no range {found[0]}: list its values")
    (number,) = inner
    low, high = (_parse(name, number, word.strip()) for word in found.group(2, 3))
    make = IntDistribution if number is int else FloatDistribution
    try:
        distribution = make(low, high, log=bool(found[1]))
    except ValueError as error:
        raise ValueError(f"{name}: there is no range {found[0]}: {error}") from error
    spaced = np.geomspace if found[1] else np.linspace
    points = spaced(low, high, int(found[4] or GRID_POINTS)).tolist()
    points[0], points[-1] = low, high  # exactly
    if number is int:
        points = list(dict.fromkeys(map(round, points)))
    return Axis(name=name, type=hint, distribution=distribution, points=points)


def _parse(name: str, hint: Any, text: str) -> Any:
    """A value as the command line reads it for an option of that type."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_args([f"--value={text}"]).value
    except ArgumentError as error:
        raise ValueError(f"{name} cannot be {text!r}: its type is {hint}") from error

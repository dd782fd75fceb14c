"""The command `mobilevit sweep`: many trainings with options drawn from a space."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilevit.commands.sweep.report import SweepResult, Trial, write
from mobilevit.commands.sweep.space import Axis, read_space
from mobilevit.tasks.base import Task
from mobilevit.training.errors import DivergedError, TrainingError
from mobilevit.training.options import TrainOptions
from mobilevit.training.train import choose_model, train

if TYPE_CHECKING:
    from optuna import Study

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
"""Optuna's record of the trials, in the sweep's folder."""
FREE_TO_CHANGE = (
    *("trials", "device", "threads", "checkpoint_minutes"),
    *("data.root", "data.index", "data.workers", "data.check"),
)
"""Options that a resumed sweep may change: trials stay comparable."""
Method = Literal["tpe", "random", "grid"]


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
    options = TrainOptions(**fields) if options is None else replace(options, **fields)
    _import_optuna()
    axes = read_space(space, TrainOptions.flag_types())
    for axis in axes:
        for point in axis.points:
            options.with_option(axis.name, axis.value(point))  # checks its range
    _, task = choose_model(options)
    points = []
    if method == "grid":
        names = [axis.name for axis in axes]
        values = itertools.product(*(axis.points for axis in axes))
        points = [dict(zip(names, point, strict=True)) for point in values]
        trials = len(points)
    out = Path(options.out)
    recipe = {"space": space, "method": method, "trials": trials, **options.as_recipe()}
    study = _open_study(out, recipe, points=points, resume=resume)
    distributions = {axis.name: axis.distribution for axis in axes}
    from optuna.samplers import RandomSampler, TPESampler
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of an interrupted sweep
        _run(study, trial.number, trial.params, axes, options, task)
    ended = (TrialState.COMPLETE, TrialState.FAIL)
    while (number := len(study.get_trials(deepcopy=False, states=ended))) < trials:
        # A seed for each trial: a resumed sweep draws what an uninterrupted one would.
        seed = options.seed + 7919 * number
        tpe = method == "tpe"  # the points of a grid are waiting in the study
        study.sampler = TPESampler(seed=seed, n_startup_trials=5) if tpe else RandomSampler(seed)
        drawn = study.ask(distributions)
        logger.info("trial %d of %d: %s", drawn.number + 1, trials, drawn.params)
        _run(study, drawn.number, drawn.params, axes, options, task)
    done = tuple(
        Trial(
            number=trial.number,
            values={axis.name: axis.value(trial.params[axis.name]) for axis in axes},
            accuracy=trial.value,
            folder=_folder(out, trial.number),
        )
        for trial in study.get_trials(states=ended)
    )
    result = SweepResult(folder=out, metric=task.metric_key, name=task.metric_name, trials=done)
    write(result, study)
    return result


def _import_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            f"a sweep needs optuna, which is not installed ({error}): "
            "pip install 'mobilevit[sweep]'"
        ) from error


def _folder(out: Path, number: int) -> Path:
    return out / f"trial_{number:03d}"


def _open_study(
    out: Path, recipe: dict[str, Any], *, points: Sequence[dict[str, Any]], resume: bool
) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from mobilevit.training.resume import CONFIG, check_same_options, write_config

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = out / JOURNAL
    if resume and not (journal.is_file() and (out / CONFIG).is_file()):
        raise TrainingError(f"{out} holds no sweep to resume: there is no {journal}")
    if not resume and out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty; resume the sweep in it, or choose another out")
    if resume:
        check_same_options(out, recipe, free=FREE_TO_CHANGE)
    out.mkdir(parents=True, exist_ok=True)
    write_config(out, recipe)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(journal))),
        direction="maximize",
        load_if_exists=True,
    )
    for point in points:
        study.enqueue_trial(point, skip_if_exists=True)
    return study


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

    folder = _folder(Path(options.out), number)
    for name, value in {
        "out": str(folder),
        **{a.name: a.value(drawn[a.name]) for a in axes},
    }.items():
        options = options.with_option(name, value)
    try:
        trained = train(options, resume=(folder / "checkpoints" / "last.ckpt").is_file())
    except DivergedError as error:  # a result about its options; the sweep goes on
        logger.warning("trial %d failed: %s", number + 1, error)
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, float(getattr(trained.metrics, task.metric_key)))

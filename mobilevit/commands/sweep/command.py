"""`mobilevit sweep`: training, many times, with options drawn from a space."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mobilevit.commands.sweep.report import SweepResult, Trial, write
from mobilevit.commands.sweep.space import Axis, read_space
from mobilevit.training.errors import DivergedError, TrainingError
from mobilevit.training.train import train
from mobilevit.utils.files import write_file

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
"""Optuna's record of the trials, in the sweep's folder."""
CONFIG = "config.yaml"
FREE_TO_CHANGE = (
    *("trials", "device", "threads", "checkpoint_minutes"),
    *("data.root", "data.index", "data.workers", "data.check"),
)
"""Options that a resumed sweep may change: trials stay comparable."""
METRICS = ("top1", "ap", "miou")
"""What a task is evaluated by: the first of these that its metrics have."""


def _takes_options_of_train(function: Callable[..., SweepResult]) -> Callable[..., SweepResult]:
    """Give `**options` the names, types and texts of `train`'s options, for the command line."""
    own = inspect.signature(function).parameters.values()
    theirs = inspect.signature(train).parameters
    types = typing.get_type_hints(function) | typing.get_type_hints(train)
    types["return"] = SweepResult
    parameters = [item for item in own if item.kind is not item.VAR_KEYWORD]
    names = {item.name for item in parameters}
    parameters += [item for name, item in theirs.items() if name not in names]
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [item.replace(annotation=types[item.name]) for item in parameters],
        return_annotation=SweepResult,
    )
    function.__annotations__ = {
        name: types[name] for name in [*(item.name for item in parameters), "return"]
    }
    return function


@_takes_options_of_train
def sweep(
    *,
    out: str,
    space: str,
    trials: int = 12,
    method: Literal["tpe", "random", "grid"] = "tpe",
    seed: int = 0,
    resume: bool = False,
    **options: Any,
) -> SweepResult:
    """Train many times with options drawn from a space, and see what they do to accuracy.

    All options of `mobilevit train` are options here too; those that are not in the space are the
    same in every trial. Trials run one after another, each in its own folder, `out`/trial_000 on.

    Args:
        out: folder to write; must be new, or of the sweep to resume.
        space: what to vary: `OPTION=VALUES`, several with semicolons between. VALUES are a list
            `0,0.2,1`, a range `0..1`, or one of even ratios `log:1e-4..0.5`; `log:1e-4..0.5:6` is
            a range of which a grid takes 6 points.
        trials: how many trainings; a grid has as many as it has points.
        method: how values are chosen: by what earlier trials gave (TPE), at random, or every
            combination.
        seed: of the choice of values, and of every trial's training, if it is not in the space.
        resume: go on with the sweep in `out`; it may have more trials than before.
        options: those of `train`.

    Raises:
        TrainingError: `out` holds a sweep already, or none or another to resume; Optuna is missing;
            several processes.
        Interrupted: Ctrl-C or SIGTERM; the trial's state is saved.
        ValueError: an option that there is not, or values out of its range.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("a sweep runs in one process: start it without torchrun")
    if trials < 1:
        raise TrainingError(f"trials must be at least 1, not {trials}")
    axes = read_space(space, option_types())
    base = {**_defaults(), **options, "seed": seed}
    for axis in axes:
        for value in axis.bounds:
            _with(base, {axis.name: value})  # the option's own check of its range
    points = _grid(axes) if method == "grid" else []
    trials = len(points) or trials
    study = _open(
        Path(out),
        {"space": space, "method": method, "seed": seed, **_plain_options(base)},
        trials=trials,
        points=points,
        resume=resume,
    )
    distributions = {axis.name: axis.distribution() for axis in axes}
    from optuna.trial import TrialState

    begun = study.get_trials(states=(TrialState.RUNNING,))
    for trial in begun:  # by a sweep that was interrupted
        _run(Path(out), study, trial.number, _values(axes, trial.params), base)
    ended = (TrialState.COMPLETE, TrialState.FAIL)
    while (number := len(study.get_trials(deepcopy=False, states=ended))) < trials:
        # A seed for each trial: a resumed sweep draws what an uninterrupted one would.
        study.sampler = _sampler(method, seed + 7919 * number)
        asked = study.ask(distributions)
        logger.info("trial %d of %d: %s", asked.number + 1, trials, _said(asked.params))
        _run(Path(out), study, asked.number, _values(axes, asked.params), base)
    result = _result(Path(out), study, axes)
    write(result)
    return result


def option_types() -> dict[str, Any]:
    """Option -> type, for every option of `train` that a space may vary."""
    fixed = ("return", "data", "out", "resume", "device", "threads", "checkpoint_minutes")
    kinds: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(train).items():
        if name in fixed:
            continue
        if is_dataclass(kind):
            kinds |= {f"{name}.{key}": inner for key, inner in typing.get_type_hints(kind).items()}
        else:
            kinds[name] = kind
    return kinds


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(train).parameters
    return {
        name: item.default
        for name, item in parameters.items()
        if item.default is not item.empty and name != "resume"
    }


def _with(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Options with some set, by names with dots.

    Raises:
        ValueError: an option refuses its value.
    """
    options = dict(base)
    for name, value in values.items():
        group, _, field = name.partition(".")
        options[group] = replace(options[group], **{field: value}) if field else value
    return options


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    plain = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in options.items()
    }
    return typing.cast(dict[str, Any], json.loads(json.dumps(plain)))  # tuples as lists


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under names with dots."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= (
            {f"{name}.{key}": inner for key, inner in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def _grid(axes: list[Axis]) -> list[dict[str, Any]]:
    """Every combination of the axes' points."""
    points: list[dict[str, Any]] = [{}]
    for axis in axes:
        points = [{**point, axis.name: value} for point in points for value in axis.points()]
    return points


def _open(
    out: Path,
    asked: dict[str, Any],
    *,
    trials: int,
    points: list[dict[str, Any]],
    resume: bool,
) -> Study:
    """Begin a study in a folder, or open the one that is there.

    Raises:
        TrainingError: the folder is not what was asked for; Optuna is missing.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise TrainingError(
            f"a sweep needs optuna, which is not installed ({error}): "
            "pip install 'mobilevit[sweep]'"
        ) from error
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = out / JOURNAL
    if resume and not (journal.is_file() and (out / CONFIG).is_file()):
        raise TrainingError(f"{out} holds no sweep to resume: there is no {journal}")
    if not resume and out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty; resume the sweep in it, or choose another out")
    if resume:
        before, after = _flat(yaml.safe_load((out / CONFIG).read_text())), _flat(asked)
        changed = sorted(
            name
            for name in before.keys() | after.keys()
            if name not in FREE_TO_CHANGE and before.get(name) != after.get(name)
        )
        if changed:
            raise TrainingError(
                f"the sweep in {out} was begun with another {', '.join(changed)}; a resumed one "
                f"may change {', '.join(FREE_TO_CHANGE)}"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / CONFIG, yaml.safe_dump({**asked, "trials": trials}, sort_keys=False))
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(journal))),
        direction="maximize",
        load_if_exists=True,
    )
    for point in points:
        study.enqueue_trial(point, skip_if_exists=True)
    return typing.cast("Study", study)


def _sampler(method: str, seed: int) -> BaseSampler:
    """A grid's points wait in the study; nothing is drawn for them."""
    from optuna.samplers import RandomSampler, TPESampler

    return TPESampler(seed=seed, n_startup_trials=5) if method == "tpe" else RandomSampler(seed)


def _values(axes: list[Axis], params: Mapping[str, Any]) -> dict[str, Any]:
    return {axis.name: axis.value(params[axis.name]) for axis in axes}


def _run(
    out: Path, study: Study, number: int, values: Mapping[str, Any], base: Mapping[str, Any]
) -> None:
    """Train one trial, from where it was left if it was; tell the study what came of it."""
    from optuna.trial import TrialState

    folder = out / f"trial_{number:03d}"
    begun = (folder / "checkpoints" / "last.ckpt").is_file()
    try:
        trained = train(**{**_with(base, values), "out": str(folder)}, resume=begun)
    except DivergedError as error:  # it says something of its options; the sweep goes on
        logger.warning("trial %d failed: %s", number + 1, error)
        study.tell(number, state=TrialState.FAIL)
        return
    metric = next(name for name in METRICS if hasattr(trained.metrics, name))
    study.set_user_attr("metric", metric)
    study.tell(number, float(getattr(trained.metrics, metric)))


def _result(out: Path, study: Study, axes: list[Axis]) -> SweepResult:
    from optuna.trial import TrialState

    ended = (TrialState.COMPLETE, TrialState.FAIL)
    done = [
        Trial(
            number=trial.number,
            values=_values(axes, trial.params),
            accuracy=trial.value,
            folder=out / f"trial_{trial.number:03d}",
        )
        for trial in study.get_trials(states=ended)
    ]
    return SweepResult(
        folder=out,
        metric=study.user_attrs.get("metric", METRICS[0]),
        ranges={axis.name: "log" if axis.log else "linear" for axis in axes if not axis.choices},
        trials=tuple(done),
    )


def _said(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in params.items()
    )

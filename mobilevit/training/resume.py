"""Resuming: the run folder, and whether its options are those of the run in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mobilevit.training.errors import TrainingError
from mobilevit.utils.files import write_file

CONFIG = "config.yaml"
FREE_TO_CHANGE = (
    *("epochs", "patience", "threads", "device", "checkpoint_minutes"),
    *("data.root", "data.index", "data.workers", "data.check"),
)
"""Options that a resumed run may change; they do not affect what its state means."""


def claim_folder(run: Path, checkpoint: Path, *, resume: bool) -> None:
    """Raise TrainingError unless the run folder is free or, with `resume`, holds a run."""
    if resume and not checkpoint.is_file():
        raise TrainingError(f"{run} holds no run to resume: there is no {checkpoint}")
    # A run that failed before its first checkpoint has left nothing worth keeping.
    failed = (run / CONFIG).is_file() and not checkpoint.is_file()
    if not resume and run.exists() and any(run.iterdir()) and not failed:
        raise TrainingError(f"{run} is not empty; resume the run in it, or choose another out")


def check_same_options(
    folder: Path, recipe: Mapping[str, Any], *, free: Collection[str] = FREE_TO_CHANGE
) -> None:
    """Raise TrainingError if an option that is not `free` has changed since the run began.

    The run's position counts batches of a schedule that any other option might change.
    """
    old = dict(_flatten(yaml.safe_load((folder / CONFIG).read_text())))
    new = dict(_flatten(recipe))
    changed = [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in free and old.get(name) != new.get(name)
    ]
    if changed:
        raise TrainingError(
            f"{folder} was begun with other options: {'; '.join(changed)}. Resuming may change "
            f"{', '.join(free)}; for the rest, begin a new run from its weights"
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def write_config(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write options as a recipe that repeats the run."""
    write_file(folder / CONFIG, yaml.safe_dump(dict(recipe), sort_keys=False))

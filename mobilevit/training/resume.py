"""Resuming: the run folder, and whether its options are those of the run in it."""

import gzip
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from mobilevit.data.splits import Splits
from mobilevit.training.errors import TrainingError
from mobilevit.utils.files import remove_leftovers, write_file

CONFIG = "config.yaml"
LOCK = ".lock"
"""The file in a run folder that a training process holds locked."""
DATA = "data.json.gz"
FREE_TO_CHANGE = (
    *("epochs", "patience", "threads", "device", "keep_memory", "checkpoint_minutes"),
    *("data.root", "data.index", "data.workers", "data.check", "data.on_change"),
    *("data.cache", "data.cache_gb"),
)
"""Options that a resumed run may change; they do not affect what its state means."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder; a killed process keeps none."""
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / LOCK, blocking=False):
            yield
    except Timeout as error:
        raise TrainingError(
            f"another process is training in {run}: wait for it, or choose another out"
        ) from error


def claim_folder(run: Path, *states: Path, resume: bool) -> None:
    """Raise TrainingError unless the run folder is free or, with `resume`, has one of `states`."""
    for folder in (run, *run.glob("*/")):
        remove_leftovers(folder)
    begun = any(path.is_file() for path in states)
    if resume and not begun:
        raise TrainingError(f"{run} holds no run to resume: there is no {states[0]}")
    # A run that failed before its first checkpoint has left nothing worth keeping.
    failed = (run / CONFIG).is_file() and not begun
    others = run.exists() and any(path.name != LOCK for path in run.iterdir())
    if not resume and others and not failed:
        raise TrainingError(f"{run} is not empty; resume the run in it, or choose another out")


def checkpoints_of(run: Path) -> tuple[Path, Path]:
    """The files of a run's last checkpoint and of the one before."""
    return run / "checkpoints" / "last.ckpt", run / "checkpoints" / "previous.ckpt"


def whole_checkpoint(run: Path) -> tuple[Path, int, list[str]]:
    """The last checkpoint that can be read, its step, and what is wrong with a later one.

    Raises:
        TrainingError: none can be read.
    """
    problems: list[str] = []
    for path in checkpoints_of(run):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return path, int(state["global_step"]), problems
        except FileNotFoundError:
            problems.append(f"there is no {path}")
        except (RuntimeError, EOFError, UnpicklingError, KeyError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            problems.append(f"{path} is damaged ({path.stat().st_size:,} bytes; {reason})")
    raise TrainingError(
        f"{run} cannot be resumed: {' and '.join(problems)}. Begin a new run in another out, from "
        f"the weights in {run / 'model_last'} if there are any"
    )


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


def record_data(folder: Path, splits: Splits[Any], *, resume: bool, on_change: str) -> str:
    """Write down the classes, files and annotations of a run, to compare them when it is resumed.

    Returns:
        What has changed since the run began; empty if nothing has, or with `on_change` "continue".

    Raises:
        TrainingError: something has changed, and `on_change` is "error"; or the classes have.
    """
    parts = {"train": splits.train, "val": splits.val}
    now = {
        f"{name} {path}": annotation
        for name, samples in parts.items()
        for path, annotation in samples.contents()
    }
    content = {"classes": list(splits.train.classes), "samples": now}
    file, changes = folder / DATA, ""
    if resume and file.is_file():
        before = json.loads(gzip.decompress(file.read_bytes()))
        changes = _changes(before["samples"], now)
        if before["classes"] != content["classes"]:
            raise TrainingError(
                f"{folder} was begun with the classes {', '.join(before['classes'])}, and the data "
                f"now has {', '.join(content['classes'])}; begin a new run from its weights"
            )
        if changes and on_change == "error":
            raise TrainingError(
                f"{folder}: the data has changed since the run began: {changes}. Resume it with "
                "the same files, or give --data.on_change continue to go on with these"
            )
    write_file(file, gzip.compress(json.dumps(content).encode(), mtime=0))
    return changes


def _changes(before: Mapping[str, str], now: Mapping[str, str], limit: int = 5) -> str:
    """The first few samples that are gone, new, or of another size or annotation."""
    differences = {
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed": [
            f"{name}: {before[name]} -> {content}"
            for name, content in now.items()
            if before.get(name, content) != content
        ],
    }
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:limit])}{', ...' if names[limit:] else ''})"
        for what, names in differences.items()
        if names
    )


def write_config(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write options as a recipe that repeats the run."""
    write_file(folder / CONFIG, yaml.safe_dump(dict(recipe), sort_keys=False))

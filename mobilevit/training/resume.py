"""A run's folder: who may write to it, and the options that lie in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from mobilevit.training.errors import TrainingError
from mobilevit.utils.files import write_file

CONFIG = "config.yaml"
FREE_TO_CHANGE = (
    *("epochs", "patience", "threads", "device", "checkpoint_minutes"),
    *("data.root", "data.index", "data.workers", "data.check"),
)
"""Options that a resumed run may change: none of them touches what the state in it means."""


def claim(run: Path, checkpoint: Path, *, resume: bool) -> None:
    """See that the run folder is free, or holds what `resume` asks for."""
    if resume and not checkpoint.is_file():
        raise TrainingError(f"{run} holds no run to resume: there is no {checkpoint}")
    # A run that failed ahead of its first checkpoint has left nothing worth keeping.
    begun = (run / CONFIG).is_file() and not checkpoint.is_file()
    if not resume and run.exists() and any(run.iterdir()) and not begun:
        raise TrainingError(f"{run} is not empty; resume the run in it, or choose another out")


def same_run(run: Path, options: dict[str, Any]) -> None:
    """See that a resumed run is asked for what it was begun with.

    Its position counts batches of a plan that any other option might change.
    """
    before, after = (
        _flat(values) for values in (yaml.safe_load((run / CONFIG).read_text()), _plain(options))
    )
    changed = [
        f"{name} {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in FREE_TO_CHANGE and before.get(name) != after.get(name)
    ]
    if changed:
        raise TrainingError(
            f"the run in {run} was begun with other options: {'; '.join(changed)}. A resumed run "
            f"may change {', '.join(FREE_TO_CHANGE)}; for the rest, begin one from its weights"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under names with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def write_config(run: Path, options: dict[str, Any]) -> None:
    """Write all options as the recipe that repeats the run."""
    write_file(run / CONFIG, yaml.safe_dump(_plain(options), sort_keys=False))


def _plain(value: Any) -> Any:
    """Options as YAML has them."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key != "out"}
    return list(value) if isinstance(value, tuple) else value


def note_another_curve(
    run: Path, checkpoint: Path, epochs: int, rate: Callable[[int], float], console: Console
) -> None:
    """Warn where a resumed run is of another length, since its learning rates then differ."""
    before = yaml.safe_load((run / CONFIG).read_text())["epochs"]
    if before == epochs:
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    step = state["global_step"]
    console.print(
        f"warning: the run was planned for {before} epochs and now has {epochs}, so its learning "
        f"rate follows another curve: it goes on at {rate(step):.3g} (step {step})",
        highlight=False,
        soft_wrap=True,
    )

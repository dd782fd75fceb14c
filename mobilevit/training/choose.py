"""Which network to train, for which task."""

from __future__ import annotations

from typing import Any

from mobilevit.checkpoints.read import read
from mobilevit.models.config import TaskName
from mobilevit.models.registry import HEADS, split_name, task_of
from mobilevit.tasks import get_task
from mobilevit.tasks.base import Task
from mobilevit.training.errors import TrainingError


def choose_model(
    task: TaskName | None, model: str | None, weights: str | None
) -> tuple[str, Task[Any, Any]]:
    """The name of the network to train, and its task.

    Raises:
        TrainingError: the model is for another task.
    """
    theirs = read(weights).config.model if weights and not model else None
    if task is None:
        known = model or theirs
        task = task_of(known) if known else "classification"
    chosen = get_task(task)
    if model is None:
        if theirs is not None and task_of(theirs) == task:
            model = theirs
        elif theirs is not None:
            model = split_name(chosen.default_model)[0].prefix + split_name(theirs)[1]
        else:
            model = chosen.default_model
    if task_of(model) != task:
        names = " or ".join(repr(head.prefix) for head in HEADS.values() if head.task == task)
        raise TrainingError(
            f"{model} is for {task_of(model)}; for {task} its name begins with {names}"
        )
    return model, chosen

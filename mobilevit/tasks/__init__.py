"""Tasks: classification, detection and segmentation, each in a folder of its own."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mobilevit.data.options import DataOptions
    from mobilevit.tasks.base import Task

TASKS: dict[str, str] = {
    "classification": "mobilevit.tasks.classification.task",
    "detection": "mobilevit.tasks.detection.task",
    "segmentation": "mobilevit.tasks.segmentation.task",
}
"""Task names -> modules whose `TASK` is the task; imported on first use."""


def get_task(name: str) -> Task:
    """The task of a name, such as `model.config.task`.

    >>> get_task("detection").default_model
    'ssdlite_mobilevit_xs'
    """
    if name not in TASKS:
        raise ValueError(f"there is no task named {name!r}; known: {', '.join(TASKS)}")
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task


def check_data_options(data: DataOptions, task: Task) -> None:
    """Raise ValueError if a data option is set that means nothing to the task."""
    every = [get_task(name) for name in TASKS]
    limited = set().union(*(other.data_options for other in every))
    for field in dataclasses.fields(data):
        if field.name in limited - task.data_options and getattr(data, field.name) != field.default:
            known = [other.name for other in every if field.name in other.data_options]
            raise ValueError(f"data.{field.name} is for {' and '.join(known)}, not for {task.name}")

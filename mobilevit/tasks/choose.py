"""Which network to train, for which task, and whether the options are for that task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mobilevit.checkpoints.read import read
from mobilevit.data.options import DataOptions
from mobilevit.models.config import Task
from mobilevit.models.registry import HEADS, split_name, task_of
from mobilevit.tasks.base import Job
from mobilevit.tasks.classification.task import ClassificationJob
from mobilevit.training.errors import TrainingError


def job_for(
    task: Task | None,
    model: str | None,
    weights: str | None,
    jobs: Mapping[Task, Callable[[], Job]],
) -> tuple[str, Job]:
    """The network to train, and its task.

    Raises:
        TrainingError: the model is for another task.
    """
    theirs = read(weights).config.model if weights and not model else None
    if task is None:
        task = task_of(model or theirs or ClassificationJob.default_model)
    job = jobs[task]()
    if model is None:
        prefix = split_name(job.default_model)[0].prefix
        fits = theirs is not None and task_of(theirs) == task
        model = theirs if fits else prefix + split_name(theirs)[1] if theirs else job.default_model
    assert model is not None
    if task_of(model) != task:
        names = " or ".join(repr(head.prefix) for head in HEADS.values() if head.task == task)
        raise TrainingError(
            f"{model} is for {task_of(model)}; for {task} its name begins with {names}"
        )
    return model, job


def refuse_foreign(
    task: Task, data: DataOptions, options: Mapping[str, tuple[Task, object, object]]
) -> None:
    """See that no option is given that means nothing to the task.

    Raises:
        ValueError: there is one.
    """
    data.refuse_foreign(task)
    for name, (meant, given, usual) in options.items():
        if task != meant and given != usual:
            raise TrainingError(f"{name} is for {meant}, not for {task}")

"""One evaluation loop for all tasks."""

from collections.abc import Iterable
from itertools import chain
from statistics import median
from typing import Any

import torch

from mobilevit.data.loader import EvaluationLoader
from mobilevit.models.config import Preprocessing
from mobilevit.tasks import get_task
from mobilevit.tasks.base import (
    CAUSES,
    InferenceModel,
    InferenceOptions,
    Metric,
    Task,
    Timing,
    not_finite,
)
from mobilevit.tasks.dataset import EvaluationSet, ImageBatch
from mobilevit.utils.devices import now
from mobilevit.utils.distributed import Processes, gather_items


def evaluate_model(
    model: InferenceModel,
    samples: Any,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    options: InferenceOptions = InferenceOptions(),
    processes: Processes = Processes(),
) -> Any:
    """Evaluate a model on samples of its task, and return the task's `Metrics`.

    Args:
        model: a network for inference on `device`, or an exported file.
        samples: of `Task.evaluation_samples`; each counts once.
        preprocessing: of the images.
        batch_size: images at a time.
        workers: processes that decode.
        device: where to compute.
        options: how outputs are postprocessed.
        processes: this process among those that have joined; each evaluates its share.
    """
    task = get_task(model.config.task)
    loader = EvaluationLoader(
        EvaluationSet(samples, preprocessing),
        batch_size=min(batch_size, task.max_eval_batch_size or batch_size),
        workers=workers,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    metric = task.metric(samples, options, device=device)
    return evaluate_batches(task, model, loader, metric)


def evaluate_batches(
    task: Task, model: Any, batches: Iterable[list[ImageBatch]], metric: Metric[Any]
) -> Any:
    """Run a model on batches of an `EvaluationSet`, and return the task's `Metrics`."""
    times: list[tuple[float, float]] = []
    device = metric.device
    with torch.inference_mode():
        for batch in chain.from_iterable(batches):
            images = batch.images.to(device)
            start = now(device)
            outputs = model(images)
            computed = now(device)
            if wrong := not_finite(outputs):
                names = [metric.samples.name(batch.indices[row]) for row in wrong]
                raise ValueError(
                    f"the model's outputs are NaN or infinite for {', '.join(names)}: {CAUSES}"
                )
            predictions = task.postprocess(model, outputs, batch, metric.options)
            done = now(device)
            times.append(((computed - start) / len(images), (done - computed) / len(images)))
            metric.update(predictions, batch)
    times = gather_items(times)
    if not times:
        raise ValueError("there is nothing to evaluate: no images")
    network, postprocess = (1000 * median(column) for column in zip(*times, strict=True))
    return metric.compute(Timing(network, postprocess))

"""Predictions for a batch of images, whatever the task."""

from collections.abc import Sequence
from typing import Any

import torch

from mobilevit.data.sources import PreparedImage
from mobilevit.tasks import get_task
from mobilevit.tasks.base import CAUSES, InferenceModel, InferenceOptions, not_finite
from mobilevit.tasks.results import Prediction


def predict_batch(
    model: InferenceModel,
    batch: Sequence[PreparedImage | str],
    sources: Sequence[str],
    *,
    classes: tuple[str, ...],
    options: InferenceOptions,
    device: torch.device,
) -> list[Prediction]:
    """Predict a batch of preprocessed images, in inference mode.

    Args:
        model: a network for inference on `device`, or an exported file.
        batch: images, or the reasons why they cannot be read.
        sources: names of the images.
        classes: names in the order of the model's outputs.
        options: how outputs are postprocessed.
        device: where to compute.
    """
    task = get_task(model.config.task)
    found: dict[int, Prediction] = {}
    shapes: dict[torch.Size, list[tuple[int, PreparedImage]]] = {}
    for index, item in enumerate(batch):
        if isinstance(item, str):
            found[index] = task.prediction_type(source=sources[index], error=item)
        else:
            shapes.setdefault(item.tensor.shape, []).append((index, item))
    for shape, items in shapes.items():
        step = task.max_eval_batch_size or len(items)
        for first in range(0, len(items), step):
            part = items[first : first + step]
            images = torch.stack([item.tensor for _, item in part]).to(device)
            outputs = model(images)
            results: Sequence[Any] = task.postprocess(
                model,
                outputs,
                input_size=(shape[-2], shape[-1]),
                sizes=[item.size for _, item in part],
                options=options,
            )
            for (index, _), result in zip(part, results, strict=True):
                found[index] = task.prediction(sources[index], classes, result, options)
            for row in not_finite(outputs):
                error = f"the model's outputs for it are NaN or infinite: {CAUSES}"
                index, _ = part[row]
                found[index] = task.prediction_type(source=sources[index], error=error)
    return [found[index] for index in range(len(batch))]

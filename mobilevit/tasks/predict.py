"""Predictions for a batch of images, whatever the task."""

from collections.abc import Sequence

import torch

from mobilevit.data.sources import PreparedImage
from mobilevit.tasks import get_task
from mobilevit.tasks.base import CAUSES, InferenceModel, InferenceOptions, not_finite
from mobilevit.tasks.dataset import by_shape
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
    images: list[tuple[int, PreparedImage]] = []
    for index, item in enumerate(batch):
        if isinstance(item, str):
            found[index] = task.prediction_type(source=sources[index], error=item)
        else:
            images.append((index, item))
    for part in by_shape(images, task.max_eval_batch_size or len(batch)):
        outputs = model(part.images.to(device))
        results = task.postprocess(model, outputs, part, options)
        for index, result in zip(part.indices, results, strict=True):
            found[index] = task.prediction(sources[index], classes, result, options)
        for row in not_finite(outputs):
            index, error = (
                part.indices[row],
                f"the model's outputs for it are NaN or infinite: {CAUSES}",
            )
            found[index] = task.prediction_type(source=sources[index], error=error)
    return [found[index] for index in range(len(batch))]

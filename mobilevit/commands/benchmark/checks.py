"""Figures of `mobilevit benchmark` besides time: agreement, accuracy, costs around a network.

Each function returns fields of `Row`.
"""

import timeit
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit.commands.benchmark.models import Subject
from mobilevit.commands.benchmark.report import Row
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.spec import Precision
from mobilevit.exports.verify import TOLERANCES, within_bounds
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.dataset import ImageBatch

COMPARED = 8
"""Most images that outputs are compared on."""
REPEATS = 20
"""Most runs of the steps around a network."""
DEVIATIONS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2}
"""Bounds for raw outputs of new weights: root mean square in standard deviations."""


def input_images(subject: Subject, images: Sequence[Image.Image], batch: int) -> np.ndarray:
    """Images as a subject takes them, in full batches.

    Float32 `[N, 3, H, W]`, or uint8 `[N, H, W, 3]` for an end-to-end file.
    """
    preprocessing = subject.config.preprocessing  # to squares: all of one shape
    count = -(-min(len(images), COMPARED) // batch) * batch
    frames = [frame_image(images[index % len(images)], preprocessing) for index in range(count)]
    if subject.end_to_end:
        return np.stack([np.asarray(frame) for frame in frames])
    return torch.stack([image_to_tensor(frame, preprocessing) for frame in frames]).numpy()


def measure_agreement(
    row: Row, reference: Subject, images: np.ndarray, outputs: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Compare a row's outputs for all of `input_images` with those of the network."""
    precision, quantize = row.precision, row.quantize
    network: Any = reference.network
    task = get_task(reference.config.task).export
    preprocessing = reference.config.preprocessing
    tensors = (
        torch.from_numpy(images)
        if images.dtype == np.float32
        else torch.stack([image_to_tensor(Image.fromarray(one), preprocessing) for one in images])
    )
    found = [torch.from_numpy(part) for part in outputs]
    deviation = None
    with torch.inference_mode():
        if row.end_to_end:
            compared = task.compare(network, tensors, found, TOLERANCES[precision])
        else:
            compared = task.compare_raw(network, tensors, found)
            expected = network(tensors)
            expected = (expected,) if isinstance(expected, Tensor) else expected
            deviations = [
                (one - other).square().mean().sqrt() / one.std()
                for one, other in zip(expected, found, strict=True)
            ]
            deviation = float(torch.stack(deviations).max())
    if reference.is_new and deviation is not None:
        agrees = deviation <= (1 if quantize else DEVIATIONS[precision])
    else:
        agrees = within_bounds(compared, precision, quantized=quantize is not None)
    known = not reference.is_new
    return {
        "difference": compared.largest if known else None,
        "mean_difference": compared.mean if known else None,
        "deviation": deviation,
        "same": compared.agreement,
        "agrees": agrees,
    }


def measure_around(subject: Subject, image: Image.Image, runs: int) -> dict[str, Any]:
    """Time the steps around a network, on torch's number of threads."""
    preprocessing = subject.config.preprocessing
    frame = frame_image(image, preprocessing)
    tensor, count = image_to_tensor(frame, preprocessing), min(runs, REPEATS)
    times = {"resize_ms": _median_ms(lambda: frame_image(image, preprocessing), count)}
    if not subject.end_to_end:
        times["normalize_ms"] = _median_ms(lambda: image_to_tensor(frame, preprocessing), count)
    # New weights find more boxes than any trained detector would: their time means nothing.
    if subject.network and not (subject.is_new and subject.config.task == "detection"):
        task, network = get_task(subject.config.task), subject.network
        with torch.inference_mode():
            batch = ImageBatch(tensor[None], [(image.height, image.width)], [0])
            outputs = network(batch.images)
            times["postprocess_ms"] = _median_ms(
                lambda: task.postprocess(network, outputs, batch, InferenceOptions()), count
            )
    return times


def _median_ms(step: Callable[[], object], count: int) -> float:
    return 1e3 * median(timeit.repeat(step, number=1, repeat=count + 1)[1:])


def find_accuracy(
    subject: Subject, data: DataOptions | None, stated: float | None
) -> dict[str, Any]:
    """A subject's accuracy: measured on `data`, stated, or recorded in its configuration.

    A recorded one is only used at the size that it was measured at.
    """
    metric = get_task(subject.config.task).metric_key
    if data is not None and not subject.is_new:
        from mobilevit.commands.evaluate import evaluate  # its metrics take seconds to import

        model: Any = subject.network or subject.name
        figures: Any = evaluate(model, data=data, sizes=[subject.size]).by_size[subject.size]
        value, origin = getattr(figures, metric), f"measured on {data.root}"
    elif stated is not None:
        value, origin = stated, "stated"
    elif metric in subject.config.metrics and subject.size == subject.own_size:
        value, origin = subject.config.metrics[metric], "from the model's configuration"
    else:
        return {}
    return {"accuracy": value, "accuracy_metric": metric, "accuracy_origin": origin}

"""Figures of `mobilevit benchmark` besides time: agreement, accuracy, costs around a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit.commands.benchmark.models import Subject
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.spec import Precision, file_preprocessing
from mobilevit.exports.verify import MIN_AGREEMENT, TOLERANCES
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.utils.devices import use_threads

COMPARED = 8
"""Most images that outputs are compared on."""
REPEATS = 20
"""Most runs of the steps around a network."""
DEVIATIONS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2}
"""Bounds for raw outputs of new weights: root mean square in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a runtime's outputs are from those of the network in PyTorch."""

    images: int
    difference: float | None
    """Largest difference in probability, see `mobilevit.exports.verify.Verification`; None for new
    weights, whose probabilities mean nothing."""
    deviation: float | None
    """Of raw outputs: root mean square of the difference, in standard deviations of the output;
    None for an end-to-end file."""
    same: float
    """Fraction of images (pixels, anchors) with the same most probable class."""
    good: bool
    """Whether it is within bounds: those of `mobilevit export`, or for new weights `DEVIATIONS` (1
    if quantized)."""


def input_images(subject: Subject, images: Sequence[Image.Image], batch: int) -> np.ndarray:
    """Images as a subject takes them, in full batches.

    Float32 `[N, 3, H, W]`, or uint8 `[N, H, W, 3]` for an end-to-end file.
    """
    rule = file_preprocessing(
        subject.config.preprocessing.at(subject.size), None
    )  # all of one shape
    count = -(-min(len(images), COMPARED) // batch) * batch
    frames = [frame_image(images[index % len(images)], rule) for index in range(count)]
    if subject.end_to_end:
        return np.stack([np.asarray(frame) for frame in frames])
    return torch.stack([image_to_tensor(frame, rule) for frame in frames]).numpy()


def measure_agreement(
    reference: Subject,
    images: np.ndarray,
    outputs: Sequence[np.ndarray],
    *,
    raw: bool,
    precision: Precision,
    quantize: str | None,
) -> Agreement:
    """Compare a runtime's outputs with the network's.

    Args:
        reference: the network.
        images: see `input_images`.
        outputs: for all of them.
        raw: whether they are logits rather than predictions.
        precision: selects the bound.
        quantize: if not None, the share of equal classes is compared instead.
    """
    network: Any = reference.network
    task = get_task(reference.config.task).export
    rule = reference.config.preprocessing
    tensors = (
        torch.from_numpy(images)
        if images.dtype == np.float32
        else torch.stack([image_to_tensor(Image.fromarray(one), rule) for one in images])
    )
    found = [torch.from_numpy(part) for part in outputs]
    deviation = None
    with torch.inference_mode():
        if not raw:
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
    difference, same = float(compared.difference), float(compared.agreement)
    if reference.is_new and deviation is not None:
        good = deviation <= (1 if quantize else DEVIATIONS[precision])
    elif quantize:
        good = reference.is_new or same >= MIN_AGREEMENT
    else:
        good = difference <= TOLERANCES[precision]
    return Agreement(
        images=len(images),
        difference=None if reference.is_new else difference,
        deviation=deviation,
        same=same,
        good=good,
    )


@dataclass(frozen=True, kw_only=True)
class Around:
    """The cost of one image before and after the network, on one thread, in milliseconds."""

    model: str
    size: int
    image: str
    """Its height and width in pixels."""
    frame_ms: float
    """Resizing and cropping the decoded image, by Pillow."""
    values_ms: float | None
    """From its pixels to the network's tensor; None if that is part of the file."""
    after_ms: float | None
    """From the network's outputs to the prediction, in PyTorch: probabilities, boxes after
    suppression, or the mask at the image's size. None if that is part of the file, and for a
    detector with new weights."""


def measure_around(subject: Subject, image: Image.Image, runs: int) -> Around:
    """Time the steps around a network."""
    rule = file_preprocessing(subject.config.preprocessing.at(subject.size), None)
    frame = frame_image(image, rule)
    tensor = image_to_tensor(frame, rule)
    after = None
    # New weights find more boxes than any trained detector would: their time means nothing.
    if subject.network and not (subject.is_new and subject.config.task == "detection"):
        after = _postprocessing(subject, tensor[None], (image.height, image.width))
    values = None if subject.end_to_end else lambda: image_to_tensor(frame, rule)
    count = min(runs, REPEATS)
    with use_threads(1), torch.inference_mode():
        return Around(
            model=subject.name,
            size=subject.size,
            image=f"{image.height} x {image.width}",
            frame_ms=_median_ms(lambda: frame_image(image, rule), count),
            values_ms=None if values is None else _median_ms(values, count),
            after_ms=None if after is None else _median_ms(after, count),
        )


def _postprocessing(
    subject: Subject, images: Tensor, size: tuple[int, int]
) -> Callable[[], object]:
    task, network = get_task(subject.config.task), subject.network
    assert network is not None
    input_size = (images.shape[-2], images.shape[-1])
    with torch.inference_mode():
        outputs = network(images)
    return lambda: task.postprocess(
        network, outputs, input_size=input_size, sizes=[size], options=InferenceOptions()
    )


def _median_ms(step: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count + 1):
        begun = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begun))
    return median(times[1:])


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The accuracy of a network."""

    metric: str
    """`top1`, `ap` or `miou`."""
    value: float
    """In [0, 1]."""
    origin: str


def find_accuracy(
    subject: Subject, data: DataOptions | None, stated: float | None
) -> Accuracy | None:
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
        return None
    return Accuracy(metric=metric, value=value, origin=origin)

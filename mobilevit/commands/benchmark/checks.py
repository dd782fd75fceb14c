"""What `mobilevit benchmark` says beside times of networks: agreement, what is around, accuracy."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mobilevit.commands.benchmark.models import AnySubject, FileSubject, Subject
from mobilevit.data.options import DataOptions
from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.spec import Precision, file_preprocessing
from mobilevit.exports.verify import MIN_AGREEMENT, TOLERANCES
from mobilevit.models.config import TaskName
from mobilevit.models.segmentation import Segmenter
from mobilevit.models.ssdlite import RawDetections, SSDLite
from mobilevit.tasks.detection.loss_and_postprocess import detections
from mobilevit.tasks.export import export_of
from mobilevit.tasks.segmentation.loss_and_postprocess import full_size
from mobilevit.utils.devices import use_threads

COMPARED = 8
"""So many photos are compared on, at most."""
REPEATS = 20
"""How often what is around a network is run, at most."""
DEVIATIONS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2}
"""So far may raw outputs of new weights be off, root mean square in standard deviations."""
METRICS: dict[TaskName, str] = {"classification": "top1", "detection": "ap", "segmentation": "miou"}
"""The figure of `ModelConfig.metrics` that stands for a network's accuracy."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far one runtime's answers are from those of the network in PyTorch, as it was trained."""

    images: int
    difference: float | None
    """The largest in probability; see `mobilevit.exports.verify.Verification`. None for new
    weights, whose probabilities mean nothing."""
    deviation: float | None
    """Of raw outputs: the root mean square of the difference, in standard deviations of the output.
    None for a file that gives answers."""
    same: float
    """Share of images (pixels, anchors) with the same likeliest class."""
    good: bool
    """Whether it is within the bound: that of `mobilevit export`, or for new weights `DEVIATIONS`,
    and a whole deviation where they are quantised."""


def images_for(subject: AnySubject, photos: Sequence[Image.Image], batch: int) -> np.ndarray:
    """Photos as a subject takes them, in whole batches.

    Returns:
        Float32 `[N, 3, H, W]`, or uint8 `[N, H, W, 3]` for a file that takes pixels.
    """
    rule = file_preprocessing(subject.config.preprocessing.at(subject.size), None)  # all squares
    count = -(-min(len(photos), COMPARED) // batch) * batch
    frames = [frame_image(photos[index % len(photos)], rule) for index in range(count)]
    if isinstance(subject, FileSubject) and not subject.metadata.raw:
        return np.stack([np.asarray(frame) for frame in frames])
    return torch.stack([image_to_tensor(frame, rule) for frame in frames]).numpy()


def agreement(
    reference: Subject,
    images: np.ndarray,
    said: Sequence[np.ndarray],
    *,
    raw: bool,
    precision: Precision,
    quantize: str | None,
) -> Agreement:
    """Compare a runtime's outputs with the network's.

    Args:
        reference: whose network it is.
        images: see `images_for`.
        said: outputs for all of them.
        raw: whether they are raw outputs.
        precision: which bound holds.
        quantize: whether the share of same answers decides.
    """
    network: Any = reference.network
    rule = reference.config.preprocessing
    tensors = (
        torch.from_numpy(images)
        if images.dtype == np.float32
        else torch.stack([image_to_tensor(Image.fromarray(one), rule) for one in images])
    )
    answers = [torch.from_numpy(part) for part in said]
    bound = TOLERANCES[precision]
    task = export_of(reference.config.task)
    deviation = None
    with torch.inference_mode():
        found = (
            task.compare_raw(network, tensors, answers)
            if raw
            else task.compare(network, tensors, answers, bound)
        )
        if raw:
            expected = _parts(network(tensors))
            apart = [
                (one - other).square().mean().sqrt() / one.std()
                for one, other in zip(expected, answers, strict=True)
            ]
            deviation = float(torch.stack(apart).max())
    difference, same = float(found.difference), float(found.agreement)
    if quantize and reference.new:
        good = deviation is None or deviation < 1
    elif quantize:
        good = same >= MIN_AGREEMENT
    elif reference.new and deviation is not None:
        good = deviation <= DEVIATIONS[precision]
    else:
        good = difference <= bound
    return Agreement(
        images=len(images),
        difference=None if reference.new else difference,
        deviation=deviation,
        same=same,
        good=good,
    )


def _parts(said: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (said,) if isinstance(said, Tensor) else tuple(said)


@dataclass(frozen=True, kw_only=True)
class Around:
    """What one image takes before and after the network, on one thread, in milliseconds."""

    model: str
    size: int
    photo: str
    """Height and width of the photo in pixels."""
    frame_ms: float
    """Resizing and cropping the decoded photo, by Pillow."""
    values_ms: float | None
    """From its pixels to the network's tensor; None where that happens inside the file."""
    after_ms: float | None
    """From the network's outputs to the answer, by PyTorch: the five likeliest classes, boxes after
    suppression, or the mask at the photo's size. None where that happens inside the file, or new
    weights would give boxes of no meaning."""


def around(subject: AnySubject, photo: Image.Image, runs: int) -> Around:
    """Time what is around a network."""
    rule = file_preprocessing(subject.config.preprocessing.at(subject.size), None)
    frame = frame_image(photo, rule)
    whole = isinstance(subject, FileSubject) and not subject.metadata.raw
    after = None
    if isinstance(subject, Subject) and not (subject.new and _detects(subject)):
        after = _after(subject, image_to_tensor(frame, rule)[None], photo)
    count = min(runs, REPEATS)
    with use_threads(1), torch.inference_mode():
        return Around(
            model=subject.name,
            size=subject.size,
            photo=f"{photo.height} x {photo.width}",
            frame_ms=_median_ms(lambda: frame_image(photo, rule), count),
            values_ms=None if whole else _median_ms(lambda: image_to_tensor(frame, rule), count),
            after_ms=None if after is None else _median_ms(after, count),
        )


def _detects(subject: Subject) -> bool:
    return isinstance(subject.network, SSDLite)


def _after(subject: Subject, images: Tensor, photo: Image.Image) -> Callable[[], object]:
    """What makes an answer of a network's outputs."""
    network = subject.network
    with torch.inference_mode():
        said = _parts(network(images))
    if isinstance(network, SSDLite):
        anchors, raw = network.anchors(*images.shape[-2:]), RawDetections(said[0], said[1])
        return lambda: detections(raw, anchors, [(photo.height, photo.width)])
    if subject.config.task == "segmentation":
        align = network.align_corners if isinstance(network, Segmenter) else False
        return lambda: full_size(said[0][0], photo.height, photo.width, align_corners=align)
    return lambda: said[0].softmax(-1).topk(min(5, said[0].shape[-1]))


def _median_ms(step: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count + 1):
        begun = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begun))
    return median(times[1:])


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How good a network is."""

    metric: str
    """`top1`, `ap` or `miou`."""
    value: float
    """A share."""
    origin: str
    """Who says so."""


def accuracy(
    subject: AnySubject, data: DataOptions | None, stated: float | None
) -> Accuracy | None:
    """What is known of a subject's accuracy: measured on `data`, stated, or in its configuration.

    The latter counts only at the size that it was measured at.

    Raises:
        DataError, ValueError: see `evaluate`.
    """
    metric = METRICS[subject.config.task]
    if data is not None and not (isinstance(subject, Subject) and subject.new):
        from mobilevit.commands.evaluate import evaluate  # its metrics take seconds to import

        model: Any = subject.network if isinstance(subject, Subject) else subject.name
        figures: Any = evaluate(model, data=data, sizes=[subject.size]).by_size[subject.size]
        return Accuracy(
            metric=metric, value=getattr(figures, metric), origin=f"measured on {data.root}"
        )
    if stated is not None:
        return Accuracy(metric=metric, value=stated, origin="stated")
    known = subject.config.metrics.get(metric)
    if known is None or subject.size != subject.own_size:
        return None
    return Accuracy(metric=metric, value=known, origin="from the model's own record")


def macs(subject: Subject) -> int:
    """Multiply-accumulates for one image, as `mobilevit models` counts them."""
    network = copy.deepcopy(subject.network).to("meta").requires_grad_(False)
    # On meta tensors attention is the two products that it is; nothing is computed.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, subject.size, subject.size, device="meta"))
    return counter.get_total_flops() // 2

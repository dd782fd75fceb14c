"""Verification of an exported file: its runtime and PyTorch run the same images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.backends.base import Runner
from mobilevit.exports.spec import ExportError, FileMetadata, Precision
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.tasks import get_task
from mobilevit.tasks.export import Comparison

TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2}
"""On differences in probability, and in corners of boxes as shares of the image's sides."""

MIN_AGREEMENT = 0.9
"""Default for quantized files: share of images (pixels, anchors) with PyTorch's prediction."""

MAX_MEAN_DIFFERENCE = 0.1
"""Default for quantized files: mean difference in probability over images (pixels, boxes)."""

SIZES = ((256, 256), (224, 224), (192, 320))
"""(height, width) at which a file of dynamic size is run."""

MIN_BATCH = 3
"""Fewest images at once for a file of dynamic batch."""

MAX_BATCH = 8
"""Most images at once for such a file, since the logits of both are in memory."""


class DisagreementError(ExportError):
    """A file's predictions differ from PyTorch's."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far a file is from PyTorch on a set of images."""

    images: int
    """Each size and each mirrored image counts."""
    difference: float
    """The largest in probability, of an image. Of a mask: how much less probable PyTorch holds the
    file's class of a pixel than its own. Of boxes: the largest in score and corners (shares of the
    image's sides), or the score of a missing box."""
    mean_difference: float
    """The mean over all images (pixels, boxes, in raw detection anchors)."""
    agreement: float
    """Share of images with the same most probable class (or class of the most probable box); in
    segmentation the share of pixels, in raw detection that of anchors."""
    tolerance: float | None
    """On the difference; None for a quantized file."""
    max_mean_difference: float | None = None
    """Of a quantized file; None if it is evaluated on labelled images instead."""
    min_agreement: float | None = None
    """As `max_mean_difference`."""

    def __str__(self) -> str:
        tolerance = "" if self.tolerance is None else f" (tolerance {self.tolerance:g})"
        bound = self.max_mean_difference
        most = "" if bound is None else f" (maximum {bound:g})"
        least = "" if self.min_agreement is None else f" (minimum {self.min_agreement:.0%})"
        return (
            f"{self.images} images: largest difference {self.difference:.2g}{tolerance}, mean "
            f"{self.mean_difference:.2g}{most}, same prediction in {self.agreement:.2%}{least}"
        )


def within_bounds(
    compared: Comparison,
    precision: Precision,
    *,
    quantized: bool,
    min_agreement: float | None = MIN_AGREEMENT,
    max_mean_difference: float | None = MAX_MEAN_DIFFERENCE,
) -> bool:
    """Whether a file agrees with PyTorch; the last two, None for any, are for quantized files."""
    if not quantized:
        return compared.largest <= TOLERANCES[precision]
    # In this order, NaN is not within a bound.
    close = max_mean_difference is None or compared.mean <= max_mean_difference
    return close and compared.agreement >= (min_agreement or 0)


def verify(
    run: Runner,
    model: Network,
    images: Sequence[Image.Image],
    *,
    name: str | Path,
    min_agreement: float | None = MIN_AGREEMENT,
    max_mean_difference: float | None = MAX_MEAN_DIFFERENCE,
) -> Verification:
    """Compare an exported file with the network that it was made from.

    A file of dynamic batch runs at least three images at once, one of dynamic size runs each image
    at several sizes.

    Args:
        run: the file, opened in its runtime.
        model: the network.
        images: RGB images of any size.
        name: of the file, for messages.
        min_agreement: least share of equal predictions of a quantized file; None for any.
        max_mean_difference: largest mean difference of a quantized file; None for any.

    Raises:
        DisagreementError: the difference is above 1e-3 (fp32) or 1e-2 (fp16), or a quantized file
            is not within `min_agreement` and `max_mean_difference`.
        ExportError: no images.
    """
    if not images:
        raise ExportError("a file cannot be verified without images")
    metadata = run.metadata
    task, fused = get_task(metadata.config.task).export, fuse(model)
    tolerance = TOLERANCES[metadata.precision]
    comparisons, count = [], 0
    with torch.inference_mode():
        for frames in _batches(images, metadata):
            values = [image_to_tensor(frame, model.config.preprocessing) for frame in frames]
            tensors, raw = torch.stack(values), metadata.raw
            batch = tensors.numpy() if raw else np.stack([np.asarray(frame) for frame in frames])
            outputs = [torch.from_numpy(part) for part in run(batch)]
            comparisons.append(
                task.compare_raw(fused, tensors, outputs)
                if raw
                else task.compare(fused, tensors, outputs, tolerance)
            )
            count += len(frames)
    compared, quantized = Comparison.join(comparisons), metadata.quantize is not None
    result = Verification(
        images=count,
        difference=compared.largest,
        mean_difference=compared.mean,
        agreement=compared.agreement,
        tolerance=None if quantized else tolerance,
        max_mean_difference=max_mean_difference if quantized else None,
        min_agreement=min_agreement if quantized else None,
    )
    if not within_bounds(
        compared,
        metadata.precision,
        quantized=quantized,
        min_agreement=min_agreement,
        max_mean_difference=max_mean_difference,
    ):
        raise DisagreementError(f"{name} does not agree with PyTorch: {result}")
    return result


def _batches(images: Sequence[Image.Image], metadata: FileMetadata) -> Iterator[list[Image.Image]]:
    """Resize and crop the images, and yield them in batches that the file takes."""
    if metadata.dynamic == "size":
        for image in images:
            yield from ([image.resize((width, height))] for height, width in SIZES)
        return
    frames = [frame_image(image, metadata.config.preprocessing) for image in images]
    if metadata.dynamic is None:
        yield from ([frame] for frame in frames)
        return
    flips = Image.Transpose
    for flip in (flips.FLIP_LEFT_RIGHT, flips.FLIP_TOP_BOTTOM):
        if len(frames) < MIN_BATCH:
            frames += [frame.transpose(flip) for frame in frames]
    for first in range(0, len(frames), MAX_BATCH):
        yield frames[first : first + MAX_BATCH]

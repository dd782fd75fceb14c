"""Semantic segmentation: what a network learns from, what its outputs mean, how it is evaluated."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.models.config import ModelConfig
from mobilevit.models.segmentation import SegmentationLogits
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.tasks.segmentation.transforms import by_shape
from mobilevit.utils.clock import now
from mobilevit.utils.distributed import gather_items

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassConfusionMatrix

AT_ONCE = 2
"""Images in a batch of evaluating: masks and logits are as large as photos are."""
AUX_WEIGHT = 0.4
"""Of the auxiliary head's loss beside the other's, as in the authors' later code."""
CLASSES_AT_ONCE = 8
"""So many classes' logits are stretched to an image's size at a time."""


def segmentation_loss(said: Tensor | SegmentationLogits, masks: Tensor, *, ignore: int) -> Tensor:
    """Cross-entropy, the mean over all pixels that have a class; 0 where none has.

    Args:
        said: logits `[B, K, H, W]`, or with those of an auxiliary head, which count `AUX_WEIGHT`.
        masks: classes `[B, H, W]`.
        ignore: the value in `masks` of pixels without a class.
    """
    if isinstance(said, SegmentationLogits):
        main, aux = (segmentation_loss(one, masks, ignore=ignore) for one in said)
        return main + AUX_WEIGHT * aux
    total = F.cross_entropy(said.float(), masks, ignore_index=ignore, reduction="sum")
    return total / (masks != ignore).sum().clamp(min=1)


class Segmenting(Protocol):
    """A `Segmenter`, or what answers in its place."""

    align_corners: bool

    @property
    def config(self) -> ModelConfig | None:
        """None for a network that `create_model` did not make."""

    def __call__(self, images: Tensor, /) -> Tensor:
        """Prepared images `[B, 3, h, w]` -> logits `[B, K, h, w]`, or classes `[B, h, w]`."""


def stretched_by(model: Segmenting) -> bool | None:
    """How a network's answer gets an image's size: `align_corners` of `full_size`."""
    squashed = model.config is not None and model.config.preprocessing.resize_mode == "stretch"
    return None if squashed else model.align_corners


def full_size(said: Tensor, height: int, width: int, *, align_corners: bool | None) -> Tensor:
    """The likeliest class of each pixel of an image, uint8 (or int16 where there are many).

    Logits are stretched, then compared, a few classes at a time: a photo of 12 megapixels would
    need gigabytes for the logits of all.

    Args:
        said: logits `[K, h, w]`; or classes `[h, w]`, uint8 or int32, of which the nearest count.
        height: of the image.
        width: of the image.
        align_corners: of the bilinear stretching; None takes the nearest logits, as the authors'
            code of 2021 did.
    """
    if said.ndim == 2:
        classes = said[None, None].float()
        if said.shape != (height, width):
            classes = F.interpolate(classes, (height, width), mode="nearest")
        return classes[0, 0].to(torch.uint8 if said.dtype == torch.uint8 else torch.int16)
    best = best_class = None
    for first in range(0, len(said), CLASSES_AT_ONCE):
        some = said[None, first : first + CLASSES_AT_ONCE].float()
        if some.shape[-2:] != (height, width):
            mode = "nearest" if align_corners is None else "bilinear"
            some = F.interpolate(some, (height, width), mode=mode, align_corners=align_corners)
        value, place = some[0].max(dim=0)
        if best is None or best_class is None:
            best, best_class = value, place
        else:
            higher = value > best
            best = torch.where(higher, value, best)
            best_class = torch.where(higher, place + first, best_class)
    assert best_class is not None
    return best_class.to(torch.uint8 if len(said) <= 256 else torch.int16)


def segmented(model: Segmenting, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Segment a batch of prepared images.

    Args:
        model: in evaluation mode; or what answers in a network's place.
        images: `[B, 3, h, w]`, prepared.
        sizes: (height, width) of the images that these were made of.

    Returns:
        For each the class of every pixel, `[height, width]`.
    """
    align = stretched_by(model)
    return [
        full_size(one, *size, align_corners=align)
        for one, size in zip(model(images), sizes, strict=True)
    ]


class ClassIoU(NamedTuple):
    """How good a network is on one class; NaN where there is nothing to count."""

    name: str
    pixels: int
    """Of this class in the masks."""
    iou: float
    """Intersection over union."""
    accuracy: float
    """Share of the class's pixels that are right."""


class SegmentedImage(NamedTuple):
    """One image, and what was seen in it."""

    sample: int
    """Its place in the samples."""
    classes: np.ndarray
    """`[H, W]`, at the image's own size."""
    miou: float
    """Over the classes that are in it or were seen in it."""


@dataclass(frozen=True, kw_only=True)
class SegmentationMetrics:
    """How good a network is over all pixels of a set of images, each counted once."""

    classes: tuple[str, ...]
    images: int
    pixels: int
    """That have a class."""
    miou: float
    """Mean intersection over union, over classes that are in the masks or were seen."""
    pixel_accuracy: float
    """Share of pixels that are right."""
    boundary_miou: float
    """The same as `miou` over pixels near true boundaries alone; NaN where not asked for."""
    confusion: Tensor
    """Counts `[K, K]`: row the class, column what was seen."""
    worst: tuple[SegmentedImage, ...]
    """Images with the least mIoU, worst first."""
    some: tuple[SegmentedImage, ...]
    """Images from all over the set, not chosen for how they went."""
    network_ms: float
    """Median time of the network for an image."""
    after_ms: float
    """Median time of stretching to the image's size and comparing."""

    def per_class(self) -> list[ClassIoU]:
        """The figures of each class."""
        iou, accuracy = class_figures(self.confusion)
        pixels = self.confusion.sum(1).long().tolist()
        rows = zip(self.classes, pixels, iou.tolist(), accuracy.tolist(), strict=True)
        return [ClassIoU(*row) for row in rows]


def class_figures(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and accuracy of each class `[K]`, NaN where there is no pixel."""
    counts = confusion.double()
    hits, true, seen = counts.diag(), counts.sum(1), counts.sum(0)
    return hits / (true + seen - hits), hits / true


def mean_iou(confusion: Tensor) -> float:
    """Mean over classes that are in the masks or were seen; NaN where there is no pixel."""
    return float(class_figures(confusion)[0].nanmean())


def confusion_of(num_classes: int, ignore: int) -> MulticlassConfusionMatrix:
    """A streaming confusion matrix: memory does not grow with images."""
    # Here, because torchmetrics takes seconds to import, and using a network needs none of it.
    from torchmetrics.classification import MulticlassConfusionMatrix

    return MulticlassConfusionMatrix(num_classes, ignore_index=ignore, validate_args=False)


def near_boundaries(mask: Tensor, width: int) -> Tensor:
    """Which pixels of a mask `[H, W]` have one of another value within `width` pixels, bool."""
    x = mask[None, None].float()
    side = 2 * width + 1
    highest = F.max_pool2d(x, side, stride=1, padding=width)
    lowest = -F.max_pool2d(-x, side, stride=1, padding=width)
    return (highest != lowest)[0, 0]


def evaluate_segmenter(
    model: Segmenting,
    batches: Iterable[list[tuple[Tensor, Tensor, int]]],
    samples: MaskSamples,
    *,
    device: torch.device | str = "cpu",
    boundary: int = 0,
    worst: int = 16,
    shown: int = 8,
) -> SegmentationMetrics:
    """Evaluate a network on images at their own size.

    Args:
        model: in evaluation mode on `device`; or what answers in a network's place.
        batches: lists of (image `[3, h, w]`, mask `[H, W]`, the sample's index).
        samples: their classes and which value is ignored.
        device: where the images go.
        boundary: evaluate pixels within so many of true boundaries apart; 0: do not.
        worst: how many of the worst images to keep.
        shown: how many others to keep.

    Raises:
        ValueError: there are no images.
    """
    count, ignore = len(samples.classes), samples.ignore
    confusion = confusion_of(count, ignore).to(device)
    at_boundaries = confusion_of(count, ignore).to(device)
    network_times: list[float] = []
    after_times: list[float] = []
    heap: list[tuple[float, int, SegmentedImage]] = []
    some: list[SegmentedImage] = []
    step, num_images = max(1, len(samples) // shown), 0
    align = stretched_by(model)
    with torch.inference_mode():
        for batch in batches:
            for images, masks, indices in by_shape(batch):
                on_device = images.to(device)
                begun = now(device)
                said = model(on_device)
                network_times.append((now(device) - begun) / len(images))
                for one, mask, index in zip(said, masks, indices, strict=True):
                    begun = now(device)
                    seen = full_size(one, *mask.shape, align_corners=align)
                    after_times.append(now(device) - begun)
                    true = mask.to(device).long()
                    own = confusion_of(count, ignore).to(device)
                    own.sync_on_compute = False  # of this image alone
                    own.update(seen.long(), true)
                    counts = own.compute()
                    confusion.confmat += counts
                    if boundary:
                        near = near_boundaries(true, boundary)
                        at_boundaries.update(seen.long()[near], true[near])
                    image = SegmentedImage(index, seen.cpu().numpy(), mean_iou(counts))
                    if index % step == 0 and len(some) < shown:
                        some.append(image)
                    num_images += 1
                    if image.miou == image.miou:  # with any pixel that has a class
                        heapq.heappush(heap, (-image.miou, -index, image))
                        if len(heap) > worst:
                            heapq.heappop(heap)
    num_images = sum(gather_items([num_images]))
    if not num_images:
        raise ValueError("there is nothing to evaluate: no images")
    counts, at_edges = (
        torch.stack(gather_items([one.confmat.cpu()])).sum(0) for one in (confusion, at_boundaries)
    )
    some = sorted(gather_items(some), key=lambda image: image.sample)[:shown]
    heap = sorted(gather_items(heap), key=_worst_first)[:worst]
    network_times, after_times = gather_items(network_times), gather_items(after_times)
    return SegmentationMetrics(
        classes=samples.classes,
        images=num_images,
        pixels=int(counts.sum()),
        miou=mean_iou(counts),
        pixel_accuracy=float(counts.diag().sum() / counts.sum()),
        boundary_miou=mean_iou(at_edges) if boundary else float("nan"),
        confusion=counts,
        worst=tuple(image for _, _, image in heap),
        some=tuple(some),
        network_ms=1000 * float(np.median(network_times)),
        after_ms=1000 * float(np.median(after_times)),
    )


def _worst_first(entry: tuple[float, int, Any]) -> tuple[float, int]:
    return -entry[0], -entry[1]

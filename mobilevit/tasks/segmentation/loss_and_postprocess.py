"""Segmentation: the loss, and masks from a network's outputs."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevit.models.segmentation import SegmentationLogits

MAX_BATCH = 2
"""Images in an evaluation batch: masks and logits are as large as photos."""
AUX_WEIGHT = 0.4
"""Weight of the auxiliary head's loss, as in the authors' later code."""
CLASSES_AT_ONCE = 8
"""So many classes' logits are resized to an image's size at a time."""


def segmentation_loss(output: Tensor | SegmentationLogits, masks: Tensor, *, ignore: int) -> Tensor:
    """Cross-entropy, averaged over all pixels that have a class; 0 where none has.

    Args:
        output: logits `[B, K, H, W]`, or with those of an auxiliary head, weighted by `AUX_WEIGHT`.
        masks: classes `[B, H, W]`.
        ignore: the value in `masks` of pixels without a class.
    """
    if isinstance(output, SegmentationLogits):
        main, aux = (segmentation_loss(one, masks, ignore=ignore) for one in output)
        return main + AUX_WEIGHT * aux
    total = F.cross_entropy(output.float(), masks, ignore_index=ignore, reduction="sum")
    return total / (masks != ignore).sum().clamp(min=1)


def full_size(output: Tensor, height: int, width: int, *, align_corners: bool | None) -> Tensor:
    """The most probable class of each pixel of an image, uint8 (int16 for many classes).

    Logits are resized and compared a few classes at a time: those of all classes of a photo of 12
    megapixels would take gigabytes.

    Args:
        output: logits `[K, h, w]`; or classes `[h, w]`, uint8 or int32; the nearest is taken.
        height: of the image.
        width: of the image.
        align_corners: of bilinear resizing; None takes the nearest logits, as the authors' code of
            2021 did.
    """
    if output.ndim == 2:
        classes = output[None, None].float()
        if output.shape != (height, width):
            classes = F.interpolate(classes, (height, width), mode="nearest")
        return classes[0, 0].to(torch.uint8 if output.dtype == torch.uint8 else torch.int16)
    best = output.new_full((height, width), -math.inf, dtype=torch.float32)
    best_class = torch.zeros_like(best, dtype=torch.int64)
    for first in range(0, len(output), CLASSES_AT_ONCE):
        logits = output[None, first : first + CLASSES_AT_ONCE].float()
        if logits.shape[-2:] != (height, width):
            mode = "nearest" if align_corners is None else "bilinear"
            logits = F.interpolate(logits, (height, width), mode=mode, align_corners=align_corners)
        value, place = logits[0].max(dim=0)
        higher = value > best
        best = torch.where(higher, value, best)
        best_class = torch.where(higher, place + first, best_class)
    return best_class.to(torch.uint8 if len(output) <= 256 else torch.int16)

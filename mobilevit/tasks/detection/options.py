"""The training options of detection."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobilevit.tasks.detection.loss_and_postprocess import DetectionLossOptions
from mobilevit.tasks.detection.transforms import BoxAugmentOptions


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """How a detector is trained."""

    boxes: BoxAugmentOptions = field(default_factory=BoxAugmentOptions)
    """Augmentation of images and boxes."""
    detection: DetectionLossOptions = field(default_factory=DetectionLossOptions)
    """The loss."""

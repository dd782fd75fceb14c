"""The training options of detection."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobilevit.tasks.detection.loss import DetectionLossOptions
from mobilevit.tasks.detection.transforms import BoxAugmentOptions
from mobilevit.utils.options import Options


@dataclass(frozen=True, kw_only=True)
class DetectionOptions(Options, name="detection"):
    """How a detector is trained."""

    augment: BoxAugmentOptions = field(default_factory=BoxAugmentOptions)
    """Augmentation of images and boxes."""
    loss: DetectionLossOptions = field(default_factory=DetectionLossOptions)
    """The loss."""

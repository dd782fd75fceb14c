"""The training options of segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobilevit.tasks.segmentation.transforms import SegmentationAugment


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """How a network for segmentation is trained."""

    masks: SegmentationAugment = field(default_factory=SegmentationAugment)
    """Augmentation of images and masks."""

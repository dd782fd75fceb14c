"""The training options of segmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from mobilevit.tasks.segmentation.transforms import SegmentationAugment
from mobilevit.utils.options import Options


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(Options, name="segmentation"):
    """How a segmentation network is trained."""

    augment: SegmentationAugment = field(default_factory=SegmentationAugment)
    """Augmentation of images and masks."""

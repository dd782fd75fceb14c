"""The training options of classification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from mobilevit.tasks.classification.distill import DistillOptions
from mobilevit.tasks.classification.transforms import AugmentOptions
from mobilevit.utils.options import Interval, Options


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(Options, name="classification"):
    """How a classifier is trained."""

    augment: AugmentOptions = field(default_factory=AugmentOptions)
    """Augmentation of the images."""
    label_smoothing: Annotated[float, Interval(0, 1)] = 0.1
    """Share of the target that is spread over all classes."""
    distill: DistillOptions = field(default_factory=DistillOptions)
    """A teacher to learn from."""

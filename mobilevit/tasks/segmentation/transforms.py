"""Training transforms and the training set of images with masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data.formats.base import IGNORE
from mobilevit.data.preprocessing import image_to_tensor
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import MAX_ASPECT_RATIO, Preprocessing
from mobilevit.tasks.dataset import TrainingSet
from mobilevit.utils.options import Interval, Options, Positive, Share
from mobilevit.utils.random import seeded

TRIES = 10
"""Crops drawn at most to find one in which no class exceeds `crop_max_share`."""

_NEAREST = v2.InterpolationMode.NEAREST


@dataclass(frozen=True, kw_only=True)
class SegmentationAugment(Options, name="segmentation.augment"):
    """Augmentation of training images and their masks.

    The paper has random sizes, crops of 512 x 512 pixels and flips, and nothing else.
    """

    scale: tuple[Positive, Positive] = (0.5, 2.0)
    """Smallest and largest short side before the crop, relative to the crop's."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    rotate: Annotated[float, Interval(0, 180, "[]")] = 0.0
    """Largest rotation in degrees, either way (the authors' later recipe: 10)."""
    photometric: Share = 0.5
    """Probability of each change: of brightness, contrast, saturation and hue."""
    blur: Share = 0.0
    """Probability of a Gaussian blur (the authors' later recipe: 0.5)."""
    crop_max_share: Annotated[float, Interval(0, 1, "(]")] = 1.0
    """Largest share of a crop's labelled pixels that one class should have (the authors' later
    recipe: 0.75); if ten crops have more, the last is taken."""


class SegmentationTransform:
    """Random size, rotation, crop, flip and colours of an image and its mask."""

    def __init__(self, options: SegmentationAugment, preprocessing: Preprocessing) -> None:
        self.options, self.preprocessing = options, preprocessing
        self.interpolation = v2.InterpolationMode(preprocessing.interpolation)
        strengths = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
        self.colours = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(**{name: strength})], options.photometric)
                for name, strength in strengths.items()
            ]
            + [v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], options.blur)]
        )

    def decoded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that resizing does not exceed: the largest scale of the crop's short side."""
        short = math.ceil(self.options.scale[1] * min(height, width))
        return short, short

    def __call__(
        self, image: Image.Image, mask: np.ndarray, height: int, width: int, *, ignore: int = IGNORE
    ) -> tuple[Tensor, Tensor]:
        """Transform an RGB image, which may have been decoded smaller, and its mask `[H, W]`.

        `ignore` is the mask's value in padding, where the image is black.

        Returns:
            The image, normalized, `[3, height, width]`; the mask, int64 `[height, width]`.
        """
        labels = Image.fromarray(mask)
        size = self._resized(labels.height, labels.width, min(height, width), max(height, width))
        image = TF.resize(image, size, self.interpolation)
        labels = TF.resize(labels, size, _NEAREST)
        if self.options.rotate:
            angle = _uniform(-self.options.rotate, self.options.rotate)
            image = TF.rotate(image, angle, self.interpolation, fill=0)
            labels = TF.rotate(labels, angle, _NEAREST, fill=ignore)
        high, wide = max(0, height - size[0]), max(0, width - size[1])
        if high or wide:
            top, left = _up_to(high), _up_to(wide)
            sides = [left, top, wide - left, high - top]
            image, labels = TF.pad(image, sides, fill=0), TF.pad(labels, sides, fill=ignore)
        corner = self._corner(np.asarray(labels), height, width, ignore)
        image, labels = (TF.crop(one, *corner, height, width) for one in (image, labels))
        if torch.rand(()) < self.options.flip:
            image, labels = TF.hflip(image), TF.hflip(labels)
        pixels = image_to_tensor(self.colours(image), self.preprocessing)
        return pixels, torch.from_numpy(np.array(labels, np.int64))

    def _resized(self, height: int, width: int, short: int, long: int) -> list[int]:
        """A random height and width for an image that is cropped to `short` and `long` next."""
        factor = short * _uniform(*self.options.scale) / min(height, width)
        # Or strips would take gigabytes.
        factor = min(factor, MAX_ASPECT_RATIO * long / max(height, width))
        return [max(1, round(side * factor)) for side in (height, width)]

    def _corner(self, mask: np.ndarray, height: int, width: int, ignore: int) -> tuple[int, int]:
        """Top and left of a random crop; the share of each class is limited, if a try succeeds."""
        corner = (0, 0)
        for _ in range(TRIES):
            corner = top, left = _up_to(mask.shape[0] - height), _up_to(mask.shape[1] - width)
            if self.options.crop_max_share == 1 or mask.shape == (height, width):
                break
            counts = np.bincount(mask[top : top + height, left : left + width].ravel())
            counts[ignore:] = 0  # it is above all classes
            if 0 < counts.max() <= self.options.crop_max_share * counts.sum():
                break
        return corner


@dataclass(eq=False)
class SegmentationSet(TrainingSet):
    """Targets are masks, int64 `[B, H, W]`."""

    def __post_init__(self) -> None:
        self.transform = SegmentationTransform(self.options.augment, self.preprocessing)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        index, height, width, epoch = key
        image, _ = self.read(index, *self.transform.decoded_size(height, width))
        mask = self.samples.mask(index)
        with seeded(self.seed, epoch, index):
            return self.transform(image, mask, height, width, ignore=self.samples.ignore)

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*(self[key] for key in keys), strict=True)
        return torch.stack(images), torch.stack(masks)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _up_to(maximum: int) -> int:
    """A random integer from 0 to `maximum`, inclusive."""
    return int(torch.randint(maximum + 1, ()))

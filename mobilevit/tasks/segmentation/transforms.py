"""Images and masks that move as one: training transforms, and the data sets that use them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data.decode import Decode, open_reduced
from mobilevit.data.images import open_image
from mobilevit.data.mask_classes import IGNORE
from mobilevit.data.preprocessing import image_to_tensor, preprocess
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import MAX_ASPECT_RATIO, Preprocessing
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.utils.random import seeded

TRIES = 10
"""How often a crop is drawn anew at most, where one class has more than its share of it."""

_NEAREST = v2.InterpolationMode.NEAREST


@dataclass(frozen=True, kw_only=True)
class SegmentationAugment:
    """What training does to images and their masks.

    Scales and flip are the paper's, which has nothing else; its crop has 512 x 512 pixels.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    """Short side that an image is resized to before the crop, as a share of the crop's."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rotate: float = 0.0
    """Largest rotation in degrees, either way (the authors' later recipe: 10)."""
    photometric: float = 0.5
    """Probability of each change: of brightness, contrast, saturation and hue."""
    blur: float = 0.0
    """Probability of a Gaussian blur (the authors' later recipe: 0.5)."""
    crop_max_share: float = 1.0
    """Largest share of a crop's labelled pixels that one class should have (the authors' later
    recipe: 0.75); where ten crops have more, the last is taken."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: such an option.
        """
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"masks.scale takes two shares, 0 < low <= high, not {self.scale}")
        for name in ("flip", "photometric", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"masks.{name} is a probability in [0, 1], not {getattr(self, name)}"
                )
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"masks.rotate takes degrees from 0 to 180, not {self.rotate}")
        if not 0 < self.crop_max_share <= 1:
            raise ValueError(f"masks.crop_max_share is a share, not {self.crop_max_share}")


class SegmentationTransform:
    """Random size, rotation, crop and flip of an image and its mask, and the image's colours."""

    def __init__(self, options: SegmentationAugment, preprocessing: Preprocessing) -> None:
        """`preprocessing` gives interpolation and values; its sizes play no part."""
        self.options, self.preprocessing = options, preprocessing
        self.interpolation = v2.InterpolationMode(preprocessing.interpolation)
        changes = [
            v2.ColorJitter(brightness=0.125),
            v2.ColorJitter(contrast=0.5),
            v2.ColorJitter(saturation=0.5),
            v2.ColorJitter(hue=0.05),
        ]
        self.colours = [v2.RandomApply([change], options.photometric) for change in changes]
        self.blur = v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], options.blur)

    def decoded_size(self, height: int, width: int) -> tuple[int, int]:
        """How large an image must at least be decoded, so that no resizing enlarges it more."""
        short = math.ceil(self.options.scale[1] * min(height, width))
        return short, short

    def __call__(
        self, image: Image.Image, mask: np.ndarray, height: int, width: int, *, ignore: int = IGNORE
    ) -> tuple[Tensor, Tensor]:
        """Map an RGB image and its mask to tensors of a size.

        Args:
            image: the image; it may have been decoded smaller than it is.
            mask: uint8 or int32 [H, W], in the image's own size. What it holds comes back, never
                anything between.
            height: of the result.
            width: of the result.
            ignore: what the mask is filled with where there is no image, which is black there.

        Returns:
            float32 `[3, height, width]`, values as the network's; int64 `[height, width]`.
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
        for change in (*self.colours, self.blur):
            image = change(image)
        return image_to_tensor(image, self.preprocessing), torch.from_numpy(
            np.array(labels, np.int64)
        )

    def _resized(self, height: int, width: int, short: int, long: int) -> list[int]:
        """A random size, height and width, for an image to be cropped to such sides."""
        factor = short * _uniform(*self.options.scale) / min(height, width)
        factor = min(
            factor, MAX_ASPECT_RATIO * long / max(height, width)
        )  # strips would take gigabytes
        return [max(1, round(side * factor)) for side in (height, width)]

    def _corner(self, mask: np.ndarray, height: int, width: int, ignore: int) -> tuple[int, int]:
        """Top and left of a random crop, in which no class has too large a share if possible."""
        corner = (0, 0)
        for _ in range(TRIES):
            corner = top, left = _up_to(mask.shape[0] - height), _up_to(mask.shape[1] - width)
            if self.options.crop_max_share == 1 or mask.shape == (height, width):
                break
            counts = np.bincount(mask[top : top + height, left : left + width].ravel())
            counts[ignore:] = 0  # which is above all classes
            if 0 < counts.max() <= self.options.crop_max_share * counts.sum():
                break
        return corner


class SegmentationSet(Dataset[tuple[Tensor, Tensor]]):
    """Augmented batches: a list of `SampleKey`s -> images `[B, 3, H, W]` and masks `[B, H, W]`."""

    def __init__(
        self,
        samples: MaskSamples,
        transform: SegmentationTransform,
        *,
        seed: int,
        decode: Decode = "fast",
    ) -> None:
        """All random numbers are drawn under `seed` and the keys; `decode`: see `decoding`."""
        self.samples, self.transform, self.seed = samples, transform, seed
        self.decode = decode

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        """One augmented image `[3, H, W]` and its mask, int64 `[H, W]`.

        Raises:
            ImageError: image or mask cannot be read, or do not fit.
        """
        index, height, width, epoch = key
        source = self.samples.source(index)
        if self.decode == "fast":
            image, _ = open_reduced(source, *self.transform.decoded_size(height, width))
        else:
            image = open_image(source)
        mask = self.samples.mask(index)
        with seeded(self.seed, epoch, index):
            return self.transform(image, mask, height, width, ignore=self.samples.ignore)

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """One batch; all keys are of one size."""
        images, masks = zip(*(self[key] for key in keys), strict=True)
        return torch.stack(images), torch.stack(masks)


class SegmentationEvaluationSet(Dataset[tuple[Tensor, Tensor, int]]):
    """Images as a network is evaluated on them, with masks of the images' own sizes.

    Sizes differ, so a batch is a list; `by_shape` stacks what can be stacked.
    """

    def __init__(self, samples: MaskSamples, preprocessing: Preprocessing) -> None:
        """Preprocess as the weights want it; masks are left as they are."""
        self.samples, self.preprocessing = samples, preprocessing

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """One image `[3, h, w]`, its mask, uint8 or int32 `[H, W]`, and its index.

        Raises:
            ImageError: image or mask cannot be read, or do not fit.
        """
        image = open_image(self.samples.source(index))
        return (
            preprocess(image, self.preprocessing),
            torch.from_numpy(self.samples.mask(index)),
            index,
        )

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor, int]]:
        """One batch, in order."""
        return [self[index] for index in indices]


class SameShape(NamedTuple):
    """Images of one shape, with what belongs to them."""

    images: Tensor
    """`[B, 3, h, w]`."""
    masks: list[Tensor]
    """uint8 or int32 `[H, W]` each, of the image's own size."""
    indices: list[int]


def by_shape(batch: Sequence[tuple[Tensor, Tensor, int]]) -> Iterator[SameShape]:
    """Stack the images of a `SegmentationEvaluationSet`'s batch that have the same shape."""
    groups: dict[torch.Size, list[tuple[Tensor, Tensor, int]]] = {}
    for item in batch:
        groups.setdefault(item[0].shape, []).append(item)
    for items in groups.values():
        images, masks, indices = zip(*items, strict=True)
        yield SameShape(torch.stack(images), list(masks), list(indices))


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _up_to(most: int) -> int:
    """A whole number from 0 to `most`."""
    return int(torch.randint(most + 1, ()))

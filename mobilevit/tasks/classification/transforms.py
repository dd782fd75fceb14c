"""Training transforms: an upright image and a size -> what the network trains on.

Random numbers are drawn under a seed of (run, epoch, sample), so that an image's augmentation
does not depend on which worker makes it, on how many there are, or on where a run was resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data.decode import DecodableImage, Region
from mobilevit.models.config import Preprocessing


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """What training does to images; the defaults are the paper's "basic augmentation"."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratios of a random crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rand_augment: int = 0
    """Operations that RandAugment applies to an image; 0: none (MobileViTv2's recipe: 2)."""
    rand_augment_magnitude: int = 9
    """Strength of RandAugment's operations, 0 to 30."""
    erase: float = 0.0
    """Probability that a random rectangle is erased (MobileViTv2's recipe: 0.25)."""
    mixup: float = 0.0
    """Alpha of MixUp; 0: none (MobileViTv2's recipe: 0.2)."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: none (MobileViTv2's recipe: 1.0)."""
    mix_probability: float = 0.5
    """Share of the batches that MixUp or CutMix, one of the two at random, is applied to."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: such an option.
        """
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"augment.scale takes two shares, 0 < low <= high <= 1, not {self.scale}"
            )
        low, high = self.ratio
        if not 0 < low <= high < math.inf:
            raise ValueError(f"augment.ratio takes 0 < low <= high, not {self.ratio}")
        for name in ("flip", "erase", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"augment.{name} is a probability in [0, 1], not {getattr(self, name)}"
                )
        for name in ("rand_augment", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"augment.{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.rand_augment_magnitude <= 30:
            raise ValueError(
                "augment.rand_augment_magnitude must be from 0 to 30, "
                f"not {self.rand_augment_magnitude}"
            )


class TrainTransform:
    """Random resized crop and flip, and the options' further augmentation.

    `pixels` makes those of an image. What follows is done to values in [0, 1], of a batch at once:
    `preprocessing.normalized`, and then to each image `erase`, where it is chosen.
    """

    def __init__(self, options: AugmentOptions, preprocessing: Preprocessing) -> None:
        """`preprocessing` gives interpolation and values; its sizes play no part."""
        self.options = options
        self.preprocessing = preprocessing
        self.interpolation = v2.InterpolationMode(preprocessing.interpolation)
        self.crop = v2.RandomResizedCrop(1, options.scale, options.ratio)  # draws; resizes nothing
        self.rand_augment = (
            v2.RandAugment(options.rand_augment, options.rand_augment_magnitude)
            if options.rand_augment
            else None
        )
        self.erase = v2.RandomErasing(options.erase) if options.erase else None

    def pixels(self, image: DecodableImage, height: int, width: int) -> Tensor:
        """Crop, flip and change an image at random.

        Returns:
            uint8 `[3, height, width]`, RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        # An image of the "meta" device has a size and no pixels, which are not decoded yet.
        drawn = self.crop.make_params([torch.empty(3, image.height, image.width, device="meta")])
        region = Region(drawn["top"], drawn["left"], drawn["height"], drawn["width"])
        x = image.pixels(region, height, width, self.interpolation)
        if torch.rand(()) < self.options.flip:
            x = x.flip(2)
        if self.rand_augment:
            x = TF.pil_to_tensor(self.rand_augment(TF.to_pil_image(x)))
        return x


class BatchMix:
    """MixUp or CutMix on a share of the batches."""

    def __init__(self, options: AugmentOptions, num_classes: int) -> None:
        """`num_classes` is the length of the mixed targets."""
        self.probability = options.mix_probability
        self.num_classes = num_classes
        self.mixes: list[v2.Transform] = []
        if options.mixup:
            self.mixes.append(v2.MixUp(alpha=options.mixup, num_classes=num_classes))
        if options.cutmix:
            self.mixes.append(v2.CutMix(alpha=options.cutmix, num_classes=num_classes))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images `[B, 3, H, W]` and labels `[B]`; the labels become shares `[B, K]`.

        Where no mix is chosen at all, labels stay as they are.
        """
        if not self.mixes:
            return images, labels
        if torch.rand(()) < self.probability:
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            mixed, shares = mix(images, labels)
            return mixed, shares
        return images, F.one_hot(labels, self.num_classes).float()

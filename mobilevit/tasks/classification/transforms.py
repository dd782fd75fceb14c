"""Training transforms of classification: random crop, flip, RandAugment, erasing, MixUp, CutMix.

Random numbers are drawn under a seed of (run, epoch, sample), so that an image's augmentation does
not depend on which worker makes it, on how many there are, or on where a run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data.decode import DecodableImage, Region
from mobilevit.models.config import Preprocessing
from mobilevit.utils.options import Interval, NonNegative, Options, Positive, Share

CropShare = Annotated[float, Interval(0, 1, "(]")]


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(Options, name="classification.augment"):
    """Augmentation of training images; the defaults are the paper's "basic augmentation"."""

    scale: tuple[CropShare, CropShare] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a random crop takes."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a random crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    rand_augment: Annotated[int, Interval(0)] = 0
    """Operations that RandAugment applies to an image (MobileViTv2's recipe: 2)."""
    rand_augment_magnitude: Annotated[int, Interval(0, 30, "[]")] = 9
    """Strength of RandAugment's operations."""
    erase: Share = 0.0
    """Probability that a random rectangle is erased (MobileViTv2's recipe: 0.25)."""
    mixup: NonNegative = 0.0
    """Alpha of MixUp; 0: none (MobileViTv2's recipe: 0.2)."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix; 0: none (MobileViTv2's recipe: 1.0)."""
    mix_probability: Share = 0.5
    """Share of the batches that are mixed, by MixUp or CutMix at random."""


class TrainTransform:
    """Random resized crop, flip and RandAugment of one image's pixels.

    The result is then normalized in its batch, and `erase`, unless None, is applied to each image.
    The sizes of `preprocessing` are not used.
    """

    def __init__(self, options: AugmentOptions, preprocessing: Preprocessing) -> None:
        self.options = options
        self.preprocessing = preprocessing
        self.interpolation = v2.InterpolationMode(preprocessing.interpolation)
        self.crop = v2.RandomResizedCrop(1, options.scale, options.ratio)  # only draws the region
        self.rand_augment = (
            v2.RandAugment(options.rand_augment, options.rand_augment_magnitude)
            if options.rand_augment
            else None
        )
        self.erase = v2.RandomErasing(options.erase) if options.erase else None

    def pixels(self, image: DecodableImage, height: int, width: int) -> Tensor:
        """Random pixels of an image: uint8 `[3, height, width]`, RGB."""
        # An image on the "meta" device has a size and no pixels: they are not decoded yet.
        params = self.crop.make_params([torch.empty(3, image.height, image.width, device="meta")])
        region = Region(params["top"], params["left"], params["height"], params["width"])
        x = image.pixels(region, height, width, self.interpolation)
        if torch.rand(()) < self.options.flip:
            x = x.flip(2)
        if self.rand_augment:
            x = TF.pil_to_tensor(self.rand_augment(TF.to_pil_image(x)))
        return x


class BatchMix:
    """MixUp or CutMix on a share of the batches."""

    def __init__(self, options: AugmentOptions, num_classes: int) -> None:
        self.probability = options.mix_probability
        self.num_classes = num_classes
        self.mixes: list[v2.Transform] = []
        if options.mixup:
            self.mixes.append(v2.MixUp(alpha=options.mixup, num_classes=num_classes))
        if options.cutmix:
            self.mixes.append(v2.CutMix(alpha=options.cutmix, num_classes=num_classes))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images `[B, 3, H, W]` and labels `[B]`, which become shares `[B, K]`.

        If both MixUp and CutMix are off, images and labels are returned unchanged.
        """
        if not self.mixes:
            return images, labels
        if torch.rand(()) < self.probability:
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            mixed, shares = mix(images, labels)
            return mixed, shares
        return images, F.one_hot(labels, self.num_classes).float()

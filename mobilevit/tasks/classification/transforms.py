"""Augmentation in classification: random crop, flip, RandAugment, erasing, MixUp, CutMix.

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

from mobilevit.data.decode import DecodableImage, Region, open_decodable
from mobilevit.data.preprocessing import normalize
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.dataset import TrainingSet, naming_sample
from mobilevit.utils.options import Interval, NonNegative, Options, Positive, Share
from mobilevit.utils.random import seeded

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
    """

    def __init__(self, options: AugmentOptions, preprocessing: Preprocessing) -> None:
        self.options = options
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


@dataclass(eq=False)
class ClassificationSet(TrainingSet):
    """Targets are labels `[B]`, or shares `[B, K]` if batches are mixed."""

    def __post_init__(self) -> None:
        augment, self.num_classes = self.options.augment, len(self.samples.classes)
        self.transform = TrainTransform(augment, self.preprocessing)
        self.mixes = [
            mix(alpha=alpha, num_classes=self.num_classes)
            for mix, alpha in ((v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix))
            if alpha
        ]

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        images, labels = self._batch(keys)
        if not self.mixes:
            return images, labels
        with seeded(self.seed, keys[0].epoch, *(key.sample for key in keys)):
            if torch.rand(()) < self.options.augment.mix_probability:
                mixed, shares = self.mixes[int(torch.randint(len(self.mixes), ()))](images, labels)
                return mixed, shares
        return images, F.one_hot(labels, self.num_classes).float()

    def _batch(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """Augmented images `[B, 3, H, W]` and labels `[B]`, before mixing."""
        # The layout of decoded pixels, and the one that the networks compute in.
        images = torch.empty(
            (len(keys), 3, keys[0].height, keys[0].width), memory_format=torch.channels_last
        )
        for position, (index, height, width, epoch) in enumerate(keys):
            source = self.samples.source(index)
            with (
                naming_sample(self.samples, index),
                open_decodable(source, decode=self.decode, cache=self.cache) as image,
                seeded(self.seed, epoch, index),
            ):
                pixels = self.transform.pixels(image, height, width)
            torch.div(pixels, 255, out=images[position])
        images = normalize(images, self.preprocessing)
        if self.transform.erase:
            for position, key in enumerate(keys):
                with seeded(self.seed, key.epoch, key.sample, 1):
                    images[position] = self.transform.erase(images[position])
        return images, torch.tensor([int(self.samples.labels[key.sample]) for key in keys])

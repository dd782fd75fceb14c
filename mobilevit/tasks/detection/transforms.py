"""Training transforms and data sets of images with boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.data.decode import Decode, open_reduced
from mobilevit.data.images import open_image
from mobilevit.data.preprocessing import image_to_tensor, preprocess
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.utils.random import seeded

SMALLEST_CROP = 0.3
"""Least share of an image's height and width that a random crop takes, as SSD has it."""


@dataclass(frozen=True, kw_only=True)
class BoxAugmentOptions:
    """What training does to images with boxes; the defaults are the authors'."""

    crop: float = 1.0
    """Probability of SSD's random crop, which keeps a given overlap with some box, or all."""
    zoom_out: float = 0.0
    """Probability that the image is put into a larger one, so that objects become small."""
    photometric: float = 0.5
    """Probability of each distortion: brightness, contrast, saturation, hue, channel order."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            ValueError: such an option.
        """
        for name in ("crop", "zoom_out", "photometric", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"boxes.{name} is a probability in [0, 1], not {getattr(self, name)}"
                )


class BoxBatch(NamedTuple):
    """Boxes of a batch of images, filled up to the largest number M (at least 1)."""

    boxes: Tensor
    """float32 `[B, M, 4]`: corners as shares of the image's width and height."""
    labels: Tensor
    """int64 `[B, M]`; -1 where there is no box."""


def stacked(boxes: list[Tensor], labels: list[Tensor]) -> BoxBatch:
    """Fill up images' boxes `[N, 4]` and labels `[N]` to one length."""
    most = max(1, *(len(one) for one in labels))
    batch = BoxBatch(torch.zeros(len(boxes), most, 4), torch.full((len(boxes), most), -1))
    for row, (some, named) in enumerate(zip(boxes, labels, strict=True)):
        batch.boxes[row, : len(some)] = some
        batch.labels[row, : len(named)] = named
    return batch


class BoxTransform:
    """Distortion, zoom, crop, flip and size, of an image and its boxes together."""

    def __init__(self, options: BoxAugmentOptions, preprocessing: Preprocessing) -> None:
        """`preprocessing` gives interpolation and values; its sizes play no part.

        Raises:
            ValueError: it does not squash the whole image, so that boxes would be cut off.
        """
        if (mode := preprocessing.resize_mode) != "stretch":
            raise ValueError(f"detection needs preprocessing.resize_mode stretch, not {mode}")
        self.options, self.preprocessing = options, preprocessing
        self.interpolation = v2.InterpolationMode(preprocessing.interpolation)
        self.distort = v2.RandomPhotometricDistort(p=options.photometric)
        self.zoom_out = v2.RandomZoomOut(fill=127, p=options.zoom_out)
        self.crop = v2.RandomIoUCrop(min_scale=SMALLEST_CROP)
        self.sanitize = v2.SanitizeBoundingBoxes()

    def decoded_size(self, height: int, width: int) -> tuple[int, int]:
        """How large an image must at least be decoded, so that no crop of it is enlarged more."""
        return math.ceil(height / SMALLEST_CROP), math.ceil(width / SMALLEST_CROP)

    def __call__(
        self, image: Image.Image, boxes: BoundingBoxes, labels: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Transform one image.

        Args:
            image: an upright RGB image.
            boxes: corners `[N, 4]` in its pixels.
            labels: `[N]`.
            height: of the result, in pixels.
            width: of the result, in pixels.

        Returns:
            A float32 tensor `[3, height, width]`, values as the network's; the boxes that are left,
            `[M, 4]`, corners as shares of width and height; their labels.
        """
        sample = {"image": image, "boxes": boxes, "labels": labels}
        if self.options.photometric:
            sample = self.distort(sample)
        if self.options.zoom_out:
            sample = self.zoom_out(sample)
        # Without boxes SSD's crop would try in vain, many times.
        if len(labels) and torch.rand(()) < self.options.crop:
            sample = self.sanitize(self.crop(sample))
        image, boxes, labels = sample["image"], sample["boxes"], sample["labels"]
        if torch.rand(()) < self.options.flip:
            image, boxes = TF.hflip(image), TF.hflip(boxes)
        boxes = boxes / torch.tensor([image.width, image.height] * 2)
        image = TF.resize(image, [height, width], self.interpolation)
        return image_to_tensor(image, self.preprocessing), boxes.as_subclass(Tensor), labels


class DetectionSet(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Augmented batches: a list of `SampleKey`s -> images `[B, 3, H, W]` and a `BoxBatch`."""

    def __init__(
        self, samples: BoxSamples, transform: BoxTransform, *, seed: int, decode: Decode = "fast"
    ) -> None:
        """All random numbers are drawn under `seed` and the keys; `decode`: see `decoding`."""
        self.samples, self.transform, self.seed = samples, transform, seed
        self.decode = decode

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, Tensor]:
        """One augmented image `[3, H, W]`, its boxes and labels; crowds are left out."""
        index, height, width, epoch = key
        said = self.samples.annotation(index)
        source, scale = self.samples.source(index), 1
        if self.decode == "fast":
            image, scale = open_reduced(source, *self.transform.decoded_size(height, width))
        else:
            image = open_image(source)
        kept = ~said.crowd
        boxes = BoundingBoxes(
            said.boxes[kept] / scale, format="XYXY", canvas_size=(image.height, image.width)
        )
        with seeded(self.seed, epoch, index):
            return self.transform(image, boxes, said.labels[kept], height, width)

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, BoxBatch]:
        """One batch; all keys are of one size."""
        images, boxes, labels = zip(*(self[key] for key in keys), strict=True)
        return torch.stack(images), stacked(list(boxes), list(labels))


class DetectionEvaluationSet(Dataset[tuple[Tensor, Tensor, Tensor, tuple[int, int]]]):
    """Images as a detector is evaluated on them, with their boxes."""

    def __init__(self, samples: BoxSamples, preprocessing: Preprocessing) -> None:
        """Preprocess as the weights want it."""
        self.samples, self.preprocessing = samples, preprocessing

    def __len__(self) -> int:
        """The number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """One image `[3, crop, crop]`, its boxes as shares, labels, and (height, width)."""
        said = self.samples.annotation(index)
        image = open_image(self.samples.source(index))
        kept = ~said.crowd
        boxes = said.boxes[kept] / torch.tensor([image.width, image.height] * 2)
        size = (image.height, image.width)
        return preprocess(image, self.preprocessing), boxes, said.labels[kept], size

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, BoxBatch, Tensor, Tensor]:
        """One batch: images, boxes, images' indices `[B]`, their (height, width) `[B, 2]`."""
        images, boxes, labels, sizes = zip(*(self[index] for index in indices), strict=True)
        batch = stacked(list(boxes), list(labels))
        return torch.stack(images), batch, torch.tensor(indices), torch.tensor(sizes)

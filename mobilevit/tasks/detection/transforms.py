"""Training transforms and the training set of images with boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import BoundingBoxes

from mobilevit.data.preprocessing import image_to_tensor
from mobilevit.data.sampler import SampleKey
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.dataset import TrainingSet
from mobilevit.tasks.detection.dataset import Targets
from mobilevit.utils.options import Options, Share
from mobilevit.utils.random import seeded

SMALLEST_CROP = 0.3
"""Smallest share of an image's height and width that a random crop takes, as in SSD."""


@dataclass(frozen=True, kw_only=True)
class BoxAugmentOptions(Options, name="detection.augment"):
    """Augmentation of training images with boxes; the defaults are the authors'."""

    crop: Share = 1.0
    """Probability of SSD's random crop, which has a given IoU with at least one box."""
    zoom_out: Share = 0.0
    """Probability that the image is pasted into a larger one, so that objects become small."""
    photometric: Share = 0.5
    """Probability of each distortion: brightness, contrast, saturation, hue, channel order."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""


class BoxTransform:
    """Photometric distortion, zoom-out, crop, flip and resizing of an image and its boxes."""

    def __init__(self, options: BoxAugmentOptions, preprocessing: Preprocessing) -> None:
        # Any other mode crops in evaluation, and would cut off boxes.
        if (mode := preprocessing.resize_mode) != "stretch":
            raise ValueError(f"detection needs preprocessing.resize_mode stretch, not {mode}")
        self.options, self.preprocessing = options, preprocessing
        self.interpolation = v2.InterpolationMode(preprocessing.interpolation)
        self.distort = v2.RandomPhotometricDistort(p=options.photometric)
        self.zoom_out = v2.RandomZoomOut(fill=127, p=options.zoom_out)
        self.crop = v2.RandomIoUCrop(min_scale=SMALLEST_CROP)
        self.sanitize = v2.SanitizeBoundingBoxes()

    def decoded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which even the smallest crop need not be enlarged."""
        return math.ceil(height / SMALLEST_CROP), math.ceil(width / SMALLEST_CROP)

    def __call__(
        self, image: Image.Image, boxes: BoundingBoxes, labels: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Transform an upright RGB image with boxes `[N, 4]`, corners in pixels, and labels `[N]`.

        Returns:
            The image, normalized, `[3, height, width]`; the remaining boxes `[M, 4]`, corners as
            shares of width and height; their labels.
        """
        sample = {"image": image, "boxes": boxes, "labels": labels}
        if self.options.photometric:
            sample = self.distort(sample)
        if self.options.zoom_out:
            sample = self.zoom_out(sample)
        # Without boxes every try of SSD's crop fails.
        if len(labels) and torch.rand(()) < self.options.crop:
            sample = self.sanitize(self.crop(sample))
        image, boxes, labels = sample["image"], sample["boxes"], sample["labels"]
        if torch.rand(()) < self.options.flip:
            image, boxes = TF.hflip(image), TF.hflip(boxes)
        boxes = boxes / torch.tensor([image.width, image.height] * 2)
        image = TF.resize(image, [height, width], self.interpolation)
        return image_to_tensor(image, self.preprocessing), boxes.as_subclass(Tensor), labels


@dataclass(eq=False)
class DetectionSet(TrainingSet):
    """Targets are `Targets`; crowds are left out."""

    def __post_init__(self) -> None:
        self.transform = BoxTransform(self.options.augment, self.preprocessing)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, Tensor]:
        index, height, width, epoch = key
        annotation = self.samples.annotation(index)
        image, scale = self.read(index, *self.transform.decoded_size(height, width))
        objects = ~annotation.crowd
        boxes = BoundingBoxes(
            annotation.boxes[objects] / scale,
            format="XYXY",
            canvas_size=(image.height, image.width),
        )
        with seeded(self.seed, epoch, index):
            return self.transform(image, boxes, annotation.labels[objects], height, width)

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Targets]:
        images, boxes, labels = zip(*(self[key] for key in keys), strict=True)
        return torch.stack(images), Targets.stack(boxes, labels)

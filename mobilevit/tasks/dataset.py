"""Data sets of any task: augmented batches to train on, and preprocessed images to evaluate on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mobilevit.data.cache import ImageCache
from mobilevit.data.decode import Decode, open_cached, open_reduced
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.data.sampler import SampleKey
from mobilevit.data.shards.samples import ShardImages, ShardSamples
from mobilevit.data.sources import PreparedImage
from mobilevit.models.config import Preprocessing


class ImageBatch(NamedTuple):
    """Preprocessed images of one shape."""

    images: Tensor
    """`[B, 3, H, W]`."""
    sizes: list[tuple[int, int]]
    """(height, width) of the original images."""
    indices: list[int]
    """Which of the samples or inputs they are."""
    targets: Any = None
    """In evaluation, the samples' `targets`."""


def by_shape(items: Iterable[tuple[int, PreparedImage]], limit: int) -> Iterator[ImageBatch]:
    """Stack images of the same shape, at most `limit` at a time; items are (index, image)."""
    groups: dict[torch.Size, list[tuple[int, PreparedImage]]] = {}
    for item in items:
        groups.setdefault(item[1].tensor.shape, []).append(item)
    for group in groups.values():
        for first in range(0, len(group), limit):
            indices, images = zip(*group[first : first + limit], strict=True)
            tensors, sizes = zip(*images, strict=True)
            yield ImageBatch(torch.stack(tensors), list(sizes), list(indices))


@contextmanager
def naming_sample(samples: Any, index: int) -> Iterator[None]:
    """Name the sample in errors: the bytes of a part of a shard have no name of their own."""
    try:
        yield
    except ImageError as error:
        raise ImageError(samples.name(index), error.reason) from error


@dataclass(eq=False)
class TrainingSet(ABC):
    """Augmented batches: a pure function of a list of `SampleKey`s, all of one size, and `seed`."""

    samples: Any
    preprocessing: Preprocessing
    """Its sizes are not used: keys have theirs."""
    options: Any
    """The task's training options."""
    _: KW_ONLY
    seed: int
    decode: Decode = "fast"
    cache: ImageCache | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Any]:
        """Images `[B, 3, H, W]` and what the loss compares outputs with."""

    def read(self, index: int, height: int, width: int) -> tuple[Image.Image, int]:
        """Read an image as `open_reduced` does; unless `decode` is fast, as it is."""
        source = self.samples.source(index)
        if self.decode == "fast":
            return open_reduced(source, height, width, cache=self.cache)
        return open_cached(source, self.cache), 1


@dataclass(eq=False)
class EvaluationSet:
    """Images preprocessed for evaluation: a list of indices -> an `ImageBatch` for each shape."""

    samples: Any
    preprocessing: Preprocessing
    cache: ImageCache | None = None

    @property
    def shards(self) -> ShardImages | None:
        """The shards that have exactly these samples, if any."""
        if isinstance(self.samples, ShardSamples) and len(self) == len(self.samples.images):
            return self.samples.images
        return None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> list[ImageBatch]:
        return [
            batch._replace(targets=self.samples.targets(batch.indices, batch.sizes))
            for batch in by_shape(((index, self._read(index)) for index in indices), len(indices))
        ]

    def _read(self, index: int) -> PreparedImage:
        source, p = self.samples.source(index), self.preprocessing

        def framed() -> tuple[Image.Image, tuple[int, int]]:
            image = open_image(source)
            return frame_image(image, p), (image.height, image.width)

        with naming_sample(self.samples, index):
            if self.cache is None or isinstance(source, Image.Image):
                image, size = framed()
            else:
                variant = f"{p.resize_mode} {p.resize} {p.crop} {p.interpolation}"
                pixels, size = self.cache.load(source, variant, framed)
                image = Image.fromarray(pixels)
        return PreparedImage(image_to_tensor(image, p), size)

"""Labelled images, and the data sets that training and evaluation read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mobilevit.data.decode import Decode, open_decodable
from mobilevit.data.formats.folders import DataError, Split
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import normalize, preprocess
from mobilevit.data.sampler import Batch, SampleKey
from mobilevit.data.streaming import Shards, ShardSamples
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.transforms import BatchMix, TrainTransform, seeded


class Samples(Protocol):
    """Images with one label each."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels are positions in it."""

    @property
    def labels(self) -> Sequence[int]:
        """The label of each sample."""

    def source(self, index: int) -> Path | bytes | Image.Image:
        """The image, as `open_image` takes it."""

    def name(self, index: int) -> str:
        """What to call a sample in messages and reports."""


class FolderSamples:
    """The samples of a folder of class folders."""

    def __init__(self, split: Split) -> None:
        """Wrap what `scan` or `splits` found."""
        self.split, self.classes, self.labels = split, split.classes, split.labels

    def source(self, index: int) -> Path:
        """The file."""
        return self.split.paths[index]

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.split.paths[index])


class SomeSamples:
    """Chosen samples of others."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        """Keep the samples at `indices`, in this order."""
        self.samples, self.indices, self.classes = samples, indices, samples.classes
        self.labels = [samples.labels[index] for index in indices]

    def source(self, index: int) -> Path | bytes | Image.Image:
        """The image, as `open_image` takes it."""
        return self.samples.source(self.indices[index])

    def name(self, index: int) -> str:
        """What to call a sample."""
        return self.samples.name(self.indices[index])


class RelabelledSamples:
    """The samples of others, labelled by the places of their classes' names in other names."""

    def __init__(self, samples: Samples, classes: tuple[str, ...]) -> None:
        """Match classes by name.

        Raises:
            DataError: a class of `samples` is not among `classes`.
        """
        if unknown := [name for name in samples.classes if name not in classes]:
            raise DataError(f"unknown classes: {', '.join(unknown)}; known: {', '.join(classes)}")
        self.samples, self.classes = samples, classes
        places = [classes.index(name) for name in samples.classes]
        self.labels = [places[label] for label in samples.labels]

    def source(self, index: int) -> Path | bytes | Image.Image:
        """The image, as `open_image` takes it."""
        return self.samples.source(index)

    def name(self, index: int) -> str:
        """What to call a sample."""
        return self.samples.name(index)


@contextmanager
def _named(samples: Samples, index: int, source: object) -> Iterator[None]:
    """Have errors name the sample, where its image is not a file of its own."""
    try:
        yield
    except ImageError as error:
        if isinstance(source, Path):
            raise
        raise ImageError(samples.name(index), error.reason) from error


def _read_ahead(samples: Samples, keys: list[Any]) -> None:
    if isinstance(keys, Batch) and isinstance(samples, ShardSamples):
        samples.read_ahead(keys)


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """Augmented batches: a list of `SampleKey`s -> images `[B, 3, H, W]` and targets.

    Targets are labels `[B]`, or shares `[B, K]` where batches are mixed.
    """

    def __init__(
        self,
        samples: Samples,
        transform: TrainTransform,
        mix: BatchMix,
        *,
        seed: int,
        decode: Decode = "fast",
    ) -> None:
        """All random numbers are drawn under `seed` and the keys; `decode`: see `decoding`."""
        self.samples, self.transform, self.mix, self.seed = samples, transform, mix, seed
        self.decode = decode

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples.labels)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int]:
        """One augmented image `[3, H, W]` and its label."""
        images, labels = self._batch([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """One batch; all keys are of one size."""
        _read_ahead(self.samples, keys)
        images, labels = self._batch(keys)
        with seeded(self.seed, keys[0].epoch, *(key.sample for key in keys)):
            return self.mix(images, labels)

    def _batch(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """Augmented images `[B, 3, H, W]` and their labels `[B]`, not mixed."""
        # Laid out as pixels are decoded, and as the networks want them.
        images = torch.empty(
            (len(keys), 3, keys[0].height, keys[0].width), memory_format=torch.channels_last
        )
        for place, (index, height, width, epoch) in enumerate(keys):
            source = self.samples.source(index)
            with (
                _named(self.samples, index, source),
                open_decodable(source, decode=self.decode) as opened,
                seeded(self.seed, epoch, index),
            ):
                pixels = self.transform.pixels(opened, height, width)
            torch.div(pixels, 255, out=images[place])
        images = normalize(images, self.transform.preprocessing)
        if self.transform.erase:
            for place, key in enumerate(keys):
                with seeded(self.seed, key.epoch, key.sample, 1):
                    images[place] = self.transform.erase(images[place])
        return images, torch.tensor([int(self.samples.labels[key.sample]) for key in keys])


class EvaluationSet(Dataset[tuple[Tensor, int, int]]):
    """Images as a network is evaluated on them."""

    def __init__(self, samples: Samples, preprocessing: Preprocessing) -> None:
        """Preprocess as the weights want it."""
        self.samples, self.preprocessing = samples, preprocessing

    @property
    def shards(self) -> Shards | None:
        """What the samples lie in, if it is shards."""
        return self.samples.shards if isinstance(self.samples, ShardSamples) else None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """One image `[3, crop, crop]`, its label and its index."""
        source = self.samples.source(index)
        with _named(self.samples, index, source):
            image = open_image(source)
        return preprocess(image, self.preprocessing), int(self.samples.labels[index]), index

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """One batch: images `[B, 3, crop, crop]`, labels `[B]`, indices `[B]`."""
        _read_ahead(self.samples, indices)
        images, labels, kept = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(images), torch.tensor(labels), torch.tensor(kept)

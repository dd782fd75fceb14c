"""Data sets of labelled images, for training and evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from mobilevit.data.decode import Decode, open_decodable
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import normalize, preprocess
from mobilevit.data.sampler import SampleKey
from mobilevit.data.shards.samples import ShardImages, ShardSamples
from mobilevit.data.splits import LabelSamples
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.transforms import BatchMix, TrainTransform
from mobilevit.utils.random import seeded


@contextmanager
def _naming_sample(samples: LabelSamples, index: int) -> Iterator[None]:
    # The bytes of a part of a shard have no name of their own.
    try:
        yield
    except ImageError as error:
        raise ImageError(samples.name(index), error.reason) from error


@dataclass(eq=False)
class TrainingSet:
    """Augmented batches: a list of `SampleKey`s -> images `[B, 3, H, W]` and targets.

    Targets are labels `[B]`, or shares `[B, K]` if batches are mixed. A batch is a pure function of
    its keys and `seed`.
    """

    samples: LabelSamples
    transform: TrainTransform
    mix: BatchMix
    _: KW_ONLY
    seed: int
    decode: Decode = "fast"

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitems__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        # All keys of a batch have the same size.
        images, labels = self._batch(keys)
        with seeded(self.seed, keys[0].epoch, *(key.sample for key in keys)):
            return self.mix(images, labels)

    def _batch(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        """Augmented images `[B, 3, H, W]` and labels `[B]`, before mixing."""
        # The layout of decoded pixels, and the one that the networks compute in.
        images = torch.empty(
            (len(keys), 3, keys[0].height, keys[0].width), memory_format=torch.channels_last
        )
        for position, (index, height, width, epoch) in enumerate(keys):
            source = self.samples.source(index)
            with (
                _naming_sample(self.samples, index),
                open_decodable(source, decode=self.decode) as image,
                seeded(self.seed, epoch, index),
            ):
                pixels = self.transform.pixels(image, height, width)
            torch.div(pixels, 255, out=images[position])
        images = normalize(images, self.transform.preprocessing)
        if self.transform.erase:
            for position, key in enumerate(keys):
                with seeded(self.seed, key.epoch, key.sample, 1):
                    images[position] = self.transform.erase(images[position])
        return images, torch.tensor([int(self.samples.labels[key.sample]) for key in keys])


@dataclass(eq=False)
class EvaluationSet:
    """Preprocessed images `[B, 3, crop, crop]` with their labels and indices `[B]`."""

    samples: LabelSamples
    preprocessing: Preprocessing

    @property
    def shards(self) -> ShardImages | None:
        """The shards that have exactly these samples, if any."""
        if isinstance(self.samples, ShardSamples) and len(self) == len(self.samples.images):
            return self.samples.images
        return None

    def __len__(self) -> int:
        return len(self.samples.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        images = []
        for index in indices:
            source = self.samples.source(index)
            with _naming_sample(self.samples, index):
                images.append(preprocess(open_image(source), self.preprocessing))
        labels = [int(self.samples.labels[index]) for index in indices]
        return torch.stack(images), torch.tensor(labels), torch.tensor(indices)

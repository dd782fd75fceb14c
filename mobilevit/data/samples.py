"""Labelled images: what a classifier is trained and evaluated on, wherever the images are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image


class Samples(Protocol):
    """Images with one label each."""

    def __len__(self) -> int:
        """The number of samples."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels are indices into it."""

    @property
    def labels(self) -> Sequence[int]:
        """The label of each sample."""

    def source(self, index: int) -> Path | bytes | Image.Image:
        """The image, as `open_image` takes it."""

    def name(self, index: int) -> str:
        """The sample's name in messages and reports."""


class SampleSubset:
    """The samples of another set at `indices`, in this order."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        """Select samples."""
        self.samples, self.indices, self.classes = samples, indices, samples.classes
        self.labels = [samples.labels[index] for index in indices]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)

    def source(self, index: int) -> Path | bytes | Image.Image:
        """The image, as `open_image` takes it."""
        return self.samples.source(self.indices[index])

    def name(self, index: int) -> str:
        """The sample's name."""
        return self.samples.name(self.indices[index])

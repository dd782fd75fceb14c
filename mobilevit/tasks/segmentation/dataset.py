"""Images with a class for every pixel."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Issue
from mobilevit.data.formats.masks.values import (
    IGNORED,
    MAX_VALUE,
    MaskSource,
    format_ranges,
    ignore_mark,
)
from mobilevit.data.image_formats import is_complete
from mobilevit.data.images import ImageError, ImageFacts, image_facts, upright
from mobilevit.data.splits import Examination, Samples

UNREADABLE_MASKS = "masks that cannot be read"
WRONG_SIZES = "masks of another size than their images"
UNKNOWN_VALUES = "masks with values that have no class"
DOUBTFUL_MASKS = "masks that fit their images turned as well"


class MaskSizeError(ImageError):
    """A mask of another size than its image."""


@dataclass(frozen=True, eq=False)
class MaskSamples(Samples):
    """Images and their masks, aligned with the upright images."""

    content = "masks"
    unit = "pixels"
    extra_counts = ("ignored",)

    @property
    def masks(self) -> MaskSource:
        assert self.dataset.masks is not None
        return self.dataset.masks

    @property
    def ignore(self) -> int:
        """Value of `mask` without a class, which loss and metrics leave out."""
        return ignore_mark(self.masks.ignore, len(self.classes))

    def mask_name(self, index: int) -> str:
        return self.masks.name(int(self.indices[index]))

    def mask(self, index: int) -> np.ndarray:
        """The class of each pixel of the upright image: [H, W], uint8, or int32 for many classes.

        Values are indices of `classes`, and `ignore`. Raises ImageError if mask or image cannot be
        read, their sizes differ, or the mask has values without a class.
        """
        orientation, _ = self.turn(index)
        stored = self.masks.read(int(self.indices[index]))
        if orientation != 1:
            stored = np.array(upright(Image.fromarray(stored), orientation))
        places = self._lookup[stored]
        if places.min() < 0:
            unknown = np.unique(stored[places < 0]).tolist()
            raise ImageError(self.mask_name(index), self._why_unknown(unknown))
        largest = max(self.ignore, len(self.classes) - 1)
        return places.astype(np.uint8 if largest < 256 else np.int32)

    def targets(self, indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Masks `[H, W]`, uint8 or int32."""
        return [torch.from_numpy(self.mask(index)) for index in indices]

    def turn(self, index: int, facts: ImageFacts | None = None) -> tuple[int, bool]:
        """How a mask must be turned to lie on its upright image, by their sizes.

        If the image has an EXIF orientation and the mask has the size of the image as stored, not
        upright, the mask was made without regard to the orientation, and is turned with the image.
        Otherwise it is taken as it is.

        Returns:
            An EXIF orientation, 1 to 8, and whether the sizes leave no doubt about it.
        """
        facts = image_facts(self.name(index)) if facts is None else facts
        height, width, upright = self.masks.size(int(self.indices[index]))
        if (height, width) == (facts.height, facts.width):
            certain = upright or facts.orientation == 1
            return 1, certain or (facts.orientation >= 5 and height != width)
        swapped = (height, width) == (facts.width, facts.height)
        if facts.orientation >= 5 and not upright and swapped:
            return facts.orientation, True
        raise MaskSizeError(
            self.mask_name(index),
            f"the mask has {width} x {height} pixels, but its image {self.name(index)} has "
            f"{facts.width} x {facts.height}",
        )

    def _why_unknown(self, unknown: Collection[int]) -> str:
        places = [value for value, place in self.masks.values.items() if place != IGNORED]
        ignored = [value for value, place in self.masks.values.items() if place == IGNORED]
        return (
            f"no class has the value {format_ranges(unknown)}; classes are "
            f"{format_ranges(places)}, ignored is {format_ranges(ignored)}"
        )

    @cached_property
    def _lookup(self) -> np.ndarray:
        """int32 [MAX_VALUE + 1]: stored value -> index of its class, or `ignore`; -1: unknown."""
        lookup = np.full(MAX_VALUE + 1, -1, np.int32)
        for value, place in self.masks.values.items():
            lookup[value] = self.ignore if place == IGNORED else self.class_map[place]
        return lookup

    def examine(
        self, index: int, facts: ImageFacts | None, *, decode: bool = False, count: bool = True
    ) -> Examination:
        name, image = self.mask_name(index), int(self.indices[index])
        try:
            issues: list[Issue] = []
            if facts is not None and not self.turn(index, facts)[1]:
                message = (
                    "is turned by its EXIF orientation, and its mask would fit either way; it is "
                    "taken to lie on the upright image"
                )
                issues.append(Issue(DOUBTFUL_MASKS, self.name(index), message, "warning"))
            if not decode:
                file = self.masks.file(image)
                if file is not None and not is_complete(file, image_facts(file).format):
                    self.masks.read(image)
                return Examination(issues)
            pixels = np.bincount(self.masks.read(image).ravel())
        except (ImageError, DataError) as error:
            category = WRONG_SIZES if isinstance(error, MaskSizeError) else UNREADABLE_MASKS
            reason = getattr(error, "reason", str(error))
            return Examination([Issue(category, name, reason, image=image)])
        values = np.flatnonzero(pixels)
        places = self._lookup[values]
        if unknown := values[places < 0].tolist():
            message = self._why_unknown(unknown)
            issues.append(Issue(UNKNOWN_VALUES, name, message, image=image))
        counts: dict[int | str, int] = {}
        for place, number in zip(places.tolist(), pixels[values].tolist(), strict=True):
            if place >= 0:
                key = "ignored" if place == self.ignore else place
                counts[key] = counts.get(key, 0) + number
        return Examination(issues, counts)

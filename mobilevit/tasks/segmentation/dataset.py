"""Images with a class for every pixel, and the files that hold these classes: index masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from mobilevit.data.formats.folders import DataError
from mobilevit.data.images import ImageError, image_facts, orientation_of, pillow, upright
from mobilevit.data.mask_classes import HIGHEST, Colours, marking, spans


class MaskSizeError(ImageError):
    """A mask that does not lie on its image."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskSamples(ABC):
    """Images, and a mask that lies on each of them.

    A format derives from it and reads what is stored (`mask_file`, `read`); here stored values
    become classes, and masks are laid on their upright images.
    """

    root: Path
    format: str
    origin: str
    """Where the samples were found, for people to read."""
    classes: tuple[str, ...]
    """Names; their places are the values of `mask`. A background is a class like others."""
    ignore: int
    """The value of `mask` that has no class: loss and metrics pass over it."""
    values: Mapping[int, int]
    """Value in the stored mask -> place in `classes`, or `ignore`."""
    images: tuple[Path, ...]
    unmatched: tuple[tuple[Path, str], ...] = ()
    """Files that are no samples as they lack something: (file, what it lacks)."""
    PER_SAMPLE: ClassVar[tuple[str, ...]] = ("images",)
    """Fields with a value for each sample."""

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.images)

    def source(self, index: int) -> Path:
        """The image's file."""
        return self.images[index]

    def name(self, index: int) -> str:
        """What to call a sample in messages and reports: the image's path."""
        return str(self.images[index])

    @abstractmethod
    def mask_file(self, index: int) -> Path | None:
        """The image that the mask is read from; None where it is made from something else."""

    def mask_name(self, index: int) -> str:
        """What to call a sample's mask in messages: its path."""
        return str(self.mask_file(index))

    def stored_size(self, index: int) -> tuple[int, int, bool]:
        """Height and width of what `read` gives, and whether that is known to be upright.

        Raises:
            ImageError: the mask cannot be read.
        """
        facts = image_facts(self.mask_name(index))
        return facts.height, facts.width, facts.orientation != 1

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The mask as it is stored: values, uint8 or uint16 [H, W].

        Raises:
            ImageError: the mask cannot be read.
        """

    def some(self, indices: Sequence[int]) -> Self:
        """The samples at `indices`, in this order."""
        chosen: dict[str, Any] = {
            field: tuple(getattr(self, field)[index] for index in indices)
            for field in self.PER_SAMPLE
        }
        return replace(self, **chosen)

    def mask(self, index: int) -> np.ndarray:
        """The class of each pixel of the upright image: [H, W], uint8, or int32 if too small.

        Values are places in `classes`, and `ignore`.

        Raises:
            MaskSizeError: the mask has another size than its image.
            ImageError: mask or image cannot be read, or the mask has values that are no class.
        """
        stored = self.stored(index)
        places = self._places[stored]
        if places.min() < 0:
            raise ImageError(self.mask_name(index), self.why_outside(self.outside(stored)))
        return places.astype(
            np.uint8 if max(self.ignore, len(self.classes) - 1) < 256 else np.int32
        )

    def stored(self, index: int) -> np.ndarray:
        """The stored values, uint8 or uint16 [H, W], turned to lie on the upright image.

        Raises:
            MaskSizeError: the mask has another size than its image.
            ImageError: mask or image cannot be read.
        """
        orientation, _ = self.turn(index)
        stored = self.read(index)
        if orientation == 1:
            return stored
        return np.array(upright(Image.fromarray(stored), orientation))

    def turn(self, index: int) -> tuple[int, bool]:
        """How a mask must be turned to lie on its upright image, as the headers have it.

        Where the image has an EXIF orientation, and the mask the size of the image as it is
        stored and not that of the upright one, the mask was made without regard to the
        orientation, and is turned with the image. Otherwise it is taken as it is.

        Returns:
            An EXIF orientation, 1 to 8, and whether the sizes leave no doubt about it.

        Raises:
            MaskSizeError: the mask has neither size.
            ImageError: mask or image cannot be read.
        """
        facts = image_facts(self.source(index))
        height, width, upright = self.stored_size(index)
        if (height, width) == (facts.height, facts.width):
            told = upright or facts.orientation == 1
            return 1, told or (facts.orientation >= 5 and height != width)
        if (
            facts.orientation >= 5
            and not upright
            and (height, width) == (facts.width, facts.height)
        ):
            return facts.orientation, True
        raise MaskSizeError(
            self.mask_name(index),
            f"the mask has {width} x {height} pixels, but its image {self.name(index)} has "
            f"{facts.width} x {facts.height}",
        )

    def outside(self, stored: np.ndarray) -> list[int]:
        """Stored values that are neither a class nor ignored, in order."""
        return [value for value in np.unique(stored).tolist() if value not in self.values]

    def why_outside(self, outside: Collection[int]) -> str:
        """Say which values are no classes, and which are."""
        places = [value for value, place in self.values.items() if place != self.ignore]
        ignored = [value for value, place in self.values.items() if place == self.ignore]
        return (
            f"no class has the value {spans(outside)}; classes are {spans(places)}, "
            f"ignored is {spans(ignored)}"
        )

    def relabelled(self, classes: Sequence[str]) -> Self:
        """The same samples with the values of other classes, such as a model's; names are matched.

        Raises:
            DataError: a class is not among `classes`.
        """
        if unknown := [name for name in self.classes if name not in classes]:
            raise DataError(
                f"{self.root}: unknown classes: {', '.join(unknown)}; known: {', '.join(classes)}"
            )
        ignore = marking(self.ignore, len(classes))
        places = {self.ignore: ignore}
        places |= {old: classes.index(name) for old, name in enumerate(self.classes)}
        values = {value: places[place] for value, place in self.values.items()}
        return replace(self, classes=tuple(classes), values=values, ignore=ignore)

    @cached_property
    def _places(self) -> np.ndarray:
        """int32 [HIGHEST + 1]: stored value -> place or `ignore`; -1 where it is neither."""
        places = np.full(HIGHEST + 1, -1, np.int32)
        for value, place in self.values.items():
            places[value] = place
        return places


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskFiles(MaskSamples):
    """Images with a file for each mask."""

    masks: tuple[Path, ...]
    """The mask of each image."""
    colours: Colours | None = None
    """What the colours of RGB masks stand for."""
    PER_SAMPLE = ("images", "masks")

    def mask_file(self, index: int) -> Path:
        """The mask's file."""
        return self.masks[index]

    def read(self, index: int) -> np.ndarray:
        """The file's values; see `read_mask`."""
        return read_mask(self.masks[index], colours=self.colours)


@dataclass(frozen=True)
class MaskTrainVal:
    """What to train on and what to evaluate by, with the same classes and values."""

    train: MaskSamples
    val: MaskSamples
    note: str
    """How the two came about, for people to read."""


def read_mask(path: str | Path, *, colours: Colours | None = None) -> np.ndarray:
    """Read the values of a mask: those of a palette image are its indices, never its colours.

    Grey images of 1, 2, 4, 8 and 16 bits give their values as they are stored: 1-bit ones 0 and 1.
    An EXIF orientation of the mask's own is applied.

    Args:
        path: the file.
        colours: what the colours of an RGB image stand for; without it such a mask is refused.

    Returns:
        [H, W], uint8, or uint16 where values can be larger.

    Raises:
        ImageError: the file cannot be read, or holds no values that could be trusted.
    """
    name = str(path)
    facts = image_facts(path)
    if facts.format in ("JPEG", "MPO"):
        raise ImageError(name, "JPEG changes values: a mask is a PNG, or another exact format")
    with pillow(name), Image.open(path, formats=(facts.format,)) as image:
        scale = _scale(image, name)
        image.load()
        stored = np.array(upright(image, orientation_of(image)))  # of a palette image the indices
        mode = image.mode
    if mode in ("1", "L", "P"):
        return stored.astype(np.uint8) // np.uint8(scale)
    if mode == "I" or mode.startswith("I;16"):
        low, high = int(stored.min()), int(stored.max())
        if low < 0 or high > HIGHEST:
            raise ImageError(name, f"values from {low} to {high}; masks hold 0 to {HIGHEST}")
        return stored.astype(np.uint16)
    if mode not in ("RGB", "RGBA"):
        raise ImageError(name, f"a mask has one channel of whole numbers; this is of mode {mode}")
    if colours is not None:
        return _by_colour(stored[..., :3], colours, name)
    grey = bool((stored[..., :3] == stored[..., :1]).all())
    raise ImageError(
        name,
        f"an {mode} mask, and nothing says what its colours stand for: "
        + ("its channels are equal, so save one of them" if grey else "save indices")
        + ', or state the colours in classes.json, {"name": [red, green, blue], ...}',
    )


def voc_palette(count: int = 256) -> list[tuple[int, int, int]]:
    """The colours that Pascal VOC gives to values: the lowest bits of a value count most."""
    palette = []
    for value in range(count):
        channels = [0, 0, 0]
        for bit in range(8):  # bit 0 of the value to red, 1 to green, 2 to blue, 3 to red, ...
            channels[bit % 3] |= (value >> bit & 1) << (7 - bit // 3)
        palette.append((channels[0], channels[1], channels[2]))
    return palette


def _scale(image: Image.Image, name: str) -> int:
    """What Pillow is about to multiply grey values of 2 and 4 bits with, to make them 8-bit ones.

    Raises:
        ImageError: values are scaled in a way that cannot be undone.
    """
    if not isinstance(image, ImageFile) or not image.tile:
        return 1
    tile = image.tile[0]
    raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name.startswith("ppm") and more[0] not in (255, 65535):
        raise ImageError(name, f"its white is {more[0]}: save the mask as PNG, or with 255")
    return {"L;2": 85, "L;4": 17}.get(str(raw), 1)


def _by_colour(rgb: np.ndarray, colours: Colours, name: str) -> np.ndarray:
    """uint8 [H, W, 3] -> the values of its colours, uint16 [H, W]."""
    known = sorted((_code(*colour), value) for colour, value in colours.items())
    codes, values = (np.array(column) for column in zip(*known, strict=True))
    seen = _code(*np.moveaxis(rgb.astype(np.int64), 2, 0))
    places = np.searchsorted(codes, seen).clip(max=len(codes) - 1)
    if (unknown := codes[places] != seen).any():
        first = ", ".join(
            str(tuple(colour)) for colour in np.unique(rgb[unknown], axis=0)[:3].tolist()
        )
        raise ImageError(name, f"colours that stand for no class, such as {first}")
    return values[places].astype(np.uint16)


def _code(red: Any, green: Any, blue: Any) -> Any:
    return (red << 16) + (green << 8) + blue

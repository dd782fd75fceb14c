"""A region of an image at the size that is asked for, without decoding all of the image.

Training crops at random, so most of a photo's pixels are decoded for nothing. Of a JPEG the header
says how large it is; once the crop is drawn, the file is decoded at the smallest size that holds
enough of it, and only down to the crop's last row. Every other format is decoded whole.

Such pixels differ a little from those of the plain way, which decodes all, crops and resizes;
`docs/input.md` states how much. The plain way is `exact`.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import IO, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data.images import open_image, opened, orientation_of
from mobilevit.data.pillow_guard import pillow

Decode: TypeAlias = Literal["fast", "exact"]

WHOLE = 0.8
"""Above this share of a JPEG's rows, it is as fast to decode the others too."""
_BLOCK = 16384
"""Bytes that are decoded between two looks at how far the decoder has come."""


class Region(NamedTuple):
    """A rectangle of whole pixels in an upright image."""

    top: int
    left: int
    height: int
    width: int


class DecodableImage(Protocol):
    """An image of which regions can be had."""

    height: int
    """Pixels, upright."""
    width: int
    """Pixels, upright."""

    def pixels(
        self, region: Region, height: int, width: int, interpolation: v2.InterpolationMode
    ) -> Tensor:
        """The region, resized: uint8 `[3, height, width]`, RGB.

        Raises:
            ImageError: the image cannot be decoded.
        """


@contextmanager
def open_decodable(
    source: str | os.PathLike[str] | bytes | Image.Image, *, decode: Decode
) -> Iterator[DecodableImage]:
    """Open an image, to say which region of it is wanted.

    Args:
        source: as `open_image` takes it, arrays excepted.
        decode: whether pixels are those of the plain way ("exact"), or close to them ("fast").

    Raises:
        ImageError: the image cannot be read.
    """
    if decode not in ("fast", "exact"):
        raise ValueError(f"decode must be fast or exact, not {decode!r}")
    if decode == "exact":
        yield _Exact(open_image(source))
        return
    if not isinstance(source, Image.Image):
        with opened(source) as (image, name):
            if isinstance(image, JpegImageFile) and image.mode in ("RGB", "L"):
                yield _Jpeg(image, name)
                return
    yield _Decoded(open_image(source))


class _Exact:
    """The plain way: an image whose pixels Pillow crops and resizes."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.width, self.height = image.size

    def pixels(
        self, region: Region, height: int, width: int, interpolation: v2.InterpolationMode
    ) -> Tensor:
        resized = TF.resized_crop(self.image, *region, [height, width], interpolation)
        return TF.pil_to_tensor(resized)


class _Decoded:
    """An image whose pixels torch resizes, which is three times as fast as Pillow."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.width, self.height = image.size

    def pixels(
        self, region: Region, height: int, width: int, interpolation: v2.InterpolationMode
    ) -> Tensor:
        return _resized(_part(self.image, region), height, width, interpolation)


class _Jpeg:
    """A JPEG of which only the header has been read."""

    def __init__(self, image: JpegImageFile, name: str) -> None:
        self.image, self.name = image, name
        with pillow(name):
            self.orientation = orientation_of(image)
        self.width, self.height = image.size
        if self.orientation >= 5:
            self.width, self.height = self.height, self.width

    def pixels(
        self, region: Region, height: int, width: int, interpolation: v2.InterpolationMode
    ) -> Tensor:
        stored = self._stored(region)
        if self.orientation >= 5:
            height, width = width, height
        scale = _scale(stored.height, stored.width, height, width)
        if scale == 1:
            x = _resized(self._at_full_size(stored), height, width, interpolation)
        else:
            image = self._decoded(stored, scale)
            x = _resized_part(image, stored, scale, height, width, interpolation)
        return self._upright(x)

    def _at_full_size(self, region: Region) -> Tensor:
        """A region as it is: uint8 `[3, H, W]`."""
        top, left, tall, wide = region
        if top + tall > WHOLE * self.image.height:
            with pillow(self.name):
                pixels = _turbo(self.image)
            if pixels is not None:
                part = pixels[top : top + tall, left : left + wide]
                return torch.from_numpy(part).permute(2, 0, 1)
        return _part(self._decoded(region, 1), region)

    def _decoded(self, region: Region, scale: int) -> Image.Image:
        """The image, `scale` times smaller; rows below the region may be missing."""
        image = self.image
        with pillow(self.name):
            if scale > 1:
                image.draft(None, (image.width // scale, image.height // scale))
            _decode(image, math.ceil((region.top + region.height) / scale))
            return image if image.mode == "RGB" else image.convert("RGB")

    def _stored(self, region: Region) -> Region:
        """A region of the upright image, in the image as it is stored."""
        top, left, height, width = region
        if self.orientation in (2, 3, 6, 7):
            left = self.width - left - width
        if self.orientation in (3, 4, 7, 8):
            top = self.height - top - height
        if self.orientation >= 5:
            return Region(left, top, width, height)
        return Region(top, left, height, width)

    def _upright(self, x: Tensor) -> Tensor:
        """Turn what was stored: the other way round than `_stored`."""
        if self.orientation >= 5:
            x = x.transpose(1, 2)
        if self.orientation in (2, 3, 6, 7):
            x = x.flip(2)
        if self.orientation in (3, 4, 7, 8):
            x = x.flip(1)
        return x


def shrunk(
    source: str | os.PathLike[str] | bytes | Image.Image, height: int, width: int
) -> tuple[Image.Image, int]:
    """Read a whole image, of a JPEG at a part of its size: 1/2, 1/4 or 1/8.

    Args:
        source: as `open_image` takes it.
        height: that the upright image must keep, in pixels, unless it has less as it is.
        width: the same.

    Returns:
        The upright RGB image, and how many times smaller than stored it is: 1, 2, 4 or 8.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(source, Image.Image):
        return open_image(source), 1
    scale = 1
    with opened(source) as (image, name):
        if isinstance(image, JpegImageFile):
            with pillow(name):
                turned = orientation_of(image) >= 5
            tall, wide = image.size if turned else image.size[::-1]
            scale = _scale(tall, wide, height, width)
    return open_image(source, shrink_to=(height, width)), scale


def _scale(tall: int, wide: int, height: int, width: int) -> int:
    """How many times smaller libjpeg may decode what has to keep `height` x `width` pixels."""
    return next((s for s in (8, 4, 2) if tall >= s * height and wide >= s * width), 1)


@cache
def _simplejpeg() -> ModuleType | None:
    """The package of that name, if it is installed: it has the same decoder in fewer steps."""
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    return importlib.import_module("simplejpeg")


def _turbo(image: JpegImageFile) -> np.ndarray | None:
    """All of an image's pixels `[H, W, 3]`; None where they are left to Pillow."""
    package, file = _simplejpeg(), image.fp
    if package is None or file is None:
        return None
    file.seek(0)
    try:
        pixels = package.decode_jpeg(file.read())
    except ValueError:
        return None  # it may well be damaged: Pillow says so, or reads it all the same
    return pixels if pixels.shape == (image.height, image.width, 3) else None


class _EnoughError(Exception):
    """The rows that are wanted have been decoded."""


class _Until:
    """A file that is read until its image's first `rows` rows are there."""

    def __init__(self, file: IO[bytes], image: ImageFile, rows: int) -> None:
        self.file, self.image, self.rows = file, image, rows
        self.seek, self.tell = file.seek, file.tell
        self.zeros: bool | None = None

    def read(self, size: int) -> bytes:
        # Rows come one after another into memory that was all zeros. One that is black throughout
        # looks as if it had not come yet: then more is decoded, which does no harm.
        last = self.image.im.crop((0, self.rows - 1, self.image.width, self.rows))
        if self.zeros is None:
            self.zeros = last.getbbox() is None
        elif self.zeros and last.getbbox() is not None:
            raise _EnoughError
        return self.file.read(size)


def _decode(image: JpegImageFile, rows: int) -> None:
    """Decode at least the first `rows` rows; what is below them may stay black."""
    file = image.fp
    assert file is not None
    if rows < image.height:
        image.decodermaxblock = _BLOCK
        image.fp = _Until(file, image, rows)  # type: ignore[assignment]
    try:
        image.load()
    except _EnoughError:
        image.tile = []  # Pillow's sign that there is nothing left to decode
        image.fp = None


def _part(image: Image.Image, region: Region) -> Tensor:
    """A region of a decoded image: uint8 `[3, H, W]`."""
    top, left, height, width = region
    pixels = np.array(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _resized(x: Tensor, height: int, width: int, interpolation: v2.InterpolationMode) -> Tensor:
    """uint8 `[3, H, W]` -> `[3, height, width]`."""
    # torch's kernel for bytes wants colours side by side and no gaps: a third faster.
    batch = x[None].contiguous(memory_format=torch.channels_last)
    return TF.resize(batch, [height, width], interpolation)[0]


def _resized_part(
    image: Image.Image,
    region: Region,
    scale: int,
    height: int,
    width: int,
    interpolation: v2.InterpolationMode,
) -> Tensor:
    """A region of an image that was decoded `scale` times smaller, where it begins in mid-pixel.

    Only Pillow resizes from such places.
    """
    box = [side / scale for side in (region.left, region.top)]
    box += [(region.left + region.width) / scale, (region.top + region.height) / scale]
    left, top = math.floor(box[0]), math.floor(box[1])
    right, bottom = math.ceil(box[2]), math.ceil(box[3])
    part = image.crop((left, top, right, bottom))  # ahead, for resizing looks beyond its box
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    mode = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    return TF.pil_to_tensor(part.resize((width, height), mode[interpolation.value], box=inner))

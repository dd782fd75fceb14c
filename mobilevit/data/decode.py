"""Decoding for training: one region of an image, at the requested size.

Training crops at random, so most of an image's pixels would be decoded for nothing. The crop is
therefore drawn first, from the size in the header, and a JPEG is decoded at 1/2, 1/4 or 1/8 of its
size (which libjpeg does while decoding) as long as the crop keeps enough pixels. Other formats are
decoded at full size. `docs/input.md` states how much the pixels differ from exact decoding.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.data.cache import Decoded, ImageCache
from mobilevit.data.images import (
    load_rgb,
    open_header,
    open_image,
    orientation_of,
    pillow,
    upright,
    upright_size,
)

try:  # the optional package that calls libjpeg-turbo directly: the same pixels in less time
    import simplejpeg
except ModuleNotFoundError:
    simplejpeg = None

Decode: TypeAlias = Literal["fast", "exact"]
FileSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image


class Region(NamedTuple):
    """A rectangle in an upright image, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class DecodableImage:
    """An upright RGB image of which regions can be read at another size."""

    height: int
    width: int
    load: Callable[[int], Image.Image | np.ndarray]
    """Decodes it so many times smaller: an image, or its pixels `[H, W, 3]`."""
    reducible: bool = False
    """Whether `load` can decode it at 1/2, 1/4 and 1/8 of its size."""
    exact: bool = False
    """Whether to crop and resize as torchvision's transforms do with PIL images."""

    def pixels(
        self, region: Region, height: int, width: int, interpolation: v2.InterpolationMode
    ) -> Tensor:
        """Crop and resize a region: uint8 `[3, height, width]`, RGB."""
        if self.exact:
            resized = TF.resized_crop(self.load(1), *region, [height, width], interpolation)
            return TF.pil_to_tensor(resized)
        scale = self.scale(region.height, region.width, height, width)
        image = self.load(scale)
        # In a smaller image, regions start mid-pixel.
        left, top = region.left / scale, region.top / scale
        right, bottom = left + region.width / scale, top + region.height / scale
        x, y = math.floor(left), math.floor(top)
        # Cropped first, because resizing also reads pixels outside its box.
        if isinstance(image, np.ndarray):
            part = image[y : math.ceil(bottom), x : math.ceil(right)]
        else:
            part = np.array(image.crop((x, y, math.ceil(right), math.ceil(bottom))))
        if scale == 1:
            # torch's uint8 kernel is three times as fast as Pillow, and a third faster on
            # channels-last input without gaps.
            pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            return TF.resize(pixels, [height, width], interpolation)[0]
        box = (left - x, top - y, right - x, bottom - y)
        # Only Pillow resizes from a box with fractional edges.
        mode = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        resized = Image.fromarray(part).resize((width, height), mode[interpolation.value], box=box)
        return TF.pil_to_tensor(resized)

    def scale(self, stored_height: int, stored_width: int, height: int, width: int) -> int:
        """The largest reduction (8, 4, 2 or 1) that keeps at least `height` x `width` pixels."""
        largest = min(stored_height // height, stored_width // width) if self.reducible else 1
        return next((scale for scale in (8, 4, 2) if scale <= largest), 1)


@contextmanager
def open_decodable(
    source: FileSource, *, decode: Decode, cache: ImageCache | None = None
) -> Iterator[DecodableImage]:
    """Open an image to read one region of it.

    Args:
        source: as for `open_image`, except arrays.
        decode: "exact", or "fast" for pixels that are close to the exact ones.
        cache: where decoded files are stored; it changes no pixel.
    """
    if decode not in ("fast", "exact"):
        raise ValueError(f"decode must be fast or exact, not {decode!r}")
    if decode == "exact" or isinstance(source, Image.Image):
        image = open_cached(source, cache)
        yield DecodableImage(image.height, image.width, lambda _: image, exact=decode == "exact")
        return
    with open_header(source) as (file, name):
        # The colours of other JPEGs (CMYK) need more than a conversion to RGB.
        if isinstance(file, JpegImageFile) and file.mode in ("RGB", "L"):
            with pillow(name):
                size = upright_size(file, orientation_of(file))

            def load(scale: int) -> Image.Image | np.ndarray:
                if cache is None:
                    return _decoded(file, name, scale)
                variant = f"1/{scale}"
                return cache.load(source, variant, lambda: (_decoded(file, name, scale), size))[0]

            yield DecodableImage(*size, load, reducible=True)
        else:
            image = load_rgb(file, name) if cache is None else open_cached(source, cache)
            yield DecodableImage(image.height, image.width, lambda _: image)


def open_cached(source: FileSource, cache: ImageCache | None) -> Image.Image:
    """Read an image as `open_image` does, from the cache if there is one and it has it."""
    if cache is None or isinstance(source, Image.Image):
        return open_image(source)

    def decode() -> Decoded:
        image = open_image(source)
        return image, (image.height, image.width)

    return Image.fromarray(cache.load(source, "exact", decode)[0])


def open_reduced(
    source: FileSource, height: int, width: int, *, cache: ImageCache | None = None
) -> tuple[Image.Image, int]:
    """Read an image, which may be smaller than stored: a JPEG at 1/2, 1/4 or 1/8 of its size.

    Args:
        source: as for `open_image`, except arrays.
        height: least height of the upright result, unless the file has less.
        width: least width, likewise.
        cache: where decoded files are stored; it changes no pixel.

    Returns:
        The upright RGB image, and how many times smaller than stored it is: 1, 2, 4 or 8.

    >>> import io
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (640, 480)).save(file, "JPEG")
    >>> image, scale = open_reduced(file.getvalue(), height=100, width=100)
    >>> image.size, scale
    ((160, 120), 4)
    """
    with open_decodable(source, decode="fast", cache=cache) as opened:
        scale = opened.scale(opened.height, opened.width, height, width)
        image = opened.load(scale)
    return image if isinstance(image, Image.Image) else Image.fromarray(image), scale


def _decoded(file: ImageFile, name: str, scale: int) -> Image.Image | np.ndarray:
    """Decode a JPEG `scale` times smaller: an upright RGB image, or its pixels `[H, W, 3]`."""
    with pillow(name):
        orientation = orientation_of(file)
        pixels = _simplejpeg_pixels(file, scale)
        if pixels is not None:
            return pixels if orientation == 1 else upright(Image.fromarray(pixels), orientation)
        file.draft(None, (file.width // scale, file.height // scale))
    return load_rgb(file, name)


def _simplejpeg_pixels(file: ImageFile, scale: int) -> np.ndarray | None:
    """Pixels `[H, W, 3]` of a JPEG as stored; None if Pillow must decode it."""
    if simplejpeg is None or file.fp is None:
        return None
    height, width = -(-file.height // scale), -(-file.width // scale)
    file.fp.seek(0)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            file.fp.read(), min_height=height, min_width=width
        )
    except ValueError:
        return None  # perhaps damaged: Pillow reports how, or still reads it
    return pixels if pixels.shape == (height, width, 3) else None

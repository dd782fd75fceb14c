"""Files, bytes and arrays -> upright RGB images, or an error that states the reason.

Training, evaluation, prediction and checks all read images through `open_image`, so they agree on
orientation, transparency and bit depth. An image is read correctly or refused: nothing is clipped,
guessed or replaced by a blank image.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Literal, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from mobilevit.data.image_formats import (
    FORMATS,
    PILLOW_ERRORS,
    explain_unreadable,
    has_extension_of,
)
from mobilevit.data.image_formats import ImageError as ImageError
from mobilevit.data.image_formats import pillow as pillow

MAX_PIXELS = 178_956_970
"""Files with more pixels are refused by their header (Pillow's own limit)."""

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | torch.Tensor
Layout: TypeAlias = Literal["HWC", "CHW"]

_TRANSPOSE = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageFacts:
    """The header of an image file; pixels are not decoded."""

    format: str
    """Format of the content, whatever the extension: "JPEG", "PNG", ..."""
    width: int
    height: int
    """Like the width, in pixels and with the EXIF orientation applied."""
    mode: str
    """Pillow's name for the stored channels: "RGB", "L", "CMYK", "I;16", ..."""
    frames: int
    """Number of images in the file, of which the first is read."""
    orientation: int
    """EXIF orientation 1 to 8; 1 where none is stored or it cannot be read."""
    extension_matches: bool
    """Whether the extension is one of the format's."""


def open_image(
    source: ImageSource,
    *,
    layout: Layout | None = None,
) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    - The EXIF orientation is applied; of an animation, the first frame is read.
    - Transparency of any kind is composited over white.
    - 16-bit values are rescaled (65535 becomes 255), never clipped. 32-bit integers are read if
      they can only be 16-bit values; floats must lie in [0, 1].
    - CMYK, YCbCr, LAB and HSV are converted; embedded colour profiles are not applied.

    Args:
        source: a path, the bytes of a file, a PIL image (its current frame; it is not changed), a
            numpy array or a torch tensor. Arrays are (height, width), or have 1, 3 or 4 channels
            (grey, RGB, RGBA), as uint8, uint16, bool or floats in [0, 1]. Tensors are CHW.
        layout: where an array has its channels; needed only if its shape is ambiguous.

    Returns:
        A new image of mode "RGB" without metadata.

    Raises:
        ImageError: the image cannot be read, or not without a guess.
        ValueError: the shape of an array does not say where its channels are.
        TypeError: `source` is of another type.

    >>> open_image(np.zeros((480, 640, 3), np.uint8)).size
    (640, 480)
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return _from_array(source, layout)
    if layout is not None:
        raise ValueError("layout is for arrays only: files and PIL images state their own")
    if isinstance(source, Image.Image):
        with pillow("image"):
            source.load()
            orientation = orientation_of(source)
        return _upright_rgb(source, orientation, "image")
    if not isinstance(source, str | os.PathLike | bytes):
        raise TypeError(
            "an image is a path, bytes, a PIL image, a numpy array or a torch tensor, "
            f"not {type(source).__name__}"
        )
    with open_header(source) as (image, name):
        return load_rgb(image, name)


def load_rgb(image: ImageFile, name: str) -> Image.Image:
    """Decode a file whose header has been read; see `open_image`."""
    with pillow(name):
        key = _transparent_colour(image)
        image.load()
        if key is not None:
            image.info["transparency"] = key
        # Only now: a PNG may state its orientation after the pixels, and `load` turns a TIFF.
        orientation = orientation_of(image)
    return _upright_rgb(image, orientation, name)


def image_facts(source: str | os.PathLike[str] | bytes) -> ImageFacts:
    """Read the header of an image file; for bytes, `extension_matches` is true.

    A PNG that states its orientation after its pixels is reported as stored.
    """
    with open_header(source) as (image, name):
        with pillow(name):
            # Pillow's own PNG reader would decode the pixels to look for an orientation behind.
            orientation = orientation_of(image, getexif=Image.Image.getexif)
            frames = _frame_count(image)
        height, width = upright_size(image, orientation)
        image_format = str(image.format)
        return ImageFacts(
            format=image_format,
            width=width,
            height=height,
            mode=image.mode,
            frames=frames,
            orientation=orientation,
            extension_matches=isinstance(source, bytes) or has_extension_of(source, image_format),
        )


@contextmanager
def open_header(source: str | os.PathLike[str] | bytes) -> Iterator[tuple[ImageFile, str]]:
    """Open an image file and read its header: the image, not decoded yet, and its name."""
    if isinstance(source, bytes):
        name = f"{len(source)} bytes"
        yield _read_header(BytesIO(source), name), name
        return
    name = os.fspath(source)
    try:
        file = open(name, "rb")  # noqa: SIM115 - the errors of opening are not those of reading
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except IsADirectoryError:
        raise ImageError(name, "is a folder, not an image") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ImageError(name, f"cannot be opened: {error}") from error
    with file:
        yield _read_header(file, name), name


def _read_header(file: IO[bytes], name: str) -> ImageFile:
    """Recognise the format by content and check the size before anything is decoded."""
    head = file.read(4096)
    if not head:
        raise ImageError(name, "empty file")
    file.seek(0)
    with pillow(name):
        try:
            image = Image.open(file, formats=tuple(FORMATS))
        except UnidentifiedImageError:
            raise ImageError(name, explain_unreadable(head)) from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise ImageError(name, f"too large: {size}, more than {MAX_PIXELS:,} in all")
    return image


def orientation_of(
    image: Image.Image, *, getexif: Callable[[Image.Image], Image.Exif] | None = None
) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) also where it cannot be parsed."""
    try:
        exif = image.getexif() if getexif is None else getexif(image)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except PILLOW_ERRORS:
        return 1
    return int(value) if value in range(1, 9) else 1


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) of an image file with its EXIF orientation applied."""
    # A TIFF's header states its upright size.
    turned = orientation >= 5 and image.format != "TIFF"
    return (image.width, image.height) if turned else (image.height, image.width)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image by its EXIF orientation."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def upright_boxes(boxes: np.ndarray, orientation: int, *, height: int, width: int) -> np.ndarray:
    """Turn boxes, `[N, 4]` corners x1, y1, x2, y2, together with their image.

    `orientation` is EXIF's, 1 to 8; `height` and `width` are those of the stored image.

    >>> upright_boxes(np.array([[0, 0, 3, 1]]), 6, height=2, width=4)
    array([[1, 0, 2, 3]])
    """
    x1, y1, x2, y2 = boxes.T
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    return np.stack((y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2), axis=1)


def _frame_count(image: ImageFile) -> int:
    """Images in a file; 1 where those after the first, which are not read, are damaged."""
    try:
        return int(getattr(image, "n_frames", 1))
    except PILLOW_ERRORS:
        return 1


def _transparent_colour(image: ImageFile) -> int | tuple[int, ...] | None:
    """A PNG's transparent colour, scaled like its pixels, where Pillow does not do that."""
    # Pillow decodes 2 and 4 bit grey and 16 bit RGB to 8 bit, but keeps this colour as stored.
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return None
    rawmode = image.tile[0][3]
    if rawmode == "RGB;16B":
        return tuple(value >> 8 for value in key)
    scale = {"L;2": 85, "L;4": 17}.get(str(rawmode))
    return None if scale is None else key * scale


def _upright_rgb(image: Image.Image, orientation: int, name: str) -> Image.Image:
    """Convert a decoded image of any mode to upright RGB without metadata."""
    if image.mode.startswith("I;16"):
        image = _from_uint16(np.asarray(image), image.info.get("transparency"))
    elif image.mode == "I":
        image = _from_int32(image, name)
    elif image.mode == "F":
        image = Image.fromarray(_to_uint8(np.asarray(image), name))
    elif image.mode == "P" and image.palette is None:
        raise ImageError(name, "a palette image without a palette")
    with pillow(name):
        if image.mode == "La":  # Pillow converts this one to nothing but LA
            image = image.convert("LA")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        turned = upright(rgb, orientation)
        if turned is image:  # the caller's own, or tied to a file
            turned = turned.copy()
    turned.info = {}  # an orientation left in here would be applied twice
    return turned


def _from_uint16(values: np.ndarray, transparent: int | None) -> Image.Image:
    """Grey from values 0 to 65535 [H, W], with the transparent value, if any, made white."""
    grey = _to_uint8(values.astype(np.uint16), "image")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _from_int32(image: Image.Image, name: str) -> Image.Image:
    """32-bit integers -> grey, where they can only be 16-bit values in a wider container."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        reason = f"32-bit integers from {low} to {high}: only 16-bit ones (0 to 65535) are read"
        raise ImageError(name, reason)
    # A PPM states its white level, so Pillow has scaled it to 16 bit; other formats do not, and
    # such small values could as well be 8-bit ones.
    if 0 < high <= 255 and image.format != "PPM":
        reason = f"32-bit integers up to {high}: could be 8-bit or 16-bit values; save it as either"
        raise ImageError(name, reason)
    return _from_uint16(values, None)


def _from_array(source: np.ndarray | torch.Tensor, layout: Layout | None) -> Image.Image:
    """RGB from an array of two axes, or of three with 1, 3 or 4 channels."""
    if isinstance(source, torch.Tensor):
        layout = layout or "CHW"
        source = source.detach().cpu()
        array = (source.float() if source.is_floating_point() else source).numpy()
    else:
        array = source
    if layout not in (None, "HWC", "CHW"):
        raise ValueError(f'layout is "HWC" or "CHW", not {layout!r}')
    name = f"array of shape {array.shape}"
    if array.ndim not in (2, 3) or array.size == 0:
        raise ImageError(name, "an image has two axes, or three with 1, 3 or 4 channels")
    if array.ndim == 3:
        if (layout or _infer_layout(array.shape)) == "CHW":
            array = array.transpose(1, 2, 0)
        if array.shape[2] not in (1, 3, 4):
            raise ImageError(name, f"{array.shape[2]} channels: an image has 1, 3 or 4")
        if array.shape[2] == 1:
            array = array[:, :, 0]
    return _upright_rgb(Image.fromarray(_to_uint8(array, name)), 1, name)


def _infer_layout(shape: tuple[int, ...]) -> Layout:
    """Where the channels are, if only one end of the shape can hold them."""
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if first == last:
        which = "both" if first else "neither"
        raise ValueError(
            f"array of shape {shape}: {which} of the first and last axes can be channels; "
            'give layout="HWC" or layout="CHW"'
        )
    return "CHW" if first else "HWC"


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    """Values of a known range -> 0 to 255, rounded; always a copy."""
    if values.dtype == np.uint8:
        return values.copy()
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise ImageError(
            name, f"{values.dtype} states no range: give uint8, uint16 or [0, 1] floats"
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):  # also where one is not a number
        raise ImageError(name, f"floats must lie in [0, 1], these go from {low:g} to {high:g}")
    return np.rint(values * 255.0).astype(np.uint8)

"""The image formats that are read, and the errors of files that cannot be.

Left out on purpose: formats that run another program (EPS, PDF, WMF), hold measurements instead of
colours (FITS, SPIDER, MCIDAS, HDF5, GRIB, BUFR) or match almost any text (IMT).
"""

import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image

# Pillow's names, in the order in which a file's content is matched. TGA comes last: it has no
# signature.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "CUR",
    "ICNS", "PSD", "DDS", "DIB", "BLP", "DCX", "FLI", "FTEX", "GBR", "IM", "MSP", "PCD", "PCX",
    "PIXAR", "SGI", "SUN", "XBM", "XPM", "XVTHUMB", "TGA",
)  # fmt: skip
_SIGNED = tuple(name for name in FORMATS if name not in ("IM", "PCD", "TGA"))

_CONVERT = "is not read: convert it to JPEG or PNG first"
_DAMAGED = "damaged or truncated header of a"

# What files that cannot be read begin with, and what to say of them.
_REASONS = (
    (rb".{4}ftyphe", f"HEIC {_CONVERT}"),
    (rb".{4}ftypm[is]f1", f"HEIF {_CONVERT}"),
    (rb".{4}ftyp", "a video (MP4 family), not an image"),
    (rb"\xff\x0a|.{4}JXL \r\n", f"JPEG XL {_CONVERT}"),
    (rb"\x00\x00\x01[\xb3\xba]", "a video (MPEG), not an image"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS is not read: it is a program to run, not a raster image"),
    (rb"%PDF", "PDF is not read: it is a document, not a raster image"),
    (rb"PK\x03\x04", "a zip archive, not an image"),
    (rb"\x1f\x8b", "a gzip archive, not an image"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)", "not an image: a web page (HTML)"),
    (rb"(\xef\xbb\xbf)?\s*<(svg|\?xml)", "not a raster image: SVG or XML"),
    (rb"\xff\xd8", f"{_DAMAGED} JPEG file"),
    (rb"\x89PNG", f"{_DAMAGED} PNG file"),
    (rb"GIF8", f"{_DAMAGED} GIF file"),
    (rb"BM.{4}\x00{4}", f"{_DAMAGED} BMP file"),
    (rb"II\*\x00|MM\x00\*", f"{_DAMAGED} TIFF file"),
    (rb".{8}WEBP", f"{_DAMAGED} WebP file"),
    (rb"[^\x00-\x08\x0b\x0e-\x1f]+\Z", "not an image: a text file"),
)

# What Pillow raises on damaged files, collected by fuzzing. Only calls into Pillow are guarded, so
# that a mistake of our own is not reported as a broken file.
PILLOW_ERRORS: tuple[type[Exception], ...] = (
    OSError,  # truncated or broken data; files that no format recognises
    SyntaxError,  # a header that contradicts itself
    ValueError,  # impossible sizes, palettes and tiles
    LookupError,  # IndexError, KeyError: tables that end early, unknown modes
    TypeError,  # tags of another type than the format states
    AttributeError,  # tags that are missing
    EOFError,  # a header without an image
    struct.error,
    zlib.error,
    ArithmeticError,  # OverflowError, ZeroDivisionError: absurd sizes
    AssertionError,  # Pillow's own assumptions
    RuntimeError,  # the AVIF and WebP libraries
    MemoryError,
    Image.DecompressionBombError,  # an image within an image: ICO, ICNS, GIF frames
)

_ENDS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"\x00\x00\x00\x00IEND\xae\x42\x60\x82",
    "GIF": b"\x00;",
}


class ImageError(ValueError):
    """An image that cannot be read: `source` is its name, `reason` says why."""

    def __init__(self, source: str, reason: str) -> None:
        # Both go to `args`, which is pickled where the error crosses processes.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class _PillowSilence:
    """Hides the warnings of Pillow's modules while at least one thread is reading.

    `warnings.catch_warnings` alone is not safe here: all threads share the filters, and readers
    that overlap could restore them too early or not at all. So the first reader changes them and
    the last one restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._catcher = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._catcher.__exit__(None, None, None)


_silence = _PillowSilence()


@contextmanager
def pillow(name: str) -> Iterator[None]:
    """Guard calls into Pillow: hide its warnings, and turn its errors into `ImageError`."""
    with _silence:
        try:
            yield
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(name, f"too large: {error}") from error
        except MemoryError as error:
            raise ImageError(name, "does not fit into memory") from error
        except PILLOW_ERRORS as error:
            error_type = "" if isinstance(error, OSError) else f"{type(error).__name__} "
            raise ImageError(name, f"cannot be decoded: {error_type}{error}".rstrip()) from error


@cache
def image_extensions() -> frozenset[str]:
    """Extensions of the formats that are read: lower case, with the dot."""
    registered = Image.registered_extensions().items()
    return frozenset(extension for extension, name in registered if name in (*FORMATS, "MPO"))


def has_extension_of(path: str | os.PathLike[str], image_format: str) -> bool:
    """Whether a file's extension is one of those of its format."""
    named = Image.registered_extensions().get(Path(path).suffix.lower())
    # MPO: a JPEG with more images behind it, as phones and cameras save.
    return named == image_format or {named, image_format} == {"JPEG", "MPO"}


def explain_unreadable(head: bytes) -> str:
    """Why a file of no known format cannot be read, from its first few kilobytes."""
    for start, reason in _REASONS:
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return reason
    return "not an image that can be read: unknown or damaged format"


def recognise(file: Path) -> str | None:
    """Look into a file that is not named like an image.

    Returns:
        An empty string for an image, a reason for one that cannot be read, None for anything else.
        Formats without a signature count as anything else.
    """
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            reason = explain_unreadable(opened.read(4096))
        with pillow(str(file)), Image.open(file, formats=_SIGNED):
            return ""
    except ImageError:
        return reason if _CONVERT in reason or reason.startswith("damaged") else None
    except OSError as error:
        return f"cannot be opened: {error.strerror}"


def is_complete(path: Path, image_format: str) -> bool:
    """Whether a file has the last bytes of its format, so that it has surely not been cut off.

    False leaves it open, and only decoding decides: cameras and phones append to files, and most
    formats have no end mark.
    """
    with path.open("rb") as file:
        head = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 256, 0))
        tail = file.read()
    if image_format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    end = _ENDS.get(image_format)
    return end is not None and tail.rstrip(b"\x00").endswith(end)  # zeros: padding to full blocks

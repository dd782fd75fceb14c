"""The image formats that are read, and the errors of files that cannot be.

Left out on purpose: formats that run another program (EPS, PDF, WMF), hold measurements instead of
colours (FITS, SPIDER, MCIDAS, HDF5, GRIB, BUFR) or match almost any text (IMT).
"""

import codecs
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

# Pillow's name -> extensions, in the order in which a file's content is matched. TGA comes last: it
# has no signature.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "BLP": (".blp",),
    "DCX": (".dcx",),
    "FLI": (".fli", ".flc"),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "IM": (".im",),
    "MSP": (".msp",),
    "PCD": (".pcd",),
    "PCX": (".pcx",),
    "PIXAR": (".pxr",),
    "SGI": (".sgi", ".bw", ".rgb", ".rgba"),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "XVTHUMB": (),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}

_SIGNED = tuple(name for name in FORMATS if name not in ("IM", "PCD", "TGA"))

IMAGE_EXTENSIONS: frozenset[str] = frozenset(ext for exts in FORMATS.values() for ext in exts)
"""Extensions of these formats: lower case, with the dot."""

_CONVERT = "is not read: convert it to JPEG or PNG first"

# Files that are often found among photos but are not read: (offset, signature, message).
_NOT_READ: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyphe", f"HEIC {_CONVERT}"),
    (4, b"ftypmif1", f"HEIF {_CONVERT}"),
    (4, b"ftypmsf1", f"HEIF {_CONVERT}"),
    (4, b"ftyp", "a video (MP4 family), not an image"),
    (0, b"\xff\x0a", f"JPEG XL {_CONVERT}"),
    (4, b"JXL \r\n", f"JPEG XL {_CONVERT}"),
    (0, b"\x00\x00\x01\xb3", "a video (MPEG), not an image"),
    (0, b"\x00\x00\x01\xba", "a video (MPEG), not an image"),
    (0, b"%!PS", "EPS is not read: it is a program to run, not a raster image"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS is not read: it is a program to run, not a raster image"),
    (0, b"%PDF", "PDF is not read: it is a document, not a raster image"),
    (0, b"PK\x03\x04", "a zip archive, not an image"),
    (0, b"\x1f\x8b", "a gzip archive, not an image"),
)

# Signatures of common formats, to name the format of a file with a damaged header.
_DAMAGED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (8, b"WEBP", "WebP"),
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


def extensions_of(image_format: str) -> tuple[str, ...]:
    """The extensions of one of Pillow's formats: lower case, with the dot."""
    if image_format == "MPO":  # a JPEG with more images behind it, as phones and cameras save
        image_format = "JPEG"
    return FORMATS[image_format.upper()]


def explain_unreadable(head: bytes) -> str:
    """Why a file of no known format cannot be read, from its first few kilobytes."""
    for offset, signature, reason in _NOT_READ:
        if head.startswith(signature, offset):
            return reason
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "not an image: a web page (HTML)"
    if text.startswith((b"<svg", b"<?xml")):
        return "not a raster image: SVG or XML"
    if _is_text(head):
        return "not an image: a text file"
    for offset, signature, name in _DAMAGED:
        if head.startswith(signature, offset):
            return f"damaged or truncated header of a {name} file"
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


def _is_text(head: bytes) -> bool:
    """Whether the start of a file is UTF-8 without control characters."""
    try:
        # Incremental, because the last character may be cut off.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(character >= " " or character in "\t\n\f\r" for character in text)


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
    match image_format:
        case "JPEG" | "MPO":
            return tail.rstrip(b"\x00").endswith(b"\xff\xd9")  # zeros: padding to full blocks
        case "PNG":
            return tail.endswith(b"\x00\x00\x00\x00IEND\xae\x42\x60\x82")
        case "GIF":
            return tail.endswith(b"\x00;")
        case "WEBP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        case _:
            return False

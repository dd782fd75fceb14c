"""Which image formats are read, which extensions belong to them, and what other files are.

Formats that draw with another program (EPS, PDF, WMF), that hold measurements rather than colours
(FITS, SPIDER, MCIDAS, HDF5, GRIB, BUFR) or that would take almost any text for an image (IMT) are
left out on purpose.
"""

import codecs

# A format's name in Pillow -> the extensions that belong to it, in the order in which a file's
# content is tried. TGA comes last: it has no signature.
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

IMAGE_EXTENSIONS: frozenset[str] = frozenset(ext for exts in FORMATS.values() for ext in exts)
"""Extensions of the formats that are read: lower case, with the dot."""

_CONVERT = "is not read: convert it to JPEG or PNG first"

# Files that are often found among photos but are not read: (offset, signature, what to say).
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
    (0, b"\xd7\xcd\xc6\x9a", "WMF is not read: it is a drawing, not a raster image"),
    (40, b" EMF", "EMF is not read: it is a drawing, not a raster image"),
    (0, b"SIMPLE  =", "FITS is not read: it holds measurements, not colours"),
    (0, b"\x00\x00\x00\x00\x00\x00\x00\x04", "MCIDAS is not read: it holds measurements"),
    (0, b"\x89HDF", "HDF5 is not read: it holds measurements, not colours"),
    (0, b"GRIB", "GRIB is not read: it holds measurements, not colours"),
    (0, b"BUFR", "BUFR is not read: it holds measurements, not colours"),
    (0, b"PK\x03\x04", "a zip archive, not an image"),
    (0, b"\x1f\x8b", "a gzip archive, not an image"),
)

# Signatures of the common formats, to name what a file was before its header broke.
_DAMAGED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (8, b"WEBP", "WebP"),
)


def extensions_of(image_format: str) -> tuple[str, ...]:
    """Give the extensions, lower case with the dot, of what Pillow calls a format."""
    if image_format == "MPO":  # a JPEG with more images behind it, as phones and cameras save
        image_format = "JPEG"
    return FORMATS[image_format.upper()]


def explain_unreadable(head: bytes) -> str:
    """Say what a file is that no format recognises, evaluated by its first few thousand bytes."""
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


def _is_text(head: bytes) -> bool:
    """Whether the start of a file is UTF-8 without control characters."""
    try:
        # Incremental, because the last character may be cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(character >= " " or character in "\t\n\f\r" for character in text)

"""Every way to give an image ends in the same upright RGB pixels, or in a reason."""

from __future__ import annotations

import contextlib
import csv
import pickle
import re
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mobilevit.data import images
from mobilevit.data.image_formats import image_extensions
from mobilevit.data.images import ImageError, image_facts, open_image
from tests.data.factories import ORIENTATION, encode


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def photo(height: int = 40, width: int = 56) -> Image.Image:
    """A smooth image whose four corners differ, so that no turn or flip leaves it as it is."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 128 // (height + width)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def png(
    width: int, height: int, *, depth: int, colour: int, data: bytes, trns: bytes = b""
) -> bytes:
    """A PNG of one row, for bit depths that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", trns) if trns else b"")
        + chunk(b"IDAT", zlib.compress(b"\x00" + data))
        + chunk(b"IEND", b"")
    )


def u16(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


# Arrays and tensors


def test_arrays_tensors_and_pil_images_give_the_same_pixels() -> None:  # case A8
    hwc = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 13
    for image in (
        open_image(hwc),
        open_image(hwc.transpose(2, 0, 1), layout="CHW"),
        open_image(torch.from_numpy(hwc).permute(2, 0, 1)),
        open_image(Image.fromarray(hwc)),
        open_image(encode(Image.fromarray(hwc), "PNG")),
        open_image(hwc / np.float32(255)),
        open_image(torch.from_numpy(hwc).permute(2, 0, 1) / 255),
        open_image(hwc.astype(np.uint16) * 257),
        open_image(torch.from_numpy(hwc).permute(2, 0, 1).double() / 255),
    ):
        np.testing.assert_array_equal(pixels(image), hwc)


@pytest.mark.parametrize("shape", [(3, 4, 3), (1, 5, 4), (5, 6, 7), (2, 2, 2)])
def test_an_open_layout_is_asked_for(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layout="):
        open_image(np.zeros(shape, np.uint8))


def test_layout_is_inferred_where_one_axis_can_be_channels() -> None:
    assert open_image(np.zeros((3, 5, 6), np.uint8)).size == (6, 5)
    assert open_image(np.zeros((5, 6, 3), np.uint8)).size == (6, 5)
    assert open_image(np.zeros((5, 6), np.uint8)).size == (6, 5)
    assert open_image(np.zeros((1, 5, 6), np.uint8)).size == (6, 5)


def test_layout_is_for_arrays_and_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="layout"):
        open_image(photo(), layout="HWC")
    with pytest.raises(ValueError, match="NCHW"):
        open_image(np.zeros((4, 5, 3), np.uint8), layout="NCHW")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((6, 5, 3), 200.0), r"\[0, 1\].*200"),
        (np.full((6, 5, 3), -0.1), r"\[0, 1\]"),
        (np.full((6, 5, 3), np.nan), r"\[0, 1\]"),
        (np.zeros((6, 5, 3), np.int64), "int64"),
        (np.zeros((0, 5, 3), np.uint8), "two axes"),
        (np.zeros((1, 4, 5, 3), np.uint8), "two axes"),
    ],
)
def test_arrays_of_unknown_range_or_shape_are_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_image(array)


def test_bool_and_rgba_arrays() -> None:
    np.testing.assert_array_equal(pixels(open_image(np.array([[True, False]])))[..., 0], [[255, 0]])
    rgba = np.zeros((2, 5, 4), np.uint8)
    np.testing.assert_array_equal(pixels(open_image(rgba)), 255)  # transparent black over white


def test_callers_data_is_left_alone() -> None:
    array = np.full((5, 6, 3), 7, np.uint8)
    given = photo()
    given.getexif()[ORIENTATION] = 6
    before = given.tobytes()
    open_image(array).putpixel((0, 0), (1, 2, 3))
    assert open_image(given).size == (given.height, given.width)
    assert (array == 7).all()
    assert given.tobytes() == before
    assert given.getexif()[ORIENTATION] == 6


def test_anything_else_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="list"):
        open_image([1, 2])  # type: ignore[arg-type]


# Modes


def test_one_image_in_every_mode() -> None:  # case A28
    image = photo()
    grey = image.convert("L")
    want, want_grey = np.asarray(image).astype(int), np.asarray(grey.convert("RGB")).astype(int)
    wide = np.asarray(grey).astype(np.uint16) * 257
    sixteen = Image.fromarray(wide)
    big_endian = Image.frombytes("I;16B", grey.size, wide.astype(">u2").tobytes())
    for name, data, expected, tolerance in [
        ("L", encode(grey, "PNG"), want_grey, 0),
        ("LA", encode(grey.convert("LA"), "PNG"), want_grey, 0),
        ("P", encode(image.quantize(256), "PNG"), want, 6),
        ("RGBA", encode(image.convert("RGBA"), "PNG"), want, 0),
        ("CMYK", encode(image.convert("CMYK"), "TIFF"), want, 0),
        ("CMYK", encode(image.convert("CMYK"), "JPEG", quality=95), want, 6),
        ("I;16", encode(sixteen, "PNG"), want_grey, 0),
        ("I;16", encode(sixteen, "TIFF"), want_grey, 0),
        ("I;16B", encode(big_endian, "TIFF"), want_grey, 0),
        ("I", encode(sixteen, "PPM"), want_grey, 0),
        ("LAB", encode(image.convert("LAB"), "TIFF"), want, 4),
        ("1", encode(grey.point(lambda v: 255 * (v > 99), "1"), "PNG"), 255 * (want_grey > 99), 0),
    ]:  # fmt: skip
        assert image_facts(data).mode == name
        apart = np.abs(pixels(open_image(data)).astype(int) - expected).mean()
        assert apart <= tolerance, (name, apart)


@pytest.mark.parametrize(
    "mode", ["YCbCr", "HSV", "RGBX", "La", "RGBa", "PA", "I;16", "I;16B", "I;16L"]
)
def test_modes_that_only_pil_images_have(mode: str) -> None:
    image = photo()
    if mode.startswith("I;16"):
        values = np.asarray(image.convert("L")).astype(">u2" if mode == "I;16B" else "<u2") * 257
        converted = Image.frombytes(mode, image.size, values.astype(values.dtype).tobytes())
        expected = image.convert("L").convert("RGB")
    elif mode == "La":
        converted, expected = (
            image.convert("LA").convert("La"),
            image.convert("L").convert("RGB"),
        )
    elif mode == "RGBa":
        converted, expected = image.convert("RGBA").convert("RGBa"), image
    elif mode == "PA":
        converted, expected = (
            image.quantize(256).convert("PA"),
            image.quantize(256).convert("RGB"),
        )
    else:
        converted, expected = image.convert(mode), image
    assert converted.mode == mode
    difference = np.abs(pixels(open_image(converted)).astype(int) - np.asarray(expected))
    assert difference.max() <= (8 if mode in ("YCbCr", "HSV") else 0)


def test_sixteen_bit_is_rescaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 129, 255, 256, 32768, 65535]], np.uint16)
    got = pixels(open_image(Image.fromarray(values)))[0, :, 0]
    np.testing.assert_array_equal(got, [0, 0, 1, 1, 1, 128, 255])


def test_thirty_two_bit_integers_are_read_only_where_they_can_be_nothing_but_16_bit() -> None:
    def integers(*values: int) -> Image.Image:
        return Image.fromarray(np.array([values], np.int32))

    np.testing.assert_array_equal(
        pixels(open_image(integers(0, 32768, 65535)))[0, :, 0], [0, 128, 255]
    )
    np.testing.assert_array_equal(pixels(open_image(integers(0, 0))), 0)
    for values in [(0, 70000), (-1, 5000), (0, 255)]:
        with pytest.raises(ImageError, match="32-bit integers"):
            open_image(integers(*values))


def test_floats_are_read_in_0_to_1_only() -> None:
    got = open_image(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))
    np.testing.assert_array_equal(pixels(got)[0, :, 0], [0, 128, 255])
    with pytest.raises(ImageError, match=r"\[0, 1\]"):
        open_image(Image.fromarray(np.array([[0.0, 200.0]], np.float32)))


# Transparency


@pytest.mark.parametrize("alpha", [0, 1, 127, 254, 255])
def test_alpha_is_composited_over_white(alpha: int) -> None:
    got = pixels(open_image(Image.new("RGBA", (2, 2), (200, 100, 0, alpha))))[0, 0].astype(float)
    want = (np.array([200, 100, 0]) * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(got - want).max() <= 1


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for name in ("PNG", "GIF"):
        got = pixels(open_image(encode(image, name, transparency=1)))
        np.testing.assert_array_equal(got, [[[255, 0, 0], [255, 255, 255]]])
    half = encode(image, "PNG", transparency=bytes([255, 0]))
    np.testing.assert_array_equal(pixels(open_image(half))[0, 1], 255)


@pytest.mark.parametrize(
    ("depth", "colour", "data", "trns", "want"),
    [
        (1, 0, bytes([0b01000000]), u16(1), [0, 255]),
        (1, 0, bytes([0b01000000]), u16(0), [255, 255]),
        (2, 0, bytes([0b01100000]), u16(1), [255, 170]),
        (4, 0, bytes([0x12]), u16(1), [255, 34]),
        (8, 0, bytes([1, 2]), u16(1), [255, 2]),
        (16, 0, u16(4660, 514), u16(4660), [255, 2]),
        (8, 2, bytes([1, 1, 1, 2, 2, 2]), u16(1, 1, 1), [255, 2]),
        (16, 2, u16(4660, 4660, 4660, 514, 514, 514), u16(4660, 4660, 4660), [255, 2]),
    ],
)
def test_a_transparent_colour_becomes_white_at_every_depth(
    depth: int, colour: int, data: bytes, trns: bytes, want: list[int]
) -> None:
    file = png(2, 1, depth=depth, colour=colour, data=data, trns=trns)
    np.testing.assert_array_equal(pixels(open_image(file))[0, :, 0], want)


# Orientation


@given(
    st.integers(0, 9),
    st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "AVIF"]),
    st.sampled_from(["RGB", "L", "RGBA"]),
)
def test_every_orientation_is_turned_upright_once(orientation: int, name: str, mode: str) -> None:
    assume(name != "TIFF LZW" or 1 <= orientation <= 8)  # libtiff does not write others
    upright = photo(height=40, width=56)
    image = upright.convert("RGB" if name in ("JPEG", "AVIF") and mode == "RGBA" else mode)
    image.getexif()[ORIENTATION] = 1
    # Stored so that the orientation brings it back: the inverse of what reading does.
    stored = {
        2: ImageOps.mirror,
        3: lambda i: i.rotate(180),
        4: ImageOps.flip,
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }.get(orientation, lambda i: i)(image)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options: dict[str, Any] = {"exif": exif}
    if name == "TIFF LZW":
        options["compression"] = "tiff_lzw"
    elif name != "TIFF":
        options |= {"lossless": True} if name == "WEBP" else {}
        options |= {"quality": 95} if name in ("JPEG", "AVIF") else {}
    data = encode(stored, name.split()[0], **options)

    facts, got = image_facts(data), open_image(data)
    assert (facts.width, facts.height) == got.size == upright.size
    want = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels(got).astype(int) - want).mean() < 6
    assert open_image(got).tobytes() == got.tobytes()  # nothing is left to turn again


def test_a_broken_exif_block_means_upright() -> None:
    data = encode(photo(), "JPEG", exif=b"Exif\x00\x00nonsense that no parser takes")
    assert open_image(data).size == photo().size
    assert image_facts(data).orientation == 1


# What is refused, and in which words


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just some words\n", "not an image: a text file"),
        ("schöne Worte".encode(), "not an image: a text file"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS is not read"),
        (b"%PDF-1.7\n", "PDF is not read"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(16), "HEIC is not read: convert it"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(16), "video"),
        (b"PK\x03\x04" + bytes(16), "zip"),
        (b"\xff\xd8\xff\xe0\x00", "truncated header of a JPEG"),
        (b"\x01\x02\x03\x04" * 9, "unknown or damaged"),
        (half(encode(photo(), "JPEG")), "[Tt]runcated"),
        (half(encode(photo(), "PNG")), "truncated"),
        (half(encode(photo(), "BMP")), "truncated"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = written(tmp_path, "photo.jpg", data)
    with pytest.raises(ImageError, match=reason) as caught:
        open_image(path)
    assert caught.value.source == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_missing_files_folders_and_odd_paths(tmp_path: Path) -> None:
    for source, reason in [
        (str(tmp_path / "none.jpg"), "no such file"),
        (str(tmp_path), "folder"),
        ("nul\x00l.jpg", "cannot be opened"),
    ]:
        with pytest.raises(ImageError, match=reason):
            open_image(source)
        with pytest.raises(ImageError, match=reason):
            image_facts(Path(source))


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "empty file")))
    assert (error.source, error.reason, str(error)) == ("a.jpg", "empty file", "a.jpg: empty file")


def test_bombs_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(20_000, 20_000, depth=8, colour=2, data=b"")
    with pytest.raises(ImageError, match="too large"):
        open_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some programs do; ours still holds
    for read in (open_image, image_facts):
        with pytest.raises(ImageError, match=r"too large: 20000 x 20000 pixels.*178,956,970"):
            read(bomb)


def test_large_images_below_the_limit_are_read_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert open_image(encode(photo(40, 56), "PNG")).size == (56, 40)
    assert not seen


def test_warning_filters_survive_readers_that_overlap() -> None:
    """Threads of which none finishes before the next one starts leave the filters as they were."""
    data = encode(photo(), "PNG")
    before = list(warnings.filters)
    barrier = threading.Barrier(4)

    def read(_: int) -> None:
        barrier.wait()
        for _repeat in range(20):
            open_image(data)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(read, range(4)))
    assert list(warnings.filters) == before


@given(
    st.data(), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "QOI", "PPM", "TGA"])
)
def test_damaged_files_raise_nothing_else(data: st.DataObject, name: str) -> None:
    content = bytearray(encode(photo(8, 9), name))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for read in (open_image, image_facts):
        with contextlib.suppress(ImageError):
            read(bytes(content))


# Facts


def test_facts_of_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, "a.JPEG", encode(photo(40, 56), "JPEG"))
    facts = image_facts(path)
    assert (facts.format, facts.width, facts.height, facts.mode) == ("JPEG", 56, 40, "RGB")
    assert (facts.frames, facts.orientation, facts.extension_matches) == (1, 1, True)
    misnamed = written(tmp_path, "b.jpg", encode(photo(), "PNG"))
    assert not image_facts(misnamed).extension_matches
    assert open_image(misnamed).size == photo().size


def test_facts_do_not_decode() -> None:
    cut = half(encode(photo(), "PNG"))
    assert image_facts(cut).width == photo().width
    with pytest.raises(ImageError, match="truncated"):
        open_image(cut)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "WEBP" else {}
    data = encode(frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert image_facts(data).frames == 3
    np.testing.assert_array_equal(pixels(open_image(data))[0, 0], [255, 0, 0])


def test_extensions_are_lower_case_with_the_dot() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".mpo", ".png", ".webp", ".tif"} <= extensions
    assert all(ext.startswith(".") and ext == ext.lower() for ext in extensions)
    assert not {".eps", ".ps", ".wmf", ".pdf"} & extensions


# Files as met in the wild

REFUSED_BY_DESIGN = {
    # No signature: would take almost any text for an image.
    "ok_IMT_L__bw_gradient.imt": "unknown or damaged format",
    # Measurements: no value in them is a colour.
    "ok_FITS_L__hopper.fits": "not an image",
    "ok_FITS_I16__m13_gzip.fits": "not an image",
    "ok_FITS_I16__m13.fits": "not an image",
    "ok_MCIDAS_I16B__cmx3g8_wv_1998.260_0745_mcidas.ara": "unknown or damaged format",
    "ok_SPIDER_F__hopper.spider": "unknown or damaged format",
    # Floats beyond [0, 1] have no white level.
    "ok_PPM_F__hopper_be.pfm": "must lie in [0, 1]",
    "ok_PPM_F__hopper.pfm": "must lie in [0, 1]",
    "ok_TIFF_F__10ct_32bit_128.tiff": "must lie in [0, 1]",
    # Indices into a palette that the file lacks.
    "ok_1px_side__6069511ab1f98abec905c9ea70c8e8cca9813ff1": "without a palette",
    "ok_1px_side__b169e49b95794c91caf535ca7a54ba743893a949": "without a palette",
    # Broken after all: a first load fails, and only a second one gives a (blank) image, which is
    # what the manifest saw after its look at the EXIF block.
    "ok_PNG_P__1cd603479c91735e4f73e106e05333216f5d7db9": "broken data stream",
    "ok_PNG_P__4da6aaf1ae71f8835f7ada556a08ab054e09eabe": "broken data stream",
    "ok_exif_tag_other__e0b70aa5407c49f44624bdc23b447856db4680f7": "broken data stream",
    "ok_exif_tag_other__ead9da41b1d218ee044471e3060da731592c3347": "broken data stream",
    "ok_1px_side__1a9e19110f5538ebfd3963e04ae15d0f95b53669": "broken data stream",
    "ok_PNG_LA__24aefb1d07414ca9c12b0f9ebbb86f528309de06": "unrecognized data stream",
    "ok_PNG_I16__efcef02a5c1789df43f2fc2107882854b7874a64": "unrecognized data stream",
}

READ_ALL_THE_SAME = {
    # The first frame is whole; counting the further ones fails.
    "bad_open_IndexError__id_001535_src_000136_001506_op_splice_rep_16.gif",
    "bad_open_IndexError__id_001533_src_000136_001506_op_splice_rep_32.gif",
    "bad_open_IndexError__id_001916_src_001548_op_flip2_pos_7132.gif",
}


def test_wild_files_are_read_right_or_refused(shared: Path) -> None:
    folder = shared / "data" / "wild"
    with (folder / "MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 300
    for row in rows:
        name, path = row["file"], folder / row["file"]
        expected_ok = (row["load"] == "ok" and name not in REFUSED_BY_DESIGN) or (
            name in READ_ALL_THE_SAME
        )
        if not expected_ok:
            with pytest.raises(ImageError, match=re.escape(REFUSED_BY_DESIGN.get(name, name))) as e:
                open_image(path)
            assert e.value.source == str(path)
            assert e.value.reason
            continue
        image = open_image(path)
        facts = image_facts(path)
        assert image.size == (facts.width, facts.height), name
        if row["w"]:
            stored = (int(row["w"]), int(row["h"]))  # of a TIFF Pillow gives the upright size
            turned = row["exif_orientation"] in ("5", "6", "7", "8") and row["fmt"] != "TIFF"
            assert image.size == (stored[::-1] if turned else stored), name


@pytest.mark.parametrize("kind", ["Portrait", "Landscape"])
def test_wild_photos_agree_whatever_their_orientation(shared: Path, kind: str) -> None:
    """The same photo was stored in eight ways, with a small caption that differs."""
    folder = shared / "data" / "wild"
    first, *others = sorted(folder.glob(f"exif_orientation__{kind}_[1-8].jpg"))
    reference = pixels(open_image(first).resize((60, 60))).astype(int)
    assert len(others) >= 6
    for path in others:
        assert np.abs(pixels(open_image(path).resize((60, 60))).astype(int) - reference).mean() < 4


def test_the_limit_is_pillows_own() -> None:
    assert images.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # type: ignore[operator]

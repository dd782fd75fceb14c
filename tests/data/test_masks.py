"""Masks are read as the values that are stored, and lie on their images."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.errors import DataError
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.masks import folders
from mobilevit.data.formats.masks.values import (
    IGNORED,
    MaskFiles,
    class_values,
    format_ranges,
    read_class_file,
    read_mask,
    voc_palette,
)
from mobilevit.data.images import ImageError, open_image
from mobilevit.tasks.segmentation.dataset import MaskSamples, MaskSizeError

ORIENTATION = 0x0112
VALUES = np.array([[0, 1, 2], [3, 255, 15]], np.uint8)


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)  # type: ignore[arg-type]
    return path


def grey_png(path: Path, depth: int, rows: list[list[int]]) -> Path:
    """A grey PNG of fewer bits than Pillow writes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    data = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        data += b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def with_palette(path: Path, values: np.ndarray) -> Path:
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([channel for colour in voc_palette() for channel in colour])
    assert image.mode == "P"
    image.save(path)
    return path


def samples(root: Path, image: Path, mask: Path, ignore: int = 255) -> MaskSamples:
    classes, values = class_values({0: "sky", 1: "road", 2: "car", 3: "dog"}, {ignore})
    builder = DatasetBuilder(root, folders.FORMAT)
    builder.add_image(image)
    masks = MaskFiles(values=values, ignore=ignore, files=(mask,))
    return MaskSamples.from_dataset(builder.build(classes, masks=masks))


# Files


def test_a_palette_is_indices_never_colours(tmp_path: Path) -> None:  # case A29
    stored = read_mask(with_palette(tmp_path / "1.png", VALUES))
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, VALUES)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif"])
def test_grey_values_are_taken_as_they_are(tmp_path: Path, extension: str) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / f"1{extension}", VALUES)), VALUES)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_values_of_few_bits_are_not_scaled(tmp_path: Path, depth: int) -> None:
    rows = [[0, 1, 2**depth - 1], [1, 0, 1]]
    assert read_mask(grey_png(tmp_path / "1.png", depth, rows)).tolist() == rows


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    values = np.array([[0, 300], [255, 65535]], np.uint16)
    stored = read_mask(save(tmp_path / "1.png", values))
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, values)
    np.testing.assert_array_equal(
        read_mask(save(tmp_path / "1.tif", values.astype(np.int32))), values
    )


def test_rgb_needs_a_table_of_colours(tmp_path: Path) -> None:
    palette = voc_palette()
    rgb = np.array([[palette[value] for value in row] for row in VALUES], np.uint8)
    path = save(tmp_path / "1.png", rgb)
    with pytest.raises(ImageError, match=r"1\.png: an RGB mask.*classes\.json"):
        read_mask(path)
    table = {colour: value for value, colour in enumerate(palette)}
    np.testing.assert_array_equal(read_mask(path, colours=table), VALUES)
    del table[palette[255]], table[palette[15]]
    with pytest.raises(ImageError, match=r"stand for no class, such as \(192, 128, 128\), \(224"):
        read_mask(path, colours=table)
    grey = save(tmp_path / "grey.png", np.stack([VALUES] * 3, 2))
    with pytest.raises(ImageError, match="channels are equal, so save one"):
        read_mask(grey)


def test_files_that_can_not_be_trusted_are_refused(tmp_path: Path) -> None:
    for name, values, reason in (
        ("1.jpg", np.zeros((9, 9), np.uint8), "JPEG changes values"),
        ("float.tif", np.zeros((2, 2), np.float32), "mode F"),
        ("large.tif", np.full((2, 2), 70000, np.int32), "from 70000 to 70000"),
        ("alpha.png", np.zeros((2, 2, 2), np.uint8), "mode LA"),
    ):
        with pytest.raises(ImageError, match=rf"{name}.*{reason}"):
            read_mask(save(tmp_path / name, values))
    (tmp_path / "15.pgm").write_bytes(b"P5 2 1 15\n\0\1")
    with pytest.raises(ImageError, match="white is 15"):
        read_mask(tmp_path / "15.pgm")
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="text file"):
        read_mask(tmp_path / "no.png")
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "nothing.png")


def test_vocs_palette() -> None:
    palette = voc_palette()
    assert palette[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert palette[15] == (192, 128, 128) and palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


# Classes of values


def test_classes_follow_the_values() -> None:
    first = {0: "a", 1: "b", 2: "void"}
    assert class_values(first, {2}) == (("a", "b"), {0: 0, 1: 1, 2: IGNORED})
    # 0 is ignored and no class, so that the first class is the value 1.
    names = {0: "void", 1: "a", 5: "b"}
    assert class_values(names, {0}) == (("a", "b"), {1: 0, 5: 1, 0: IGNORED})
    assert len(class_values({value: str(value) for value in range(300)}).classes) == 299
    both = class_values({1: "a", 2: "b"}, {0, 7, 255})
    assert both.values == {1: 0, 2: 1, 0: IGNORED, 7: IGNORED, 255: IGNORED}


@pytest.mark.parametrize(
    ("names", "ignore", "reason"),
    [
        ({0: "a", 1: "a"}, 255, "more than once: a"),
        ({0: "a", 255: "b"}, 255, r"two classes.*not 1 \(a\)"),
        ({0: "a", 70000: "b"}, 255, "70000"),
        ({0: "a", 1: "b"}, -1, "not -1"),
    ],
)
def test_classes_that_can_not_be(names: dict[int, str], ignore: int, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        class_values(names, {ignore})


@pytest.mark.parametrize(
    ("file", "text", "names", "colours"),
    [
        ("classes.txt", "\ufeffsky\nroad \n\n", {0: "sky", 1: "road"}, None),
        ("classes.json", '["sky", "road"]', {0: "sky", 1: "road"}, None),
        ("classes.json", '{"sky": 0, "road": 255}', {0: "sky", 255: "road"}, None),
        (
            "classes.json",
            '{"sky": [0, 0, 9], "void": [1, 1, 1]}',
            {0: "sky", 1: "void"},
            {(0, 0, 9): 0, (1, 1, 1): 1},
        ),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nsky:0,0,9::\nvoid:1,1,1::\n",
            {0: "sky", 1: "void"},
            {(0, 0, 9): 0, (1, 1, 1): 1},
        ),
        ("classes.txt", "1\n2", {1: "1", 2: "2"}, None),  # numbers are the values themselves
    ],
)
def test_files_that_name_classes(
    tmp_path: Path, file: str, text: str, names: dict[int, str], colours: object
) -> None:
    (tmp_path / file).write_text(text, "utf-8")
    stated = read_class_file(tmp_path, 1 if "void" in text else 254)
    assert stated is not None
    assert (stated.names, stated.colours, stated.file) == (names, colours, tmp_path / file)


@pytest.mark.parametrize(
    ("file", "text", "ignore", "reason"),
    [
        ("classes.txt", "sky\n\nroad", 255, "is not a list of names"),
        ("classes.json", "[", 255, "cannot be read"),
        ("classes.json", '[{"name": "sky"}]', 255, "is not a list of names"),
        ("classes.json", '{"sky": 0, "road": 0}', 255, "the same value"),
        ("classes.json", '{"a": [0, 0, 0], "b": [0, 0, 0]}', 255, "the same colour"),
        ("classes.json", '{"a": [0, 0, 256]}', 255, "is not a list of names"),
        ("classes.json", '{"sky": 0, "road": 255}', 255, "255 is 'road', but 255 is ignored"),
        ("classes.txt", "person\nbicycle", 0, "has 'person' in its place"),
        ("labelmap.txt", "sky", 255, "cannot be read"),
    ],
)
def test_files_that_do_not(tmp_path: Path, file: str, text: str, ignore: int, reason: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        read_class_file(tmp_path, ignore)
    assert str(tmp_path / file) in str(caught.value)


def test_numbers_as_text() -> None:
    assert format_ranges([12, 0, 1, 2, 7]) == "0 to 2, 7, 12"
    assert format_ranges([]) == "none"


# Masks on images


def test_masks_hold_places_of_classes(tmp_path: Path) -> None:
    image = save(tmp_path / "1.jpg", np.zeros((2, 3, 3), np.uint8))
    values = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)
    one = samples(tmp_path, image, save(tmp_path / "1.png", values))
    assert one.mask(0).dtype == np.uint8 and one.mask(0).tolist() == values.tolist()
    shifted = samples(tmp_path, image, one.masks.file(0), ignore=0)
    with pytest.raises(ImageError, match=r"1\.png: no class has the value 255; classes are 1 to 3"):
        shifted.mask(0)
    values[values == 255] = 0
    save(shifted.masks.file(0), values)
    assert shifted.mask(0).tolist() == [[255, 0, 1], [2, 255, 0]]
    assert pickle.loads(pickle.dumps(shifted)).mask(0).tolist() == shifted.mask(0).tolist()


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    image = save(tmp_path / "1.jpg", np.zeros((2, 3, 3), np.uint8))
    values = np.array([[0, 1, 2], [3, 4, 1]], np.uint8)
    one = samples(tmp_path, image, save(tmp_path / "1.png", values), ignore=4)
    assert one.ignore == 4
    other = one.relabel(["dog", "tree", "car", "road", "sky"])
    assert other.ignore == 255  # 4 is sky now
    assert other.mask(0).tolist() == [[4, 3, 2], [0, 255, 3]]
    assert other.relabel(one.relabel(other.classes).classes).mask(0).tolist() == (
        other.mask(0).tolist()
    )
    with pytest.raises(DataError, match='unknown classes "car", "dog"; known are: sky, road'):
        one.relabel(["sky", "road"])
    many = one.relabel([*one.classes, *map(str, range(300))])
    assert many.mask(0).dtype == np.int32 and many.mask(0)[1, 1] == many.ignore == 65535


def quarters(height: int, width: int) -> np.ndarray:
    """Values 0 to 3, one in each quarter."""
    rows, columns = np.mgrid[:height, :width]
    return (2 * (rows >= height // 2) + (columns >= width // 2)).astype(np.uint8)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_stored_image_is_turned_with_it(
    tmp_path: Path, orientation: int, bits: int
) -> None:
    stored = quarters(20, 32)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    grey = (stored * 60).astype(np.uint8)
    image = save(tmp_path / "1.png", np.stack([grey] * 3, 2), exif=exif)
    upright = np.asarray(open_image(image))[..., 0] // 60
    kept = save(tmp_path / "kept.png", stored.astype(f"uint{bits}"))
    turned = save(tmp_path / "turned.png", upright.astype(f"uint{bits}"))
    if orientation >= 5:  # the size tells
        np.testing.assert_array_equal(samples(tmp_path, image, kept).mask(0), upright)
        assert samples(tmp_path, image, kept).turn(0) == (orientation, True)
    np.testing.assert_array_equal(samples(tmp_path, image, turned).mask(0), upright)
    # A mask that fits either way is taken as upright, and the doubt is told.
    assert samples(tmp_path, image, turned).turn(0) == (1, orientation not in (2, 3, 4))
    own = save(tmp_path / "own.png", stored, exif=exif)  # a mask with an orientation of its own
    np.testing.assert_array_equal(samples(tmp_path, image, own).mask(0), upright)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    image = save(tmp_path / "1.jpg", np.zeros((20, 30, 3), np.uint8))
    mask = save(tmp_path / "1.png", np.zeros((30, 20), np.uint8))
    with pytest.raises(MaskSizeError, match=r"1\.png: the mask has 20 x 30 .*1\.jpg has 30 x 20"):
        samples(tmp_path, image, mask).mask(0)


def test_camvid_has_eleven_classes_and_void(shared: Path) -> None:
    folder = shared / "data" / "camvid" / "val" / "masks"
    values = {value for path in folder.iterdir() for value in np.unique(read_mask(path)).tolist()}
    assert values == set(range(12))

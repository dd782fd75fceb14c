"""Masks: where they are stored, how they are read, and which classes their values stand for."""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import IGNORE
from mobilevit.data.formats.files import Paths, file_size
from mobilevit.data.images import ImageError, image_facts, orientation_of, pillow, upright

MAX_VALUE = 65535
"""The largest value that a mask can store."""
IGNORED = -1
"""Takes the place of a class in `MaskSource.values`, for values that have none."""

CLASS_FILES = ("classes.json", "classes.txt", "labelmap.txt")
"""Files that may name the classes; the first one found is used."""
VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})
"""Names that may fill the place of the ignored value in a list of classes."""

Colours: TypeAlias = Mapping[tuple[int, int, int], int]
"""Red, green, blue -> stored value."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskSource(ABC):
    """The stored masks of a data set, read one at a time."""

    values: Mapping[int, int]
    """Stored value -> index of its class, or `IGNORED`."""
    ignore: int
    """Stored value of pixels without a class. It also marks them in masks that are read, unless it
    is the index of a class."""

    @abstractmethod
    def file(self, index: int) -> Path | None:
        """The file that holds the mask; None where it is drawn from annotations."""

    def name(self, index: int) -> str:
        return str(self.file(index))

    def size(self, index: int) -> tuple[int, int, bool]:
        """Height and width of what `read` returns, and whether it is known to be upright."""
        facts = image_facts(self.name(index))
        return facts.height, facts.width, facts.orientation != 1

    def digest(self, index: int, annotation: object = None) -> str:
        """The size of a mask's file, and a checksum of what its values stand for.

        Args:
            annotation: what else a mask depends on; its `repr` must be the same in every run.
        """
        file, known = self.file(index), repr((self.values, self.ignore, annotation))
        size = "" if file is None else f" of {file_size(file):,} bytes"
        return f"mask{size} {zlib.crc32(known.encode()):08x}"

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Read the stored values: uint8 or uint16 [H, W]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskFiles(MaskSource):
    """Masks with a file each."""

    files: Paths
    colours: Colours | None = None
    """What the colours of RGB masks stand for."""

    def file(self, index: int) -> Path:
        return self.files[index]

    def digest(self, index: int, annotation: object = None) -> str:
        return super().digest(index, self.colours)

    def read(self, index: int) -> np.ndarray:
        return read_mask(self.files[index], colours=self.colours)


def read_mask(path: str | Path, *, colours: Colours | None = None) -> np.ndarray:
    """Read the values of a mask; of a palette image the indices, never the colours.

    Grey images of 1, 2, 4, 8 and 16 bits give their values as stored. The mask's own EXIF
    orientation is applied.

    Args:
        colours: what the colours of an RGB image stand for; without it RGB masks are refused.

    Returns:
        [H, W], uint8, or uint16 where values can be larger.

    Raises:
        ImageError: the file cannot be read, or its values are ambiguous.
    """
    name = str(path)
    facts = image_facts(path)
    if facts.format in ("JPEG", "MPO"):
        raise ImageError(name, "JPEG changes values; save masks as PNG or in another exact format")
    with pillow(name), Image.open(path, formats=(facts.format,)) as image:
        scale = _grey_scale(image, name)
        image.load()
        stored = np.array(upright(image, orientation_of(image)))  # of a palette image the indices
        mode = image.mode
    if mode in ("1", "L", "P"):
        return stored.astype(np.uint8) // np.uint8(scale)
    if mode == "I" or mode.startswith("I;16"):
        low, high = int(stored.min()), int(stored.max())
        if low < 0 or high > MAX_VALUE:
            raise ImageError(name, f"values from {low} to {high}; masks hold 0 to {MAX_VALUE}")
        return stored.astype(np.uint16)
    if mode not in ("RGB", "RGBA"):
        raise ImageError(name, f"a mask has one channel of integers, but this is of mode {mode}")
    if colours is not None:
        return _by_colour(stored[..., :3], colours, name)
    grey = bool((stored[..., :3] == stored[..., :1]).all())
    raise ImageError(
        name,
        f"an {mode} mask, and nothing states what its colours stand for: "
        + ("its channels are equal, so save one of them" if grey else "save indices")
        + ', or state the colours in classes.json, {"name": [red, green, blue], ...}',
    )


def voc_palette(count: int = 256) -> list[tuple[int, int, int]]:
    """The colours of Pascal VOC's masks, by value.

    >>> voc_palette()[:3]
    [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    """
    palette = []
    for value in range(count):
        channels = [0, 0, 0]
        for bit in range(8):  # bit 0 of the value goes to red, 1 to green, 2 to blue, 3 to red, ...
            channels[bit % 3] |= (value >> bit & 1) << (7 - bit // 3)
        palette.append((channels[0], channels[1], channels[2]))
    return palette


def _grey_scale(image: Image.Image, name: str) -> int:
    """The factor by which Pillow is about to multiply grey values of 2 and 4 bits."""
    if not isinstance(image, ImageFile) or not image.tile:
        return 1
    tile = image.tile[0]
    raw, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name.startswith("ppm") and more[0] not in (255, 65535):
        raise ImageError(name, f"its white is {more[0]}; save the mask as PNG, or with 255")
    return {"L;2": 85, "L;4": 17}.get(str(raw), 1)


def _by_colour(rgb: np.ndarray, colours: Colours, name: str) -> np.ndarray:
    """uint8 [H, W, 3] -> the values of its colours, uint16 [H, W]."""
    known = sorted((_colour_code(*colour), value) for colour, value in colours.items())
    codes, values = (np.array(column) for column in zip(*known, strict=True))
    pixels = _colour_code(*np.moveaxis(rgb.astype(np.int64), 2, 0))
    places = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
    if (unknown := codes[places] != pixels).any():
        first = ", ".join(str(tuple(c)) for c in np.unique(rgb[unknown], axis=0)[:3].tolist())
        raise ImageError(name, f"colours that stand for no class, such as {first}")
    return values[places].astype(np.uint16)


def _colour_code(red: Any, green: Any, blue: Any) -> Any:
    return (red << 16) + (green << 8) + blue


# The classes of values


class ClassValues(NamedTuple):
    """The classes of the values that masks store."""

    classes: tuple[str, ...]
    values: dict[int, int]
    """Stored value -> index in `classes`, or `IGNORED`."""


def class_values(names: Mapping[int, str], ignored: Collection[int] = (IGNORE,)) -> ClassValues:
    """Number the classes of masks by stored value: the smallest becomes class 0.

    Args:
        names: stored value -> name of the class.
        ignored: stored values without a class, even where `names` has one.
    """
    stored = sorted(value for value in names if value not in ignored)
    for value in (*names, *ignored):
        if not 0 <= value <= MAX_VALUE:
            raise DataError(f"masks hold values from 0 to {MAX_VALUE}, not {value}")
    classes = tuple(names[value] for value in stored)
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"class names must be unique; more than once: {', '.join(repeated)}")
    if len(classes) < 2:
        raise DataError(
            f"segmentation needs two classes, background being one like others, not {len(classes)} "
            f"({', '.join(classes) or 'none'}); ignored: {format_ranges(ignored)}"
        )
    places = {value: place for place, value in enumerate(stored)}
    return ClassValues(classes, places | dict.fromkeys(ignored, IGNORED))


def ignore_mark(ignore: int, num_classes: int) -> int:
    """The value that marks ignored pixels: `ignore`, or another one if that is a class."""
    if ignore >= num_classes:
        return ignore
    return IGNORE if num_classes <= IGNORE else MAX_VALUE


class ClassFile(NamedTuple):
    """The classes that a file states."""

    names: dict[int, str]
    """Stored value -> name."""
    colours: dict[tuple[int, int, int], int] | None
    """Colour -> stored value; None where the file has no colours."""
    file: Path


def read_class_file(root: Path, ignore: int) -> ClassFile | None:
    """Read the first of `CLASS_FILES` in `root`; None where there is none.

    - `classes.txt` has a name per line, for the values 0, 1, ...
    - `classes.json` is a list of names; or `{"name": value}`; or `{"name": [red, green, blue]}`
      for RGB masks, where the first name is value 0.
    - `labelmap.txt`, as CVAT writes it, has lines `name:red,green,blue::`.

    Raises:
        DataError: the file is none of these, or has a class (other than void, ignored or
            unlabelled in a list) at the value `ignore`.
    """
    file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        content = _PARSERS[file.name](file.read_text("utf-8-sig"))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    stated = list(content.values()) if isinstance(content, dict) else []
    colours = None
    if isinstance(content, list) and all(isinstance(name, str) and name for name in content):
        return ClassFile(names_by_value(content, ignore, file), None, file)
    if stated and all(type(value) is int for value in stated):
        names = {value: name for name, value in content.items()}
        if ignore in names:
            raise DataError(
                f"{file}: {ignore} is {names[ignore]!r}, but {ignore} is ignored; set data.ignore "
                "to another value, such as one that the masks do not have"
            )
    elif stated and all(map(_is_colour, stated)):
        names = names_by_value(list(content), ignore, file)
        colours = {(r, g, b): value for value, (r, g, b) in zip(names, stated, strict=True)}
    else:
        raise DataError(
            f'{file}: is not a list of names, {{"name": value}} or {{"name": [red, green, blue]}}'
        )
    if len(names if colours is None else colours) != len(content):
        what = "value" if colours is None else "colour"
        raise DataError(f"{file}: several classes have the same {what}")
    return ClassFile(names, colours, file)


def names_by_value(classes: Sequence[str], ignore: int, source: object) -> dict[int, str]:
    """Stored value -> name: values are places in the list, or the names if all are numbers."""
    if all(name.isdecimal() for name in classes):
        return {int(name): name for name in classes}
    # The list may lack a place for the ignored value, and all later names be off by one.
    if ignore < len(classes) and classes[ignore].lower() not in VOID_NAMES:
        raise DataError(
            f"{source}: the value {ignore} is ignored, but the list has {classes[ignore]!r} in its "
            "place; call that place void, or state the value of each class in classes.json"
        )
    return dict(enumerate(classes))


def format_ranges(values: Collection[int]) -> str:
    """Write numbers as ranges.

    >>> format_ranges([12, 0, 1, 2])
    '0 to 2, 12'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in runs) or "none"


def _parse_lines(text: str) -> list[str]:
    return [line.strip() for line in text.rstrip().splitlines()]


def _parse_labelmap(text: str) -> dict[str, list[int]]:
    lines = [line.split(":") for line in _parse_lines(text) if not line.startswith("#")]
    return {line[0]: [int(channel) for channel in line[1].split(",")] for line in lines}


_PARSERS: dict[str, Callable[[str], Any]] = {
    "classes.json": json.loads,
    "classes.txt": _parse_lines,
    "labelmap.txt": _parse_labelmap,
}


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and set(value) <= set(range(256))

"""Which classes the values of masks stand for, by what a file says or as they are numbered."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from mobilevit.data.formats.folders import DataError

IGNORE = 255
"""What marks pixels without a class, unless a data set says otherwise."""
HIGHEST = 65535
"""The largest value that a mask can hold."""

CLASS_FILES = ("classes.json", "classes.txt", "labelmap.txt")
"""Files that may name the classes, the first one found being used."""
VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})
"""What a list of classes may call the place of the ignored value."""

Colours: TypeAlias = Mapping[tuple[int, int, int], int]
"""Red, green, blue -> the value that a colour stands for."""


class Numbering(NamedTuple):
    """Which classes the values of stored masks stand for."""

    classes: tuple[str, ...]
    values: dict[int, int]
    """Stored value -> place in `classes`, or `ignore`."""
    ignore: int


def numbered(
    names: Mapping[int, str], ignore: int = IGNORE, *, more_ignored: Collection[int] = ()
) -> Numbering:
    """Number the classes of masks by their values: the smallest becomes class 0.

    Args:
        names: stored value -> name of the class.
        ignore: stored value that is no class, whatever `names` says of it. It goes on to mark what
            is ignored unless it is the place of a class.
        more_ignored: further values of that kind.

    Raises:
        DataError: a value that masks cannot hold, names that are not unique, or less than two.
    """
    ignored = {ignore, *more_ignored}
    places = sorted(value for value in names if value not in ignored)
    for value in (*names, *ignored):
        if not 0 <= value <= HIGHEST:
            raise DataError(f"masks hold values from 0 to {HIGHEST}, not {value}")
    classes = tuple(names[value] for value in places)
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"class names must be unique; more than once: {', '.join(twice)}")
    if len(classes) < 2:
        raise DataError(
            f"segmentation needs two classes, background being one like others, not {len(classes)} "
            f"({', '.join(classes) or 'none'}); ignored: {spans(ignored)}"
        )
    mark = marking(ignore, len(classes))
    values = {value: place for place, value in enumerate(places)}
    return Numbering(classes, values | dict.fromkeys(ignored, mark), mark)


def marking(ignore: int, num_classes: int) -> int:
    """What marks ignored pixels: `ignore`, or another value where that is a class."""
    if ignore >= num_classes:
        return ignore
    return IGNORE if num_classes <= IGNORE else HIGHEST


class Stated(NamedTuple):
    """What a file says of classes."""

    names: dict[int, str]
    """Stored value -> name."""
    colours: dict[tuple[int, int, int], int] | None
    """Colour -> stored value; None where the file states no colours."""
    file: Path


def stated_classes(root: Path, ignore: int) -> Stated | None:
    """Read what the first of `CLASS_FILES` in `root` says of classes; None where there is none.

    `classes.txt` has a name a line, for the values 0, 1, ... `classes.json` is a list of names; or
    `{"name": value}`; or `{"name": [red, green, blue]}`, for RGB masks, the first name being value
    0. `labelmap.txt`, as CVAT writes it, has lines `name:red,green,blue::`, which mean the same.

    Raises:
        DataError: the file cannot be read as this, or gives a class the value `ignore`; where
            values are places, that place may be called void, ignored or unlabelled.
    """
    file = next((root / name for name in CLASS_FILES if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        content = _CONTENT[file.name](file.read_text("utf-8-sig"))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if isinstance(content, list) and _are(content, str) and "" not in content:
        return Stated(named_by_place(content, ignore, file), None, file)
    if isinstance(content, dict) and content and _are(content.values(), int):
        names = {value: name for name, value in content.items()}
        if len(names) != len(content):
            raise DataError(f"{file}: several classes have the same value")
        if ignore in names:
            raise DataError(
                f"{file}: says that {ignore} is {names[ignore]!r}, but {ignore} is ignored; state "
                "another value to ignore, such as one that the masks do not have"
            )
        return Stated(names, None, file)
    if isinstance(content, dict) and content and all(map(_is_colour, content.values())):
        names = named_by_place(list(content), ignore, file)
        colours = {(r, g, b): v for v, (r, g, b) in zip(names, content.values(), strict=True)}
        if len(colours) != len(content):
            raise DataError(f"{file}: several classes have the same colour")
        return Stated(names, colours, file)
    raise DataError(
        f'{file}: is not a list of names, {{"name": value}} or {{"name": [red, green, blue]}}'
    )


def named_by_place(classes: Sequence[str], ignore: int, source: object) -> dict[int, str]:
    """Stored value -> name, where names are a list: values are the places in it.

    Names that are all numbers have these as their values, whatever their places.

    Raises:
        DataError: `ignore` is the place of a name that is not void, ignored or unlabelled. The list
            may then be without it, and all names beyond off by one. The message names `source`.
    """
    if all(name.isdecimal() for name in classes):
        return {int(name): name for name in classes}
    if ignore < len(classes) and classes[ignore].lower() not in VOID_NAMES:
        raise DataError(
            f"{source}: the value {ignore} is ignored, but the list has {classes[ignore]!r} in its "
            "place; call that place void, or say in classes.json which value each class has"
        )
    return dict(enumerate(classes))


def spans(values: Collection[int]) -> str:
    """Numbers as text: `0 to 10, 12`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in runs) or "none"


def _lines(text: str) -> list[str]:
    """The names of a `classes.txt`."""
    return [line.strip() for line in text.rstrip().splitlines()]


def _labelmap(text: str) -> dict[str, list[int]]:
    """The names and colours of a `labelmap.txt`."""
    lines = [line.split(":") for line in _lines(text) if not line.startswith("#")]
    return {line[0]: [int(channel) for channel in line[1].split(",")] for line in lines}


_CONTENT: dict[str, Callable[[str], Any]] = {
    "classes.json": json.loads,
    "classes.txt": _lines,
    "labelmap.txt": _labelmap,
}


_BYTES = frozenset(range(256))


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and set(value) <= _BYTES


def _are(values: Iterable[Any], kind: type) -> bool:
    return all(type(value) is kind for value in values)

"""Boxes in CSV tables: a row for each box, with its image, corners in pixels, and class.

Columns are found by their names, such as those of TensorFlow (filename, width, height, class,
xmin, ymin, xmax, ymax). A table without names has those of RetinaNet: path, x1, y1, x2, y2, class.
A row without corners and class states an image without boxes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mobilevit.data.errors import FileError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_files,
    find_split_of,
    has_image_extension,
)
from mobilevit.data.formats.text import read_cells

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS = {
    "file": ("filename", "file_name", "file", "image", "image_path", "path"),
    "class": ("class", "class_name", "label", "category"),
    "xmin": ("xmin", "x_min", "x1"),
    "ymin": ("ymin", "y_min", "y1"),
    "xmax": ("xmax", "x_max", "x2"),
    "ymax": ("ymax", "y_max", "y2"),
    "height": ("height", "image_height"),
    "width": ("width", "image_width"),
}
"""Columns -> names that they may have."""
_WITHOUT_HEAD = dict(zip(("file", *_SIDES, "class"), range(6), strict=True))
_NUMBER = re.compile(r"-?\d+(\.\d*)?|")


def read_boxes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read all tables of boxes below a folder, or one file.

    A table's split is named by the file (`train.csv`) or a folder. Classes are the sorted names of
    all boxes.
    """
    builder = DatasetBuilder(tree.root, FORMAT)
    for file in tree.with_extension(".csv"):
        if (columns := _columns_of(file)) is not None:
            split = find_split_of(file, tree.folder)
            with builder.record_errors(split=split):
                _read_table(builder, file, columns, split, tree.folder, tree.images)
    builder.split_by_folders()
    return [builder.build()]


def _read_table(
    builder: DatasetBuilder,
    file: Path,
    columns: Mapping[str, int],
    split: str | None,
    root: Path,
    images: Sequence[str],
) -> None:
    lines = list(read_cells(file))[0 if columns is _WITHOUT_HEAD else 1 :]
    rows = {
        line: {name: cells[place] if place < len(cells) else "" for name, place in columns.items()}
        for line, cells in lines
    }
    names = list(dict.fromkeys(row["file"] for row in rows.values()))
    paths = find_files(names, images, [file.parent, root], root=root, split=split)
    found = dict(zip(names, paths, strict=True))
    indices: dict[str, int] = {}
    for line, row in rows.items():
        where, name = f"{file}:{line}", row["file"]
        if not name:
            builder.add_issue(where, "row without a file name", split=split)
            continue
        if name not in indices:
            path = found[name] or root / name
            indices[name] = builder.add_image(
                path, annotation_file=file, size=_size(row), split=split
            )
            if found[name] is None:
                builder.add_missing(where, name, image=indices[name])
        with builder.record_errors(where, image=indices[name]):
            _add_box(builder, indices[name], row, line)


def _add_box(builder: DatasetBuilder, image: int, row: Mapping[str, str], line: int) -> None:
    stated = [row[side] for side in _SIDES]
    if not any((*stated, row["class"])):
        return  # an image without boxes
    try:
        corners = [float(cell) for cell in stated]
    except ValueError:
        raise ValueError(f"corners are not numbers: {', '.join(stated):.50}") from None
    if not row["class"]:
        raise ValueError("box without a class")
    builder.add_box(image, corners, builder.label(row["class"]), line=line)


def _size(row: Mapping[str, str]) -> tuple[int, int] | None:
    """(height, width) as stated; None where they are not whole numbers."""
    height, width = row.get("height", ""), row.get("width", "")
    return (int(height), int(width)) if height.isdecimal() and width.isdecimal() else None


def _columns_of(file: Path) -> dict[str, int] | None:
    """The places of the columns; None where the table has no boxes."""
    try:
        _, cells = next(read_cells(file), (0, []))
    except FileError:
        return None
    names = [cell.casefold() for cell in cells]
    places = {
        column: names.index(name)
        for column, known in _COLUMNS.items()
        for name in known
        if name in names
    }
    if {"file", "class", *_SIDES} <= places.keys():
        return places
    is_box = len(cells) == 6 and has_image_extension(cells[0])
    return _WITHOUT_HEAD if is_box and all(map(_NUMBER.fullmatch, cells[1:5])) else None


FORMAT = Format(
    name="csv",
    display_name="CSV of boxes",
    contents=frozenset({"boxes"}),
    looks_for="tables with the columns filename, xmin, ymin, xmax, ymax, class (csv)",
    matches=lambda tree, content: any(map(_columns_of, tree.with_extension(".csv"))),
    read=read_boxes,
)

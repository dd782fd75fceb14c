"""Boxes in CSV tables: a row for each box, with its image, corners in pixels, and class.

Columns are found by their names, such as those of TensorFlow (filename, width, height, class,
xmin, ymin, xmax, ymax). A table without names has those of RetinaNet: path, x1, y1, x2, y2, class.
A row without corners and class states an image without boxes.
"""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from mobilevit.data.errors import FileError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_files,
    find_split_of,
    has_image_extension,
    list_files,
    read_text,
)

_NAME = "CSV of boxes"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_COLUMNS = {
    "file": ("filename", "file_name", "file", "image", "image_path", "path"),
    "class": ("class", "class_name", "label", "category"),
    **{side: (side, f"{side[0]}_{side[1:]}") for side in _SIDES},
    "height": ("height", "image_height"),
    "width": ("width", "image_width"),
}
"""Columns -> names that they may have."""
_NUMBERED = {"xmin": "x1", "ymin": "y1", "xmax": "x2", "ymax": "y2"}


def read_boxes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read all tables of boxes below a folder, or one file.

    A table's split is named by the file (`train.csv`) or a folder. Classes are the sorted names of
    all boxes.
    """
    builder = DatasetBuilder(tree.root, FORMAT.name, _NAME)
    images = tree.images if tree.root.is_dir() else list_files(tree.folder)[0]
    for file in tree.with_extension(".csv"):
        if _columns_of(file) is not None:
            _read_table(builder, file, tree.folder, images)
    if tree.root.is_dir():
        for path in sorted({*images}.difference(builder.files)):
            builder.add_unused(path, "in no table of boxes")
    builder.split_by_folders()
    return [builder.build()]


def _read_table(builder: DatasetBuilder, file: Path, root: Path, images: list[str]) -> None:
    columns, delimiter, skipped = _columns_of(file) or ({}, ",", 0)
    split = find_split_of(file, root)
    try:
        reader = csv.reader(io.StringIO(read_text(file)), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))][skipped:]
    except (FileError, csv.Error) as error:
        reason = error if isinstance(error, FileError) else FileError(file, str(error))
        builder.add_error(reason, split=split)
        return
    cells = [
        {name: row[place].strip() if place < len(row) else "" for name, place in columns.items()}
        for _, row in rows
    ]
    names = list(dict.fromkeys(one["file"] for one in cells))
    paths = find_files(names, images, [file.parent, root], root=root, split=split)
    found = dict(zip(names, paths, strict=True))
    indices: dict[str, int] = {}
    for (line, _), row in zip(rows, cells, strict=True):
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
        _add_box(builder, indices[name], row, where, line)


def _add_box(
    builder: DatasetBuilder, image: int, row: Mapping[str, str], where: str, line: int
) -> None:
    stated = [row[side] for side in _SIDES]
    if not any((*stated, row["class"])):
        return  # an image without boxes
    try:
        corners = [float(cell) for cell in stated]
    except ValueError:
        builder.add_issue(where, f"corners are not numbers: {', '.join(stated):.50}", image=image)
        return
    if not row["class"]:
        builder.add_issue(where, "box without a class", image=image)
        return
    builder.add_box(image, corners, builder.label(row["class"]), line=line)


def _size(row: Mapping[str, str]) -> tuple[int, int] | None:
    """(height, width) as stated; None where they are not whole numbers."""
    height, width = row.get("height", ""), row.get("width", "")
    return (int(height), int(width)) if height.isdecimal() and width.isdecimal() else None


def _columns_of(file: Path) -> tuple[dict[str, int], str, int] | None:
    """Places of the columns, delimiter, and lines before the first box; None for other tables."""
    with file.open("rb") as opened:
        start = opened.readline(1 << 16)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    line = start.decode(encoding, "ignore").strip()
    delimiter = max(",;\t", key=line.count)
    cells = next(csv.reader([line], delimiter=delimiter), [])
    names = [cell.strip().casefold() for cell in cells]
    places = {
        column: names.index(name)
        for column, known in _COLUMNS.items()
        for name in (*known, _NUMBERED.get(column, ""))
        if name in names
    }
    if {"file", "class", *_SIDES} <= places.keys():
        return places, delimiter, 1
    number = re.compile(r"-?\d+(\.\d*)?|")
    if (
        len(cells) == 6
        and has_image_extension(cells[0])
        and all(number.fullmatch(cell.strip()) for cell in cells[1:5])
    ):
        return dict(zip(("file", *_SIDES, "class"), range(6), strict=True)), delimiter, 0
    return None


FORMAT = Format(
    name="csv",
    display_name=_NAME,
    contents=frozenset({"boxes"}),
    looks_for="tables with the columns filename, xmin, ymin, xmax, ymax, class (csv)",
    matches=lambda tree, content: any(map(_columns_of, tree.with_extension(".csv"))),
    read=read_boxes,
)

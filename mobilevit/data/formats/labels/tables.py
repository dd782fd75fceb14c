"""Tables that state the class of each image: CSV files, and `metadata.jsonl` next to images."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mobilevit.data.errors import DataError, FileError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    IMAGE_FOLDERS,
    FileTree,
    find_files,
    find_split,
    find_split_of,
    has_image_extension,
    normalize_name,
)
from mobilevit.data.formats.text import read_cells, read_lines

DEPTH = 2
"""How many levels below the data set's folder tables are searched for."""
FILE_COLUMNS = (
    "file_name", "filename", "file", "image", "image_name", "image_path", "image_id", "img",
    "path", "filepath", "file_path", "name", "id",
)  # fmt: skip
"""Columns that may name images, likeliest first."""
LABEL_COLUMNS = ("label", "class", "category", "class_name", "label_name", "target", "labels")
"""Columns that may state classes, likeliest first."""
SPLIT_COLUMNS = ("split", "set", "subset", "partition")

_MARKS = {"0": False, "0.0": False, "1": True, "1.0": True}
_ROW_NUMBERS = ("", "id", "index", "unnamed: 0")  # lower case; "" and the last one by pandas
_ROBOFLOW = "_classes.csv"


class Columns(NamedTuple):
    """The names of a table's columns."""

    file: str
    label: str | None
    """The column of classes; None where each class has a column of 0 and 1."""
    split: str | None
    classes: tuple[str, ...]
    """The columns of classes, if each has one."""


def read_labels(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read a table for all images, or one for each split, named after it or in its folder.

    A table has a row for each image, with a column of `FILE_COLUMNS` and one of `LABEL_COLUMNS`, or
    a column for each class, of which one is 1 and the others are 0. Without a split of its own, or
    one of `SPLIT_COLUMNS`, the folders of images state splits.
    """
    builder = DatasetBuilder(tree.folder, FORMAT)
    tables = _find_tables(tree)
    splits = {file: find_split_of(file, tree.folder) for file in tables}
    if len(tables) > 1 and None in splits.values():
        names = ", ".join(str(path.relative_to(tree.folder)) for path in list(tables)[:5])
        raise DataError(f"{tree.root}: has several tables of labels, {names}; give the one to read")
    labels: dict[str, str] = {}
    for file, columns in tables.items():
        _read_table(builder, file, columns, splits[file], tree.images, labels)
    folders = {path: Path(path).parent.name for path in labels}
    others = [path for path, name in folders.items() if name != labels[path]]
    if others and not {*labels.values()}.isdisjoint(folders.values()):
        message = (
            f"is in a folder of another class, as {len(others)} images are; the table counts "
            "(--data.format folders reads the folders)"
        )
        builder.add_unused(others[0], message)
    builder.notes.append(f"classes by {', '.join(file.name for file in tables)}")
    builder.split_by_folders()
    return [builder.build()]


def _read_table(
    builder: DatasetBuilder,
    file: Path,
    columns: Columns,
    split: str | None,
    images: Sequence[str],
    labels: dict[str, str],
) -> None:
    rows = list(_rows(file))
    names = [str(row.get(columns.file) or "").strip() for _, row in rows]
    if not any(map(has_image_extension, names)):  # numbers or names without extensions
        by_stem = {Path(path).stem: Path(path).suffix for path in images}
        names = [name + by_stem.get(name, "") for name in names]
    bases = [file.parent, builder.root]
    paths = find_files(names, images, bases, root=builder.root, split=split)
    for (line, row), name, path in zip(rows, names, paths, strict=True):
        where = f"{file}:{line}"
        with builder.record_errors(where, split=split):
            label = _label(row, columns, name or "row")
            if path is None:
                builder.add_missing(where, name or "no name", split=split)
            elif path not in labels:
                labels[path] = label
                stated = find_split(str(row.get(columns.split, ""))) if columns.split else None
                builder.add_image(path, annotation_file=file, label=label, split=stated or split)
            elif labels[path] != label:
                message = f"{name} is of class {label} here and of {labels[path]} before"
                builder.add_issue(where, message, skippable=False)


def _label(row: Mapping[str, Any], columns: Columns, name: str) -> str:
    """The class of a row's image; a `ValueError` if it has none, or several."""
    if columns.label is not None:
        value = row.get(columns.label)
        label = str(value).strip()
        if not isinstance(value, str | int | float) or not label:
            raise ValueError(f"{name} has no single label, but {value!r:.50}")
        return label
    marks = {label: row.get(label, "") for label in columns.classes}
    for label, mark in marks.items():
        if _mark(mark) is None:
            raise ValueError(f"{name} has {mark!r:.50} for {label}, instead of 0 or 1")
    of = [label for label, mark in marks.items() if _mark(mark)]
    if len(of) > 1:
        raise ValueError(
            f"{name} is of {len(of)} classes, {', '.join(of)}; multi-label classification is not "
            "supported yet: one class for each image is needed"
        )
    if not of:
        raise ValueError(f"{name} is of none of the classes {', '.join(columns.classes)}")
    return of[0]


def _mark(value: Any) -> bool | None:
    """Whether a cell marks its column's class; None where it is neither 0 nor 1."""
    return _MARKS.get(str(value)) if isinstance(value, str | int | float) else None


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their lines."""
    if file.suffix.lower() != ".jsonl":
        lines = read_cells(file)
        _, names = next(lines, (0, []))
        for number, cells in lines:
            yield number, dict(zip(names, cells, strict=False))
        return
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FileError(f"{file}:{number}", f"not JSON: {error}") from error
        if isinstance(row, dict):
            yield number, row


def _columns(row: Mapping[str, Any]) -> Columns | None:
    """The columns of a table with this row; None where it has no files or no classes."""
    names = {name.casefold(): name for name in row}
    file, label, split = (
        next((names[name] for name in known if name in names), None)
        for known in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    others = [name for name in row if name not in (file, split)]
    if file is None or not others:
        return None
    if label is None and len(row) == 2 and isinstance(row[others[0]], str | int | float):
        label = others[0]
    if label is not None:
        return Columns(file, label, split, ())
    classes = tuple(name for name in others if name.casefold() not in _ROW_NUMBERS)
    one_hot = classes and all(_mark(row[name]) is not None for name in classes)
    return Columns(file, None, split, classes) if one_hot else None


def _find_tables(tree: FileTree) -> dict[Path, Columns]:
    """Tables of labels and their columns; examples of results to submit are none.

    Next to class folders, columns of 0 and 1 may be any attributes: they count as classes only in
    Roboflow's tables, and where the root is the table.
    """
    tables = {}
    for file in tree.with_extension(".csv", ".tsv", ".jsonl", depth=DEPTH):
        try:
            _, first = next(_rows(file), (0, {}))
        except FileError:
            continue
        columns = _columns(first)
        if columns is None or "submission" in file.stem.casefold():
            continue
        stated = bool(columns.label) or file.name == _ROBOFLOW or tree.root.is_file()
        if stated or not _has_class_folders(tree):
            tables[file] = columns
    return tables


def _has_class_folders(tree: FileTree) -> bool:
    """Whether images lie in several folders that are named neither after splits nor images."""
    folders = set(map(os.path.dirname, tree.images))
    names = {Path(folder).relative_to(tree.root).name for folder in folders} - {""}
    others = {name for name in names if find_split(name, within=True) is None}
    return len(set(map(normalize_name, others)) - IMAGE_FOLDERS) > 1


FORMAT = Format(
    name="table",
    display_name="a table of labels",
    contents=frozenset(["labels"]),
    looks_for="a .csv or metadata.jsonl with columns for files and labels",
    matches=lambda tree, content: bool(_find_tables(tree)),
    read=read_labels,
)

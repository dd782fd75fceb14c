"""Tables that state the class of each image: CSV files, and `metadata.jsonl` next to images."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevit.data.errors import DataError, FileError
from mobilevit.data.formats.base import Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_files,
    find_split,
    find_split_of,
    has_image_extension,
    read_lines,
    read_text,
)

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

_NAME = "a table of labels"
_EXTENSIONS = (".csv", ".tsv", ".jsonl")
# In the order in which they are tried on the first line.
_DELIMITERS = (",", ";", "\t")


def read_labels(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read a table for all images, or one for each split, named after it or in its folder.

    A table has a row for each image, with a column of `FILE_COLUMNS` and one of `LABEL_COLUMNS`;
    without a split of its own, or one of `SPLIT_COLUMNS`, the folders of images state splits.
    """
    builder = DatasetBuilder(tree.folder, "table", _NAME, content="labels")
    images = FileTree(tree.folder).images
    tables = _find_tables(tree)
    splits = {file: find_split_of(file, tree.folder) for file in tables}
    of_splits = [file for file in tables if splits[file] is not None]
    if len(tables) > 1 and of_splits != tables:
        names = ", ".join(str(path.relative_to(tree.folder)) for path in tables[:5])
        raise DataError(f"{tree.root}: has several tables of labels, {names}; give the one to read")
    labels: dict[str, str] = {}
    for file in tables:
        _read_table(builder, file, splits[file], images, labels)
    for path in images:
        if path not in labels:
            names = " and ".join(file.name for file in tables)
            builder.add_unused(path, f"is not in {names}")
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
    split: str | None,
    images: Sequence[str],
    labels: dict[str, str],
) -> None:
    rows = list(_rows(file))
    columns = _columns(rows[0][1]) if rows else None
    if columns is None:
        return
    file_column, label_column, split_column = columns
    names = [str(row.get(file_column) or "").strip() for _, row in rows]
    if not any(map(has_image_extension, names)):  # numbers or names without extensions
        by_stem = {Path(path).stem: Path(path).suffix for path in images}
        names = [name + by_stem.get(name, "") for name in names]
    bases = [file.parent, builder.root]
    paths = find_files(names, images, bases, root=builder.root, split=split)
    for (line, row), name, path in zip(rows, names, paths, strict=True):
        where = f"{file}:{line}"
        value = row.get(label_column)
        label = "" if value is None else str(value).strip()
        if not isinstance(value, str | int | float) or not label:
            builder.add_issue(where, f"{name or 'row'} has no single label, but {value!r:.50}")
        elif path is None:
            builder.add_missing(where, name or "no name", split=split)
        elif path in labels:
            if labels[path] != label:
                message = f"{name} is of class {label} here and of {labels[path]} before"
                builder.add_issue(where, message, skippable=False)
        else:
            labels[path] = label
            stated = find_split(str(row.get(split_column, ""))) if split_column else None
            builder.add_image(path, annotation_file=file, label=label, split=stated or split)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their lines; keys are in lower case."""
    if file.suffix.lower() == ".jsonl":
        for number, line in read_lines(file):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FileError(f"{file}:{number}", f"not JSON: {error}") from error
            if isinstance(row, dict):
                yield number, {str(key).casefold(): value for key, value in row.items()}
        return
    lines = read_text(file).splitlines()
    head = lines[0] if lines else ""
    delimiter = next((mark for mark in _DELIMITERS if mark in head), ",")
    reader = csv.DictReader(lines, delimiter=delimiter)
    reader.fieldnames = [name.strip().casefold() for name in reader.fieldnames or ()]
    for row in reader:
        yield reader.line_num, row


def _columns(row: Mapping[str, Any]) -> tuple[str, str, str | None] | None:
    """The columns of files, classes and splits; None where the first two are not there."""
    files, labels, splits = (
        next((name for name in known if name in row), None)
        for known in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    if files is not None and labels is None and len(row) == 2:
        (labels,) = row.keys() - {files}
    return None if files is None or labels is None else (files, labels, splits)


def _find_tables(tree: FileTree) -> list[Path]:
    """Tables of labels; examples of results to submit are none."""
    tables = []
    for file in tree.with_extension(*_EXTENSIONS, depth=DEPTH):
        try:
            first = next(_rows(file), None)
        except (FileError, csv.Error):
            continue
        if first is not None and "submission" not in file.stem.casefold() and _columns(first[1]):
            tables.append(file)
    return tables


def _matches(tree: FileTree, content: Content) -> bool:
    return bool(_find_tables(tree))


FORMAT = Format(
    name="table",
    display_name=_NAME,
    contents=frozenset(["labels"]),
    looks_for="a .csv or metadata.jsonl with columns for files and labels",
    matches=_matches,
    read=read_labels,
)

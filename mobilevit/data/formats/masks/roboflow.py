"""Masks as Roboflow exports them: next to their images, with the classes in a table."""

from pathlib import Path

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.masks.folders import build_masks, match_masks
from mobilevit.data.formats.masks.values import class_values
from mobilevit.data.formats.text import read_cells

TABLE, HEAD = "_classes.csv", ["pixel value", "class"]
"""The table; one of another head, `filename`, is of labels."""
SUFFIX = "_mask"


def read_roboflow(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read `x.jpg` and `x_mask.png` of all folders with a `_classes.csv`, which must be equal."""
    tables = _tables(tree)
    (first, names), *others = tables.items()
    for other, found in others:
        if found != names:
            raise DataError(f"{first} and {other} state different classes")
    folders = {table.parent for table in tables}
    files = [path for path in tree.images if Path(path).parent in folders]
    masks = [path for path in files if Path(path).stem.endswith(SUFFIX)]
    images = sorted(set(files) - set(masks))
    builder = DatasetBuilder(tree.root, FORMAT)
    builder.notes.append(f"{len(names)} classes by {TABLE}")
    matches, ignore = match_masks(tree.root, images, masks), options.ignore
    return [build_masks(builder, matches, class_values(names, {ignore}), ignore=ignore)]


def _tables(tree: FileTree) -> dict[Path, dict[int, str]]:
    """The tables of classes: file -> value of the masks -> name."""
    tables: dict[Path, dict[int, str]] = {}
    for file in tree.with_extension(".csv"):
        if file.name != TABLE:
            continue
        rows = [cells for _, cells in read_cells(file)]
        if rows and [cell.lower() for cell in rows[0]] == HEAD:
            try:
                tables[file] = {int(value): name for value, name in rows[1:]}
            except ValueError as error:
                raise DataError(f"{file}: is no table of values and names: {error}") from error
    return tables


FORMAT = Format(
    name="roboflow",
    display_name="Roboflow's masks",
    contents=frozenset(["masks"]),
    looks_for=f"Roboflow's masks (x.jpg, x{SUFFIX}.png, {TABLE})",
    matches=lambda tree, content: bool(_tables(tree)),
    read=read_roboflow,
    states_ignored=False,
)

"""YOLO's text files, one per image, with a line per box.

A line is `class cx cy width height`, relative to the upright image's width and height; or a
polygon, `class x1 y1 x2 y2 x3 y3 ...`, which is replaced by its bounding box. An image whose file
is empty or missing has no boxes.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mobilevit.data.errors import DataError, FileError
from mobilevit.data.formats.base import (
    MISSING_IMAGES,
    Content,
    DatasetBuilder,
    Format,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.files import (
    IMAGE_FOLDERS,
    FileTree,
    find_split,
    find_split_in_path,
    has_image_extension,
    join_names,
    list_files,
    match_files,
    normalize_name,
    read_text,
)

SPLITS = ("train", "val", "valid", "validation", "test")
YAML_DEPTH = 3
"""How many levels below the data set's folder YAML files are searched for."""
MAX_UNNAMED_CLASSES = 10_000
"""Larger class numbers are refused where classes have no names."""

_CLASS_FILES = frozenset(
    ("classes.txt", "names.txt", "labels.txt", "predefined_classes.txt", "_darknet.labels")
)
_MAX_OTHER_TEXTS = 100
"""After this many text files of other kinds, no labels are expected."""
_TOLERANCE = 0.5
"""How far a coordinate may lie outside 0 to 1."""


def looks_like_data_yaml(file: Path) -> bool:
    """Whether a file is YAML with class names, or with training and validation folders."""
    try:
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except (FileError, yaml.YAMLError, RecursionError):
        return False
    return isinstance(content, dict) and (
        "names" in content or ("train" in content and not content.keys().isdisjoint(SPLITS[1:]))
    )


def looks_like_labels(images: Sequence[str], others: Sequence[str]) -> bool:
    """Whether there are text files that are named after images and hold numbers."""
    stems = {normalize_name(_stem(path)) for path in images}
    texts = [path for path in others if _is_label(path) and normalize_name(_stem(path)) in stems]
    other_texts = 0
    for path in texts:
        try:
            words = read_text(Path(path)).split()
            if len([float(word) for word in words[:5]]) == 5:
                return True
            other_texts += bool(words)  # an empty one may be of an image without boxes
        except (FileError, ValueError):
            other_texts += 1
        if other_texts == _MAX_OTHER_TEXTS:
            break
    return False


def read_boxes(tree: FileTree) -> ParsedDataset:
    """Read a `data.yaml`, or a folder without one.

    In a `data.yaml`, `names` is a list or a mapping from numbers, and `train`, `val` and `test` are
    each a folder, a text file of image paths, or a list of these. They are searched for below
    `path`, then below the YAML's folder. If a path is from another machine, or wrong by a `../`,
    its longest end that exists is used.

    A folder without a YAML has its splits in folders named `train`, `val` and so on, or in text
    files of these names that list images. Class names are in `classes.txt`, `obj.names` or the
    like; without any, classes are named by their numbers.
    """
    builder = DatasetBuilder(tree.folder, "yolo", "YOLO", relative=True)
    yamls = [tree.root] if tree.root.is_file() else _data_yamls(tree)
    if yamls:
        layout = _layout_of_yaml(_only_yaml(tree.root, yamls), builder)
    else:
        layout = _layout_of_folder(tree, builder)
    images = list(dict.fromkeys(layout.images))
    used, highest = set(), -1
    for image, matches in zip(images, match_files(images, layout.labels), strict=True):
        # Text next to an image may be of another kind, so a separate folder of labels is preferred.
        folder = os.path.dirname(image)
        labels = min(matches, key=lambda path: os.path.dirname(path) == folder, default="")
        index = builder.add_image(image, annotation_file=labels)
        if image in layout.missing:
            message = f"image missing: {image}"
            builder.add_issue(layout.missing[image], message, category=MISSING_IMAGES, image=index)
        if labels:
            used.add(labels)
            highest = max(highest, _read_labels(labels, index, layout, builder))
    names = layout.names
    if names is None:
        if highest >= MAX_UNNAMED_CLASSES:
            message = f"class number {highest}, and no file of class names"
            builder.add_issue(builder.root, message, skippable=False)
        names = {n: str(n) for n in range(highest + 1 if highest < MAX_UNNAMED_CLASSES else 0)}
    for path in layout.labels:
        if path not in used:
            builder.add_unused(path, "no image belongs to it")
    indices = {path: index for index, path in enumerate(images)}
    for split, paths in layout.splits.items():
        builder.splits[split] = [indices[path] for path in dict.fromkeys(paths)]
    listed = {path for paths in layout.splits.values() for path in paths}
    for path in images if layout.splits else ():
        if path not in listed:
            builder.add_unused(path, "in no split")
    return builder.build(tuple(names.values()), category_ids=tuple(names))


# Labels


def _read_labels(file: str, image: int, layout: _Layout, builder: DatasetBuilder) -> int:
    """Add the boxes of one file; return the highest class number in it."""
    highest = -1
    try:
        lines = read_text(Path(file)).splitlines()
    except FileError as error:
        builder.add_error(error, image=image)
        return highest
    for number, line in enumerate(lines, start=1):
        if not (words := line.split()):
            continue
        try:
            label, corners = parse_line(words, layout.class_indices, layout.extra)
        except ValueError as error:
            builder.add_issue(f"{file}:{number}", str(error), image=image)
            continue
        if layout.names is not None or label < MAX_UNNAMED_CLASSES:
            builder.add_box(image, corners, label, line=number)
        highest = max(highest, label)
    return highest


def parse_line(
    words: list[str], class_indices: Mapping[int, int] | None = None, extra: int = 0
) -> tuple[int, tuple[float, float, float, float]]:
    """Parse the numbers of a line: the label, and the corners relative to the image.

    Args:
        class_indices: class number -> index; None: class numbers are indices.
        extra: how many numbers may follow a box.

    >>> parse_line("0 .5 .5 .5 1".split())
    (0, (0.25, 0.0, 0.75, 1.0))
    """
    try:
        number, *values = map(float, words)
    except ValueError:
        raise ValueError(f"not numbers: {' '.join(words)!r:.60}") from None
    if not 0 <= number < 2**31 or not number.is_integer():
        raise ValueError(f"starts with {words[0]}, which is not a class number")
    if extra and len(values) == 4 + extra:
        values = values[:4]
    if outside := [v for v in values if v < -_TOLERANCE or v > 1 + _TOLERANCE]:
        raise ValueError(f"{outside[0]:g} is not a share of an image's width or height: 0 to 1")
    if len(values) == 4:
        cx, cy, width, height = values
        corners = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    else:
        raise ValueError(
            f"{len(words)} numbers, but a box has 5: class, cx, cy, width, height; and a polygon "
            "7 or more: class, x1, y1, x2, y2, x3, y3 ..."
        )
    if class_indices is None:
        return int(number), corners
    if int(number) not in class_indices:
        known = sorted(class_indices)
        ranged = known == list(range(len(known)))
        names = f"0 to {len(known) - 1}" if ranged else ", ".join(map(str, known))
        raise ValueError(f"class {int(number)}, but there are names for {names}")
    return class_indices[int(number)], corners


# Where images, labels and class names are


@dataclass
class _Layout:
    names: dict[int, str] | None = None
    """Class number -> name; None where no file names them."""
    extra: int = 0
    """How many numbers may follow a box on its line (key points)."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Split -> images; empty where no split is named."""
    images: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Missing images -> file and line that list them."""
    labels: list[str] = field(default_factory=list)
    """Files that may hold labels."""

    @cached_property
    def class_indices(self) -> dict[int, int] | None:
        """Class number -> index in `names`."""
        return None if self.names is None else {n: index for index, n in enumerate(self.names)}


def _layout_of_folder(tree: FileTree, builder: DatasetBuilder) -> _Layout:
    layout = _Layout()
    lists: set[str] = set()
    class_files: dict[tuple[str, ...], str] = {}
    for path in tree.others:
        try:
            if _is_class_file(path):
                lines = read_text(Path(path)).rstrip().splitlines()
                class_files[tuple(line.strip() for line in lines)] = path
            elif (split := find_split(_stem(path))) and _is_list(Path(path)):
                lists.add(path)
                folders = [Path(path).parent, tree.root]
                listed = _listed_images(Path(path), folders, split, layout, builder)
                layout.splits.setdefault(split, []).extend(listed)
        except FileError as error:
            builder.add_error(error)
    layout.labels = [path for path in tree.others if _is_label(path) and path not in lists]
    if len(class_files) > 1:
        message = f"class names differ: {', '.join(class_files.values())}; keep one"
        builder.add_issue(tree.root, message, skippable=False)
    for names, path in class_files.items():
        layout.names = _check_names(dict(enumerate(names)), path, builder)
    # Next to a folder of images there may be one of masks, or of drawn results.
    images = [path for path in tree.images if _in_image_folder(path, tree.root)]
    if images:
        for path in sorted(set(tree.images).difference(images)):
            builder.add_unused(path, "not in a folder of images, as others are")
    images = images or tree.images
    for path in () if layout.splits else images:
        if (split := find_split_in_path(path, tree.root)) is not None:
            layout.splits.setdefault(split, []).append(path)
    layout.images = [*images, *(path for paths in layout.splits.values() for path in paths)]
    return layout


def _layout_of_yaml(file: Path, builder: DatasetBuilder) -> _Layout:
    """The layout that a `data.yaml` states; without splits, that of its folder."""
    content = _load_yaml(file, builder)
    entries = {split: _as_list(content.get(split)) for split in SPLITS}
    if not any(entries.values()):
        layout = _layout_of_folder(FileTree(file.parent), builder)
    else:
        layout = _Layout()
        folders = [file.parent]
        if stated := _as_list(content.get("path")):
            # One that does not exist is from another machine, or relative to a tool's own folder.
            folders = [path for path in (_locate(stated[0], folders),) if path] + folders
        for split, names in entries.items():
            if names:
                _add_split(split, names, folders, file, layout, builder)
        image_folders = {os.path.dirname(path) for path in layout.images}
        for top in _outermost(_label_root(Path(folder), folders) for folder in image_folders):
            layout.labels += filter(_is_label, list_files(top)[1])
    layout.names = _yaml_names(content, file, builder) or layout.names
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and all(isinstance(n, str) and n.isdigit() for n in shape):
        layout.extra = math.prod(map(int, shape))
    return layout


def _load_yaml(file: Path, builder: DatasetBuilder) -> dict[str, Any]:
    """A YAML file's mapping; problems become issues."""
    try:
        # All values as text: YAML would make a boolean of a class named `no`.
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except FileError as error:
        builder.add_error(error)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = str(file) if mark is None else f"{file}:{mark.line + 1}"
        message = f"not YAML: {getattr(error, 'problem', error)}"
        builder.add_issue(where, message, skippable=False)
    else:
        if isinstance(content, dict):
            return content
        message = "not a mapping with names, train and val"
        builder.add_issue(file, message, skippable=False)
    return {}


def _as_list(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and v not in ("", "null", "~", "None")]


def _yaml_names(
    content: Mapping[str, Any], file: Path, builder: DatasetBuilder
) -> dict[int, str] | None:
    """Number -> name, in order of number; None where none are stated."""
    stated = content.get("names")
    if stated is None:
        return None
    # Anything but text is refused unread: by YAML's aliases a few lines can nest without end.
    pairs = list(stated.items() if isinstance(stated, dict) else enumerate(stated))
    if not isinstance(stated, dict | list) or not all(
        str(number).isdigit() and isinstance(name, str) for number, name in pairs
    ):
        message = "names must be a list, or a mapping from class numbers"
        builder.add_issue(file, message, skippable=False)
        return None
    names = {int(number): name.strip() for number, name in pairs}
    count = content.get("nc")
    if isinstance(count, str) and count != str(len(names)):
        message = f"nc is {count}, but there are {len(names)} names"
        builder.add_issue(file, message, skippable=False)
    return _check_names(dict(sorted(names.items())), file, builder)


def _check_names(
    names: dict[int, str], file: str | Path, builder: DatasetBuilder
) -> dict[int, str]:
    if repeated := [name for name, times in Counter(names.values()).items() if times > 1]:
        message = f"{join_names('class', repeated)} stated more than once"
        builder.add_issue(file, message, skippable=False)
    if not all(names.values()):
        builder.add_issue(file, "a class without a name", skippable=False)
    return names


def _add_split(
    split: str,
    names: list[str],
    folders: list[Path],
    file: Path,
    layout: _Layout,
    builder: DatasetBuilder,
) -> None:
    members = layout.splits.setdefault(split, [])
    for name in names:
        found = _locate(name, folders)
        if found is None:
            places = " and ".join(map(str, folders))
            message = f"{split}: {name} does not exist; looked for in {places}"
            builder.add_issue(file, message, split=split, skippable=False)
        elif found.is_dir():
            members += list_files(found)[0]
        elif has_image_extension(found.name):
            members.append(str(found))
        else:
            members += _listed_images(found, [found.parent, *folders], split, layout, builder)
    layout.images += members


def _listed_images(
    file: Path, folders: list[Path], split: str, layout: _Layout, builder: DatasetBuilder
) -> Iterator[str]:
    """The images that a text file lists, one per line, including missing ones."""
    try:
        lines = read_text(file).splitlines()
    except FileError as error:
        builder.add_issue(error.where, error.message, split=split, skippable=False)
        return
    for number, line in enumerate(lines, start=1):
        if line := line.strip():
            found = _locate(line, folders)
            path = os.path.join(folders[0], line) if found is None else str(found)
            if found is None:
                layout.missing[path] = f"{file}:{number}"
            yield path


def _locate(name: str, folders: Sequence[Path]) -> Path | None:
    """The file or folder `name` below one of `folders`, or its longest end that exists."""
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    candidates = [folder / name for folder in folders]
    candidates += [folder / end for end in ends for folder in folders]
    for path in candidates:
        if path.exists():
            return Path(os.path.normpath(path)) if ".." in path.parts else path
    return None


def _label_root(folder: Path, bases: Sequence[Path]) -> Path:
    """The folder to search for labels: the one above `images`, or above the images' folder."""
    inside = any(folder.is_relative_to(base) for base in bases)
    for above in (folder, *folder.parents)[: None if inside else 4]:
        if above == bases[-1]:  # never above the data set
            break
        if normalize_name(above.name) in IMAGE_FOLDERS:
            return above.parent
        if above in bases:
            break
    return folder if folder in bases else folder.parent


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """The folders that lie in no other."""
    result: list[Path] = []
    for folder in sorted(set(folders)):  # a folder comes before those in it
        if not any(folder.is_relative_to(other) for other in result):
            result.append(folder)
    return result


def _only_yaml(root: Path, paths: list[Path]) -> Path:
    """The only YAML file, or the one named `data`."""
    data = [path for path in paths if path.stem.lower() == "data"]
    candidates = data if len(data) == 1 else paths
    if len(candidates) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in candidates[:5])
        raise DataError(f"{root}: has several YAML files, {names}; give the one to read")
    return candidates[0]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _in_image_folder(path: str, root: Path) -> bool:
    folders = Path(path).relative_to(root).parts[:-1]
    return any(normalize_name(folder) in IMAGE_FOLDERS for folder in folders)


def _is_class_file(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name in _CLASS_FILES or name.endswith(".names")


def _is_label(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name.endswith(".txt") and not _is_class_file(path) and not name.startswith("readme")


def _is_list(file: Path) -> bool:
    """Whether a file is text whose first line names an image."""
    if file.suffix.lower() != ".txt":
        return False
    return has_image_extension(read_text(file).split("\n", 1)[0].strip())


def _data_yamls(tree: FileTree) -> list[Path]:
    return [
        p for p in tree.with_extension(".yaml", ".yml", depth=YAML_DEPTH) if looks_like_data_yaml(p)
    ]


def _matches(tree: FileTree, content: Content) -> bool:
    if tree.root.is_file():
        return tree.root.suffix.lower() in (".yaml", ".yml")
    return bool(_data_yamls(tree)) or looks_like_labels(tree.images, tree.others)


def _read(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    empty = not tree.root.is_file() and not tree.images and not _data_yamls(tree)
    return [] if empty else [read_boxes(tree)]


FORMAT = Format(
    name="yolo",
    display_name="YOLO",
    contents=frozenset(["boxes"]),
    looks_for="YOLO (data.yaml, or .txt labels with images' names)",
    matches=_matches,
    read=_read,
)

"""YOLO's text files, one per image, with a line per box.

A line is `class cx cy width height`, relative to the upright image's width and height; or a
polygon, `class x1 y1 x2 y2 x3 y3 ...`, which is replaced by its bounding box. An image whose file
is empty or missing has no boxes.
"""

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from mobilevit.data.errors import DataError, FileError
from mobilevit.data.formats.base import Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    IMAGE_FOLDERS,
    VAL_SPLITS,
    FileTree,
    find_split,
    folder_names,
    has_image_extension,
    list_files,
    match_files,
    normalize_name,
)
from mobilevit.data.formats.masks.values import format_ranges
from mobilevit.data.formats.text import read_lines, read_text

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
        content = _load_yaml(file)
    except FileError:
        return False
    return "names" in content or ("train" in content and not content.keys().isdisjoint(VAL_SPLITS))


def looks_like_labels(images: Sequence[str], others: Sequence[str]) -> bool:
    """Whether there are text files that are named after images and hold numbers."""
    stems = set(map(_stem, images))
    # An empty one may be of an image without boxes.
    texts = (p for p in others if _is_label(p) and _stem(p) in stems and os.path.getsize(p))
    for path in islice(texts, _MAX_OTHER_TEXTS):
        try:
            if len([float(word) for word in read_text(Path(path)).split()[:5]]) == 5:
                return True
        except (FileError, ValueError):
            pass
    return False


def read_boxes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read a `data.yaml`, or a folder without one.

    In a `data.yaml`, `names` is a list or a mapping from numbers, and `train`, `val` and `test` are
    each a folder, a text file of image paths, or a list of these. They are searched for below
    `path`, then below the YAML's folder. If a path is from another machine, or wrong by a `../`,
    its longest end that exists is used.

    A folder without a YAML has its splits in folders named `train`, `val` and so on, or in text
    files of these names that list images. Class names are in `classes.txt`, `obj.names` or the
    like; without any, classes are named by their numbers.
    """
    builder = DatasetBuilder(tree.folder, FORMAT, unit="shares")
    content: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    lists: dict[str, str] = {}
    images: list[str] = []
    names: dict[int, str] | None = None
    if (file := _find_yaml(tree)) is not None:
        tree = FileTree(file.parent)
        with builder.record_errors(file):
            content = _load_yaml(file)
            names = _yaml_names(content)
        splits = _yaml_splits(content, file, builder)
    if not splits:
        lists = _find_lists(tree, builder)
        for path, split in lists.items():
            found = _listed_images(Path(path), [Path(path).parent, tree.root], split, builder)
            splits.setdefault(split, []).extend(found)
        # Next to a folder of images there may be one of masks, or of drawn results.
        images = [path for path in tree.images if folder_names(path, tree.root) & IMAGE_FOLDERS]
        images = images or tree.images
    # By absolute paths: below a relative root, lists may name the same images so.
    everything = [*images, *(path for paths in splits.values() for path in paths)]
    images = list({os.path.abspath(path): path for path in everything}.values())
    if names is None:
        names, file = _names_in_files(tree, builder) or (None, file)
    labels = _label_files(tree, images, lists)
    highest = _add_images(builder, images, labels, names, _extra_numbers(content))
    if names is None:
        names = {number: str(number) for number in range(highest + 1)}
    indices = {os.path.abspath(path): index for index, path in enumerate(images)}
    for split, paths in splits.items():
        builder.splits[split] = [indices[p] for p in dict.fromkeys(map(os.path.abspath, paths))]
    builder.split_by_folders()
    builder.check_names(names, file or tree.root)
    return [builder.build(tuple(names.values()), category_ids=tuple(names), where=file)]


# Labels


def _add_images(
    builder: DatasetBuilder,
    images: Sequence[str],
    labels: Sequence[str],
    names: Mapping[int, str] | None,
    extra: int,
) -> int:
    """Add images and their boxes; return the highest class."""
    class_indices = None if names is None else {n: index for index, n in enumerate(names)}
    used, highest = set(), -1
    for image, matches in zip(images, match_files(images, labels), strict=True):
        # Text next to an image may be of another kind, so a separate folder of labels is preferred.
        folder = os.path.dirname(image)
        file = min(matches, key=lambda path: os.path.dirname(path) == folder, default="")
        index = builder.add_image(image, annotation_file=file)
        used.add(file)
        with builder.record_errors(image=index):
            for number, line in read_lines(Path(file)) if file else ():
                with builder.record_errors(f"{file}:{number}", image=index):
                    label, corners = parse_line(line.split(), class_indices, extra)
                    builder.add_box(index, corners, label, line=number)
                    highest = max(highest, label)
    for path in labels:
        if path not in used:
            builder.add_unused(path, "no image belongs to it")
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
        if number >= MAX_UNNAMED_CLASSES:
            raise ValueError(f"class number {int(number)}, and no file of class names")
        return int(number), corners
    if int(number) not in class_indices:
        known = format_ranges(class_indices)
        raise ValueError(f"class {int(number)}, but there are names for {known}")
    return class_indices[int(number)], corners


# Where images, labels and class names are


def _find_lists(tree: FileTree, builder: DatasetBuilder) -> dict[str, str]:
    """Text file that lists images -> the split that it is named after."""
    lists = {}
    for file in tree.with_extension(".txt"):
        if (split := find_split(file.stem)) is not None:
            with builder.record_errors():
                _, first = next(read_lines(file), (0, ""))
                if has_image_extension(first):
                    lists[str(file)] = split
    return lists


def _label_files(tree: FileTree, images: Sequence[str], lists: Collection[str]) -> list[str]:
    """Text files that may be labels: in the tree, and around images that lie elsewhere."""
    others = dict.fromkeys(tree.others)
    for folder in sorted({os.path.dirname(path) for path in images}):
        if os.path.relpath(folder, tree.root).startswith(os.pardir):
            nearby = [Path(folder), *Path(folder).parents][:4]
            above = (path.parent for path in nearby if normalize_name(path.name) in IMAGE_FOLDERS)
            others |= dict.fromkeys(list_files(next(above, folder))[1])
    return [path for path in others if _is_label(path) and path not in lists]


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        # All values as text: YAML would make a boolean of a class named `no`.
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = file if mark is None else f"{file}:{mark.line + 1}"
        raise FileError(where, f"not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise FileError(file, "not a mapping with names, train and val")
    return content


def _as_list(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and v not in ("", "null", "~", "None")]


def _extra_numbers(content: Mapping[str, Any]) -> int:
    """How many numbers may follow a box on its line (key points)."""
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and all(isinstance(n, str) and n.isdigit() for n in shape):
        return math.prod(map(int, shape))
    return 0


def _yaml_names(content: Mapping[str, Any]) -> dict[int, str] | None:
    """Number -> name, in order of number; None where none are stated."""
    if (stated := content.get("names")) is None:
        return None
    # Anything but text is refused unread: by YAML's aliases a few lines can nest without end.
    pairs = list(stated.items() if isinstance(stated, dict) else enumerate(stated))
    if not isinstance(stated, dict | list) or not all(
        str(number).isdigit() and isinstance(name, str) for number, name in pairs
    ):
        raise ValueError("names must be a list, or a mapping from class numbers")
    count = content.get("nc")
    if isinstance(count, str) and count != str(len(pairs)):
        raise ValueError(f"nc is {count}, but there are {len(pairs)} names")
    return dict(sorted((int(number), name.strip()) for number, name in pairs)) or None


def _names_in_files(tree: FileTree, builder: DatasetBuilder) -> tuple[dict[int, str], Path] | None:
    """Number -> name, by a file such as `classes.txt`, and that file; None where there is none."""
    files: dict[tuple[str, ...], Path] = {}
    for path in filter(_is_class_file, tree.others):
        with builder.record_errors():
            if lines := read_text(Path(path)).rstrip().splitlines():
                files[tuple(line.strip() for line in lines)] = Path(path)
    if len(files) > 1:
        message = f"class names differ: {', '.join(map(str, files.values()))}; keep one"
        builder.add_issue(tree.root, message, skippable=False)
    return next(((dict(enumerate(names)), path) for names, path in files.items()), None)


def _yaml_splits(
    content: Mapping[str, Any], file: Path, builder: DatasetBuilder
) -> dict[str, list[str]]:
    """Split -> the images that a `data.yaml` states for it."""
    folders = [file.parent]
    if stated := _as_list(content.get("path")):
        # One that does not exist is from another machine, or relative to a tool's own folder.
        folders = [path for path in (_locate(stated[0], folders),) if path] + folders
    splits: dict[str, list[str]] = {}
    for split in ("train", *VAL_SPLITS):
        for name in _as_list(content.get(split)):
            members = splits.setdefault(split, [])
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
                members += _listed_images(found, [found.parent, *folders], split, builder)
    return splits


def _listed_images(
    file: Path, folders: Sequence[Path], split: str, builder: DatasetBuilder
) -> Iterator[str]:
    """The images that a text file lists, one per line."""
    with builder.record_errors(split=split, skippable=False):
        for number, line in read_lines(file):
            if (found := _locate(line, folders)) is not None:
                yield str(found)
            else:
                builder.add_missing(f"{file}:{number}", line, split=split)


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


def _find_yaml(tree: FileTree) -> Path | None:
    """The stated YAML file, else the only one, else the one named `data`."""
    if tree.root.is_file():
        return tree.root
    files = _data_yamls(tree)
    if len(named := [file for file in files if file.stem.lower() == "data"]) == 1:
        return named[0]
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(tree.root)) for file in files[:5])
        raise DataError(f"{tree.root}: has several YAML files, {names}; give the one to read")
    return next(iter(files), None)


def _stem(path: str) -> str:
    return normalize_name(os.path.splitext(os.path.basename(path))[0])


def _is_class_file(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name in _CLASS_FILES or name.endswith(".names")


def _is_label(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name.endswith(".txt") and not _is_class_file(path) and not name.startswith("readme")


def _data_yamls(tree: FileTree) -> list[Path]:
    return [
        p for p in tree.with_extension(".yaml", ".yml", depth=YAML_DEPTH) if looks_like_data_yaml(p)
    ]


def _matches(tree: FileTree, content: Content) -> bool:
    if tree.root.is_file():
        return tree.root.suffix.lower() in (".yaml", ".yml")
    return bool(_data_yamls(tree)) or looks_like_labels(tree.images, tree.others)


FORMAT = Format(
    name="yolo",
    display_name="YOLO",
    contents=frozenset(["boxes"]),
    looks_for="YOLO (data.yaml, or .txt labels with images' names)",
    matches=_matches,
    read=read_boxes,
)

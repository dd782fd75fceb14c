"""YOLO's text files, one per image, with a line per box.

A line is `class cx cy width height`, relative to the upright image's width and height; or a
polygon, `class x1 y1 x2 y2 x3 y3 ...`, which is replaced by its bounding box. An image whose file
is empty or missing has no boxes.
"""

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    join_names,
    list_files,
    match_files,
    normalize_name,
    read_lines,
    read_text,
)

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
        "names" in content or ("train" in content and not content.keys().isdisjoint(VAL_SPLITS))
    )


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
    builder = DatasetBuilder(tree.folder, "yolo", "YOLO", relative=True)
    yamls = [tree.root] if tree.root.is_file() else _data_yamls(tree)
    file = _only_yaml(tree.root, yamls) if yamls else None
    content: dict[str, Any] = {}
    if file is not None:
        tree, content = FileTree(file.parent), _load_yaml(file, builder)
    splits = {} if file is None else _yaml_splits(content, file, builder)
    lists: dict[str, str] = {}
    images: list[str] = []
    if not splits:
        lists = _find_lists(tree, builder)
        for path, split in lists.items():
            found = _listed_images(Path(path), [Path(path).parent, tree.root], split, builder)
            splits.setdefault(split, []).extend(found)
        images = _images_in_folders(tree, builder)
    images = list(dict.fromkeys([*images, *(path for paths in splits.values() for path in paths)]))
    names = (file and _yaml_names(content, file, builder)) or _names_in_files(tree, builder)
    highest = _add_images(
        builder, images, _label_files(tree, images, lists), names, _extra_numbers(content)
    )
    if names is None:
        names = {number: str(number) for number in range(highest + 1)}
    indices = {path: index for index, path in enumerate(images)}
    for split, paths in splits.items():
        builder.splits[split] = [indices[path] for path in dict.fromkeys(paths)]
    builder.split_by_folders()
    return [builder.build(tuple(names.values()), category_ids=tuple(names))]


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
        if not file:
            continue
        used.add(file)
        try:
            lines = list(read_lines(Path(file)))
        except FileError as error:
            builder.add_error(error, image=index)
            continue
        for number, line in lines:
            try:
                label, corners = parse_line(line.split(), class_indices, extra)
            except ValueError as error:
                builder.add_issue(f"{file}:{number}", str(error), image=index)
            else:
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
        known = sorted(class_indices)
        ranged = known == list(range(len(known)))
        names = f"0 to {len(known) - 1}" if ranged else ", ".join(map(str, known))
        raise ValueError(f"class {int(number)}, but there are names for {names}")
    return class_indices[int(number)], corners


# Where images, labels and class names are


def _find_lists(tree: FileTree, builder: DatasetBuilder) -> dict[str, str]:
    """Text file that lists images -> the split that it is named after."""
    lists = {}
    for file in tree.with_extension(".txt"):
        if (split := find_split(file.stem)) is None:
            continue
        try:
            if has_image_extension(read_text(file).split("\n", 1)[0].strip()):
                lists[str(file)] = split
        except FileError as error:
            builder.add_error(error)
    return lists


def _images_in_folders(tree: FileTree, builder: DatasetBuilder) -> list[str]:
    # Next to a folder of images there may be one of masks, or of drawn results.
    images = [path for path in tree.images if folder_names(path, tree.root) & IMAGE_FOLDERS]
    for path in sorted(set(tree.images).difference(images)) if images else ():
        builder.add_unused(path, "not in a folder of images, as others are")
    return images or tree.images


def _label_files(tree: FileTree, images: Sequence[str], lists: Collection[str]) -> list[str]:
    """Text files that may be labels: in the tree, and around images that lie elsewhere."""
    others = dict.fromkeys(tree.others)
    for folder in sorted({os.path.dirname(path) for path in images}):
        if os.path.relpath(folder, tree.root).startswith(os.pardir):
            nearby = [Path(folder), *Path(folder).parents][:4]
            above = (path.parent for path in nearby if normalize_name(path.name) in IMAGE_FOLDERS)
            others |= dict.fromkeys(list_files(next(above, folder))[1])
    return [path for path in others if _is_label(path) and path not in lists]


def _load_yaml(file: Path, builder: DatasetBuilder) -> dict[str, Any]:
    """A YAML file's mapping; problems become issues."""
    where, message = str(file), "not a mapping with names, train and val"
    try:
        # All values as text: YAML would make a boolean of a class named `no`.
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
        if isinstance(content, dict):
            return content
    except FileError as error:
        where, message = error.where, error.message
    except (yaml.YAMLError, RecursionError) as error:
        if (mark := getattr(error, "problem_mark", None)) is not None:
            where = f"{file}:{mark.line + 1}"
        message = f"not YAML: {getattr(error, 'problem', error)}"
    builder.add_issue(where, message, skippable=False)
    return {}


def _as_list(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and v not in ("", "null", "~", "None")]


def _extra_numbers(content: Mapping[str, Any]) -> int:
    """How many numbers may follow a box on its line (key points)."""
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and all(isinstance(n, str) and n.isdigit() for n in shape):
        return math.prod(map(int, shape))
    return 0


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
    count = content.get("nc")
    if isinstance(count, str) and count != str(len(pairs)):
        message = f"nc is {count}, but there are {len(pairs)} names"
        builder.add_issue(file, message, skippable=False)
    return _check_names(sorted((int(number), name) for number, name in pairs), file, builder)


def _names_in_files(tree: FileTree, builder: DatasetBuilder) -> dict[int, str] | None:
    """Number -> name, by files such as `classes.txt`; None where there is none."""
    files: dict[tuple[str, ...], str] = {}
    for path in filter(_is_class_file, tree.others):
        try:
            lines = read_text(Path(path)).rstrip().splitlines()
            files[tuple(line.strip() for line in lines)] = path
        except FileError as error:
            builder.add_error(error)
    if len(files) > 1:
        message = f"class names differ: {', '.join(files.values())}; keep one"
        builder.add_issue(tree.root, message, skippable=False)
    for names, path in files.items():
        return _check_names(enumerate(names), path, builder)
    return None


def _check_names(
    pairs: Iterable[tuple[int, str]], file: str | Path, builder: DatasetBuilder
) -> dict[int, str]:
    names = {number: name.strip() for number, name in pairs}
    if repeated := [name for name, times in Counter(names.values()).items() if times > 1]:
        message = f"{join_names('class', repeated)} stated more than once"
        builder.add_issue(file, message, skippable=False)
    if not all(names.values()):
        builder.add_issue(file, "a class without a name", skippable=False)
    return names


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
    try:
        for number, line in read_lines(file):
            if (found := _locate(line, folders)) is not None:
                yield str(found)
            else:
                builder.add_missing(f"{file}:{number}", line, split=split)
    except FileError as error:
        builder.add_issue(error.where, error.message, split=split, skippable=False)


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


def _only_yaml(root: Path, paths: list[Path]) -> Path:
    """The only YAML file, or the one named `data`."""
    data = [path for path in paths if path.stem.lower() == "data"]
    candidates = data if len(data) == 1 else paths
    if len(candidates) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in candidates[:5])
        raise DataError(f"{root}: has several YAML files, {names}; give the one to read")
    return candidates[0]


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

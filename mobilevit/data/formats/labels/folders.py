"""A folder with one folder of images per class."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_split,
    is_folder,
    join_names,
    relative_paths,
    visible_entries,
)

CLASS_FOLDERS = "folders without images, which are not classes"

_NAME = "class folders"


def read_labels(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read class folders, in the root itself or in its folders named after splits.

    Images lie at any depth in their class folder.
    """
    return [
        _read_class_folders(tree, folder, split) for split, folder in _split_folders(tree).items()
    ]


def _split_folders(tree: FileTree) -> dict[str | None, Path]:
    """Split -> its folder, if folders of class folders are named so; else None -> the root."""
    flat: set[str] = set()
    nested: set[str] = set()
    for _, below in relative_paths(tree.images, tree.root):
        folder, *deeper = below.split("/")[:-1] or [""]
        (nested if deeper else flat).add(folder)
    splits: dict[str | None, Path] = {
        split: tree.root / name for name in sorted(nested) if (split := find_split(name))
    }
    others = (nested | flat) - {"", *(folder.name for folder in splits.values())}
    # Alone, `train` could be a class (of vehicles). If it holds folders and no images it is not:
    # all classes in it would silently become one.
    if "train" in splits and (len(splits) > 1 or not (others or splits["train"].name in flat)):
        return splits
    return {None: tree.root}


def _read_class_folders(tree: FileTree, folder: Path, split: str | None) -> ParsedDataset:
    builder = DatasetBuilder(folder, "folders", _NAME, content="labels")
    images: dict[str, list[str]] = {}
    others = [path for path, _ in relative_paths(tree.others, folder)]
    loose_images = 0
    for path, below in relative_paths(tree.images, folder):
        name, separator, _ = below.partition("/")
        if separator:
            # A name may be stored composed or decomposed (é as one or two characters), depending
            # on the system that wrote it; it is the same class.
            images.setdefault(unicodedata.normalize("NFC", name), []).append(path)
        else:
            loose_images += 1
            others.append(path)
    folders = {
        unicodedata.normalize("NFC", e.name) for e in visible_entries(folder) if is_folder(e)
    }
    empty = sorted(folders - images.keys())
    if not images:
        raise DataError(f"{folder}: {_why_no_classes(empty, loose_images)}")
    if empty:
        names = ", ".join(empty)
        builder.add_issue(folder, names, category=CLASS_FOLDERS, severity="warning")
    if others:
        endings = Counter(Path(path).suffix.lower() or "none" for path in others)
        listing = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        message = f"{len(others)} other files ignored, extensions: {listing}"
        builder.add_unused(folder, message)
    for name in sorted(images):
        for path in images[name]:
            builder.add_image(path, label=name, split=split)
    if split is not None:
        builder.origins[split] = str(folder)
    return builder.build()


def _why_no_classes(empty: list[str], loose_images: int) -> str:
    if loose_images:
        return (
            f"holds {loose_images} images directly; images must lie in one folder per class, "
            "such as cat/1.jpg and dog/2.jpg"
        )
    if empty:
        return f"no images in its {join_names('folder', empty)[:200]}"
    return "holds no class folders; one folder of images per class is needed"


FORMAT = Format(
    name="folders",
    display_name=_NAME,
    contents=frozenset(["labels"]),
    looks_for="one folder of images per class",
    matches=lambda tree, content: tree.root.is_dir(),
    read=read_labels,
)

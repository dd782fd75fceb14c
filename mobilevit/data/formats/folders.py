"""A folder with one folder of images per class."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import (
    UNUSED_FILES,
    Content,
    Format,
    Issue,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.files import (
    FileTree,
    Paths,
    folder_identity,
    has_image_extension,
    is_folder,
    join_names,
    list_folders,
    visible_entries,
    walk_images,
)

TRAIN_FOLDER = "train"
VAL_SPLITS = ("val", "valid", "validation", "test")
"""Splits to evaluate on; the first one found is used."""
CLASS_FOLDERS = "folders without images, which are not classes"


def read_labels(root: Path) -> list[ParsedDataset]:
    """Read class folders, in `root` itself or in its folders `train` and one of `VAL_SPLITS`."""
    folders = _split_folders(root)
    if folders is None:
        return [read_class_folders(root)]
    return [read_class_folders(folder, split) for split, folder in folders.items()]


def read_class_folders(folder: Path, split: str | None = None) -> ParsedDataset:
    """List the images in class folders at any depth; each linked folder counts once per class."""
    images: dict[str, list[str]] = {}
    others: list[str] = []
    loose_images = 0
    above = folder_identity(str(folder))  # a link back to it would make all classes part of one
    for entry in visible_entries(folder):
        if is_folder(entry):
            # A name may be stored composed or decomposed (é as one or two characters), depending
            # on the system that wrote it; it is the same class.
            name = unicodedata.normalize("NFC", entry.name)
            images.setdefault(name, []).extend(walk_images(entry.path, above, others))
        else:
            loose_images += has_image_extension(entry.name)
            others.append(entry.path)
    empty = sorted(name for name, paths in images.items() if not paths)
    classes = tuple(sorted(name for name, paths in images.items() if paths))
    if not classes:
        raise DataError(f"{folder}: {_why_no_classes(empty, loose_images)}")
    issues = []
    if empty:
        names = ", ".join(empty)
        issues.append(Issue(CLASS_FOLDERS, str(folder), names, "warning"))
    if others:
        endings = Counter(Path(path).suffix.lower() or "none" for path in others)
        listing = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        message = f"{len(others)} other files ignored, extensions: {listing}"
        issues.append(Issue(UNUSED_FILES, str(folder), message, "warning"))
    counts = [len(images[name]) for name in classes]
    return ParsedDataset(
        root=folder,
        format="folders",
        display_name=FORMAT.display_name,
        images=Paths((path for name in classes for path in images[name]), root=folder),
        classes=classes,
        classes_by_use=True,
        labels=np.repeat(np.arange(len(classes), dtype=np.int32), counts),
        splits={} if split is None else {split: range(sum(counts))},
        origins={} if split is None else {split: str(folder)},
        issues=tuple(issues),
    )


def _split_folders(root: Path) -> dict[str, Path] | None:
    """Split -> its folder, if `root` has one for training and one for validation."""
    folders = list_folders(root)
    if TRAIN_FOLDER not in folders:
        return None
    train = folders[TRAIN_FOLDER]
    for name in VAL_SPLITS:
        if name in folders:
            return {TRAIN_FOLDER: train, name: folders[name]}
    # Alone, `train` could be a class (of vehicles). If it holds folders and no images it is not:
    # all classes in it would silently become one.
    entries = list(visible_entries(train))
    holds_images = any(has_image_extension(entry.name) for entry in entries)
    if not holds_images and any(is_folder(entry) for entry in entries):
        raise DataError(
            f"{root}: has {train.name} but none of {', '.join(VAL_SPLITS)}; add one, or give "
            f"{train} itself to have part of it held out"
        )
    return None


def _why_no_classes(empty: list[str], loose_images: int) -> str:
    if loose_images:
        return (
            f"holds {loose_images} images directly; images must lie in one folder per class, "
            "such as cat/1.jpg and dog/2.jpg"
        )
    if empty:
        return f"no images in its {join_names('folder', sorted(empty))[:200]}"
    return "holds no class folders; one folder of images per class is needed"


def _matches(tree: FileTree, content: Content) -> bool:
    return tree.root.is_dir()


def _read(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    if not tree.root.is_dir():
        raise DataError(
            f"{tree.root}: is a file; a folder with one folder of images per class is needed"
        )
    return read_labels(tree.root)


FORMAT = Format(
    name="folders",
    display_name="class folders",
    contents=frozenset(["labels"]),
    looks_for="one folder of images per class",
    matches=_matches,
    read=_read,
)

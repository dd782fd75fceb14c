"""A folder with one folder of images per class."""

import unicodedata
from collections import Counter
from collections.abc import Collection
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
from mobilevit.data.formats.unread import UNREAD_IMAGES

CLASS_FOLDERS = "folders without images, which are not classes"


def read_labels(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read class folders, in the root itself or in its folders named after splits.

    Folders that hold nothing but another folder are passed through. Images lie at any depth in
    their class folder.
    """
    top = _enter(tree, tree.root)
    splits = _split_folders(tree, top)
    if not splits:
        return [_read_class_folders(tree, top, None)]
    datasets: list[ParsedDataset] = []
    for split in sorted(splits, key="train".__ne__):
        folder = _enter(tree, splits[split], datasets[0].classes if datasets else ())
        datasets.append(_read_class_folders(tree, folder, split))
    return datasets


def _image_folders(tree: FileTree, folder: Path) -> tuple[set[str], set[str]]:
    """The folders in a folder that hold images directly, and those that hold folders of images.

    "" stands for the folder itself.
    """
    flat: set[str] = set()
    nested: set[str] = set()
    for _, below in relative_paths(tree.images, folder):
        name, *deeper = below.split("/")[:-1] or [""]
        (nested if deeper else flat).add(name)
    return flat, nested


def _enter(tree: FileTree, folder: Path, classes: Collection[str] = ()) -> Path:
    """The first folder that holds more than one folder of images, or one of known `classes`."""
    while True:
        flat, nested = _image_folders(tree, folder)
        if flat or len(nested) != 1 or not nested.isdisjoint(classes):
            return folder
        if folder == tree.root and find_split(*nested, within=True):
            return folder
        folder = folder / nested.pop()


def _split_folders(tree: FileTree, top: Path) -> dict[str, Path]:
    """Split -> its folder of class folders.

    Raises:
        DataError: only some folders are named after splits, or they hold no class folders.
    """
    flat, nested = _image_folders(tree, top)
    names = sorted((flat | nested) - {""})
    splits: dict[str, Path] = {}
    for name in names:
        if (split := find_split(name, within=True)) is None or name not in nested:
            continue
        if split in splits:
            raise DataError(f"{top}: {splits[split].name} and {name} are both named after {split}")
        splits[split] = top / name
    others = [name for name in names if top / name not in splits.values()]
    if len(splits) == 1 and others:
        (folder,) = splits.values()
        raise DataError(
            f"{top}: {folder.name} is named after a split and holds folders, but next to it are "
            f"{', '.join(others[:5])}. Give {folder} if classes are there, or else rename it"
        )
    if names and not splits and all(find_split(name, within=True) for name in names):
        raise DataError(
            f"{top}: {', '.join(names)} are named after splits, but hold images directly; images "
            "must lie in one folder per class, such as train/cat/1.jpg"
        )
    return splits


def _read_class_folders(tree: FileTree, folder: Path, split: str | None) -> ParsedDataset:
    builder = DatasetBuilder(folder, FORMAT)
    if split is None and folder != tree.root:
        builder.notes.append(f"classes are the folders in {folder}")
    images: dict[str, list[str]] = {}
    loose_images = 0
    for path, below in relative_paths(tree.images, folder):
        name, separator, _ = below.partition("/")
        loose_images += not separator
        if separator:
            # A name may be stored composed or decomposed (é as one or two characters), depending
            # on the system that wrote it; it is the same class.
            images.setdefault(unicodedata.normalize("NFC", name), []).append(path)
    folders = {
        unicodedata.normalize("NFC", e.name) for e in visible_entries(folder) if is_folder(e)
    }
    empty = sorted(folders - images.keys())
    if not images and loose_images:
        raise DataError(
            f"{folder}: holds {loose_images} images directly; images must lie in one folder per "
            "class, such as cat/1.jpg and dog/2.jpg"
        )
    if not images:
        why = (
            f"no images in its {join_names('folder', empty)[:200]}" if empty else "no class folders"
        )
        raise DataError(f"{folder}: {why}; one folder of images per class is needed")
    if empty:
        names = ", ".join(empty)
        builder.add_issue(folder, names, category=CLASS_FOLDERS, severity="warning")
    others = [path for path, _ in relative_paths(tree.others, folder)]
    others = [path for path in others if not path.lower().endswith(UNREAD_IMAGES)]
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


FORMAT = Format(
    name="folders",
    display_name="class folders",
    contents=frozenset(["labels"]),
    looks_for="one folder of images per class",
    matches=lambda tree, content: tree.root.is_dir(),
    read=read_labels,
)

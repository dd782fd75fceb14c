"""The annotation formats; a new one is a module with a `Format`, and a line in `FORMATS`."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import (
    IGNORE,
    UNUSED_FILES,
    Content,
    Format,
    Issue,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.files import MASK_FOLDERS, FileTree, folder_names
from mobilevit.data.formats.labels import folders as class_folders
from mobilevit.data.formats.labels import tables as label_tables
from mobilevit.data.formats.masks import datasets, panoptic, roboflow
from mobilevit.data.formats.masks import folders as mask_folders
from mobilevit.data.formats.objects import (
    coco,
    cvat,
    label_studio,
    labelme,
    tables,
    voc,
    yolo,
)
from mobilevit.data.formats.unread import UNREAD_IMAGES, explain_unread

FORMATS: tuple[Format, ...] = (
    datasets.CITYSCAPES,
    voc.FORMAT,
    datasets.VOC,
    datasets.ADE20K,
    roboflow.FORMAT,
    mask_folders.FORMAT,
    coco.FORMAT,
    panoptic.FORMAT,
    panoptic.WITH_VOC_CLASSES,
    yolo.FORMAT,
    tables.FORMAT,
    cvat.FORMAT,
    labelme.FORMAT,
    label_studio.FORMAT,
    label_tables.FORMAT,
    class_folders.FORMAT,
)
"""Mask formats are tried in this order: what one matches, later ones may match as well."""

MAX_NAMED = 10
"""At most this many images that are left out are named."""

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")


def formats_with(content: Content) -> dict[str, Format]:
    """The formats that have labels, boxes or masks, by name.

    >>> sorted(formats_with("boxes"))
    ['coco', 'csv', 'cvat', 'label_studio', 'labelme', 'voc', 'yolo']
    """
    return {format.name: format for format in FORMATS if content in format.contents}


def parse(
    root: str | os.PathLike[str], options: ReadOptions, format: str = "auto"
) -> list[ParsedDataset]:
    """Recognise a data set's format and read it, even if single images are unusable.

    Args:
        root: a folder; for boxes also COCO's JSON or YOLO's `data.yaml`.
        format: a name in `formats_with`; by default it is recognised.

    Raises:
        DataError: no format is recognised, or several are.
        ValueError: `format` is unknown.
    """
    known = formats_with(options.content)
    if format not in ("auto", *known):
        raise ValueError(f"format must be one of auto, {', '.join(known)}, not {format!r}")
    tree = FileTree(root)
    if tree.root.is_file() and tree.root.suffix.lower() in _ARCHIVES:
        raise DataError(f"{tree.root}: is an archive; unpack it, and give the folder")
    automatic = [one for one in known.values() if one.automatic]
    candidates = automatic if format == "auto" else [known[format]]
    reader = _recognize(tree, options.content, candidates)
    if reader.states_ignored and options.ignore != IGNORE:
        raise DataError(
            f"{tree.root}: is read as {reader.name}, which states itself what is ignored; "
            "data.ignore is for folders of images and masks"
        )
    datasets = reader.read(tree, options)
    unused: list[Issue] = []
    # A file of boxes may be one of several for the images of a folder.
    if tree.root.is_dir() or reader is label_tables.FORMAT:
        whole = tree if tree.root.is_dir() else FileTree(tree.folder)
        unused = list(_unused_images(whole, datasets))
    return [replace(dataset, issues=(*dataset.issues, *unused)) for dataset in datasets]


def _unused_images(tree: FileTree, datasets: Sequence[ParsedDataset]) -> Iterator[Issue]:
    """Images below the root that are in no data set, and files in image formats that are not read.

    What lies in folders of masks counts as masks, such as those of another format.
    One issue for all: a data set may share its folder with thousands of other images.
    """
    # Absolute, as annotations may state images so below a relative root.
    issues = (issue for dataset in datasets for issue in dataset.issues)
    used = {os.path.abspath(issue.where) for issue in issues}  # named already
    for dataset in datasets:
        for index in range(len(dataset.images)):
            used.add(os.path.abspath(dataset.images.name(index)))
            if dataset.masks is not None and (mask := dataset.masks.file(index)) is not None:
                used.add(os.path.abspath(mask))
    others = [path for path in tree.images if os.path.abspath(path) not in used]
    others = [path for path in others if folder_names(path, tree.root).isdisjoint(MASK_FOLDERS)]
    unread = [str(path) for path in tree.with_extension(*UNREAD_IMAGES)]
    for paths, one, several in (
        (others, "image is not part of the data set", "images are not part of the data set"),
        (
            unread,
            "image is in a format that is not read; convert it",
            "images are in formats that are not read; convert them",
        ),
    ):
        if paths:
            names = ", ".join(os.path.relpath(path, tree.root) for path in paths[:MAX_NAMED])
            more = f" and {len(paths) - MAX_NAMED} more" if paths[MAX_NAMED:] else ""
            what = one if len(paths) == 1 else several
            message = f"{len(paths)} {what}: {names}{more}"
            yield Issue(UNUSED_FILES, str(tree.root), message, "warning")


def _recognize(tree: FileTree, content: Content, candidates: Sequence[Format]) -> Format:
    matching = (format for format in candidates if format.matches(tree, content))
    first = next(matching, None)
    if first is None:
        if (explanation := explain_unread(tree)) is not None:
            raise DataError(explanation)
        looked = "; ".join(format.looks_for for format in candidates)
        if tree.root.is_file():
            raise DataError(f"{tree.root}: is a file that is not recognised; looked for {looked}")
        raise DataError(
            f"{tree.root}: no data set with {content} recognised; looked for {looked}; it has "
            f"{tree.contents()}"
        )
    if content == "boxes" and (others := list(matching)):
        # Masks of one data set may be stored in two ways; boxes in two formats are two data sets.
        names = sorted(format.name for format in (first, *others))
        raise DataError(
            f"{tree.root}: has annotations in several formats, {' and '.join(names)}; state which "
            f"to read, such as --data.format {names[0]}"
        )
    return first

"""The annotation formats; a new one is a module with a `Format`, and a line in `FORMATS`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mobilevit.data.errors import DataError
from mobilevit.data.formats import coco, folders, mask_folders, scenes, voc, yolo
from mobilevit.data.formats.base import IGNORE, Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.files import FileTree

FORMATS: tuple[Format, ...] = (
    scenes.CITYSCAPES,
    voc.FORMAT,
    scenes.ADE20K,
    mask_folders.FORMAT,
    coco.FORMAT,
    coco.PANOPTIC,
    coco.WITH_VOC_CLASSES,
    yolo.FORMAT,
    folders.FORMAT,
)
"""Mask formats are tried in this order: what one matches, later ones may match as well."""

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".rar", ".7z")


def formats_with(content: Content) -> dict[str, Format]:
    """The formats that have labels, boxes or masks, by name.

    >>> sorted(formats_with("boxes"))
    ['coco', 'voc', 'yolo']
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
    reader = _recognize(tree, options.content) if format == "auto" else known[format]
    if not reader.states_ignored or options.ignore == IGNORE:
        if parsed := _read(tree, options, reader):
            return parsed
        raise _not_recognized(tree, options.content, [reader])
    raise DataError(
        f"{tree.root}: is read as {reader.name}, which states itself what is ignored; data.ignore "
        "is for folders of images and masks"
    )


def _read(tree: FileTree, options: ReadOptions, format: Format) -> list[ParsedDataset]:
    if tree.root.is_file() and not format.matches(tree, options.content):
        raise DataError(
            f"{tree.root}: is a file that is not read as {format.name}; give a folder, or for "
            "boxes COCO's .json or YOLO's data.yaml"
        )
    return format.read(tree, options)


def _recognize(tree: FileTree, content: Content) -> Format:
    candidates = [format for format in formats_with(content).values() if format.automatic]
    matching = (format for format in candidates if format.matches(tree, content))
    first = next(matching, None)
    if first is None:
        raise _not_recognized(tree, content, candidates)
    if content == "boxes" and (others := list(matching)):
        # Masks of one data set may be stored in two ways; boxes in two formats are two data sets.
        names = sorted(format.name for format in (first, *others))
        raise DataError(
            f"{tree.root}: has annotations in several formats, {' and '.join(names)}; state which "
            f"to read, such as --data.format {names[0]}"
        )
    return first


def _not_recognized(tree: FileTree, content: Content, formats: Sequence[Format]) -> DataError:
    looked = "; ".join(format.looks_for for format in formats)
    if tree.root.is_file():
        return DataError(f"{tree.root}: is a file that is not recognised; looked for {looked}")
    return DataError(
        f"{tree.root}: no data set with {content} recognised; looked for {looked}; it has "
        f"{tree.contents()}"
    )

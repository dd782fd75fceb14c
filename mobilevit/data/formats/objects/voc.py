"""Pascal VOC: an XML file of boxes for each image.

VOC counts pixels from 1 and includes the last: a box of 1, 1, 640, 480 covers an image of that
size. Its corners are 0, 0, 640, 480, so 1 is subtracted from xmin and ymin only. Many tools write
the same files but count from 0. There, boxes cut off by the left or upper edge start at 0 instead
of 1, so where more boxes start at 0 than at 1 nothing is subtracted.

A box whose xmax is not above xmin has no width. By VOC's count it could be one pixel wide, but in
practice it is a click without a drag.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_files,
    find_split,
    has_image_extension,
)
from mobilevit.data.formats.text import read_lines
from mobilevit.data.formats.xml import line_of, parse_xml, root_element, text_of

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FLAG = re.compile(r"\s+(-1|0|1)$")


def looks_like_voc(file: Path) -> bool:
    """Whether a file starts like an XML `annotation`."""
    return root_element(file) == "annotation"


def read_boxes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read all XML files of a folder whose outermost element is `annotation`.

    The image of an XML file has the same name, and lies next to it or in a folder such as
    `JPEGImages` or `images`; else it is the one that `filename` names there. Classes are the sorted
    names of all objects. Splits are the lists in `ImageSets/Main`, else folders named `train`,
    `val` and so on. A list's last word is dropped if it is -1, 0 or 1, VOC's flag for whether a
    class occurs.
    """
    builder = DatasetBuilder(tree.root, FORMAT)
    xmls: list[str] = []
    annotations: list[Element] = []
    for file in tree.with_extension(".xml"):
        if (root := root_element(file)) not in ("annotation", None):
            builder.add_unused(file, f"XML of another kind (<{root}>)")
            continue
        annotations.append(Element("annotation"))
        with builder.record_errors(image=len(xmls)):
            annotations[-1] = parse_xml(file)
        xmls.append(str(file))
    names = [text_of(annotation, "filename") for annotation in annotations]
    builder.add_annotated(xmls, names, list(map(_stated_size, annotations)), tree.images)
    for index, (path, annotation) in enumerate(zip(xmls, annotations, strict=True)):
        for thing in annotation.findall("object"):
            with builder.record_errors(f"{path}:{line_of(thing)}", image=index):
                _add_box(builder, index, thing)
    _convert_corners(builder)
    _split_by_lists(tree, xmls, builder)
    builder.split_by_folders()
    return [builder.build()]


def _add_box(builder: DatasetBuilder, image: int, thing: Element) -> None:
    if not (name := text_of(thing, "name")):
        raise ValueError("object without a name")
    corners = []
    for side in _SIDES:
        if not (stated := text_of(thing, f"bndbox/{side}")):
            raise ValueError(f"object without {side} in a bndbox")
        try:
            corners.append(float(stated))
        except ValueError:
            raise ValueError(f"{side} is not a number: {stated!r:.50}") from None
    difficult = text_of(thing, "difficult").lower() in ("1", "true", "yes")
    label = builder.label(name)
    builder.add_box(image, corners, label, crowd=difficult, line=line_of(thing))


def _convert_corners(builder: DatasetBuilder) -> None:
    """Convert VOC's pixel counts to corners, unless boxes count from 0."""
    corners = builder.corners()
    starts = corners[:, :2]
    valid = (corners[:, 2:] > starts).all(axis=1)
    at_edge = [int(((starts[valid] >= low) & (starts[valid] < low + 1)).sum()) for low in (0, 1)]
    if at_edge[0] > at_edge[1]:
        builder.notes.append("coordinates count from 0, as boxes start there")
    else:
        corners[valid, :2] -= 1


def _stated_size(annotation: Element) -> tuple[int, int] | None:
    """(height, width) as stated; None where they are not numbers."""
    try:
        height, width = (float(text_of(annotation, f"size/{side}")) for side in ("height", "width"))
        return int(height), int(width)
    except (ValueError, OverflowError):
        return None


def _split_by_lists(tree: FileTree, xmls: Sequence[str], builder: DatasetBuilder) -> None:
    """Splits by the lists in `ImageSets/Main` or `ImageSets`."""
    indices = {path: index for index, path in enumerate(xmls)}
    for file in tree.with_extension(".txt"):
        folder = file.parent.parent if file.parent.name.lower() == "main" else file.parent
        split = find_split(file.stem)
        if folder.name.lower() != "imagesets" or split is None:
            continue
        members = dict.fromkeys(builder.splits.get(split, []))
        lines: list[tuple[int, str]] = []
        with builder.record_errors(split=split):
            lines = list(read_lines(file))
        # Where a folder has several years, each has its own lists, for the files next to them.
        found = [
            find_files([_xml_name(name) for name in names], xmls, [folder.parent], root=tree.root)
            for names in ([line for _, line in lines], [_FLAG.sub("", line) for _, line in lines])
        ]
        for (number, line), as_is, unflagged in zip(lines, *found, strict=True):
            if (path := as_is or unflagged) is None:
                builder.add_issue(f"{file}:{number}", f"no XML file for {line!r}", split=split)
            else:
                members[indices[path]] = None
        builder.splits[split] = list(members)


def _xml_name(name: str) -> str:
    known = has_image_extension(name) or name.lower().endswith(".xml")
    return (os.path.splitext(name)[0] if known else name) + ".xml"


FORMAT = Format(
    name="voc",
    display_name="Pascal VOC",
    contents=frozenset(["boxes"]),
    looks_for="Pascal VOC (.xml files)",
    matches=lambda tree, content: (
        tree.root.is_dir() and any(map(looks_like_voc, tree.with_extension(".xml")))
    ),
    read=read_boxes,
)

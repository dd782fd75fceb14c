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

from mobilevit.data.errors import FileError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_files,
    find_images,
    find_split,
    has_image_extension,
    read_lines,
)
from mobilevit.data.formats.xml import line_of, parse_xml, root_element, text_of

_NAME = "Pascal VOC"
_SIDES = ("xmin", "ymin", "xmax", "ymax")


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
    builder = DatasetBuilder(tree.root, "voc", _NAME)
    xmls: list[str] = []
    annotations: list[Element] = []
    for file in tree.with_extension(".xml"):
        if (root := root_element(file)) not in ("annotation", None):
            builder.add_unused(file, f"XML of another kind (<{root}>)")
            continue
        try:
            annotations.append(parse_xml(file))
        except FileError as error:
            builder.add_error(error, image=len(xmls))
            annotations.append(Element("annotation"))
        xmls.append(str(file))
    names = [text_of(one, "filename") for one in annotations]
    images = find_images(xmls, names, tree.images)
    for path, annotation, image in zip(xmls, annotations, images, strict=True):
        expected = os.path.splitext(path)[0] + ".jpg"
        size = _stated_size(annotation)
        index = builder.add_image(image or expected, annotation_file=path, size=size)
        if image is None:
            named = text_of(annotation, "filename") or "a filename"
            builder.add_missing(path, f"none has its name, or is {named}", image=index)
        for thing in annotation.findall("object"):
            _add_box(builder, index, path, thing)
    _convert_corners(builder)
    for path in sorted({*tree.images}.difference(images)):
        builder.add_unused(path, "no XML file belongs to it")
    _split_by_lists(tree, xmls, builder)
    builder.split_by_folders()
    return [builder.build()]


def _add_box(builder: DatasetBuilder, image: int, path: str, thing: Element) -> None:
    where = f"{path}:{line_of(thing)}"
    name = text_of(thing, "name")
    if not name:
        builder.add_issue(where, "object without a name", image=image)
        return
    corners = []
    for side in _SIDES:
        stated = text_of(thing, f"bndbox/{side}")
        try:
            corners.append(float(stated))
        except ValueError:
            what = f"{side} is not a number: {stated!r:.50}"
            message = what if stated else f"object without {side} in a bndbox"
            builder.add_issue(where, message, image=image)
            return
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

    def find(names: list[str], base: Path) -> list[str | None]:
        return find_files([f"{name}.xml" for name in names], xmls, [base], root=tree.root)

    for file in tree.with_extension(".txt"):
        folder = file.parent.parent if file.parent.name.lower() == "main" else file.parent
        split = find_split(file.stem)
        if folder.name.lower() != "imagesets" or split is None:
            continue
        members = dict.fromkeys(builder.splits.get(split, []))
        try:
            lines = list(read_lines(file))
        except FileError as error:
            builder.add_error(error, split=split)
            lines = []
        # Where a folder has several years, each has its own lists, for the files next to them.
        names = [_without_extension(line) for _, line in lines]
        flags = re.compile(r"\s+(-1|0|1)$")
        unflagged = [_without_extension(flags.sub("", line)) for _, line in lines]
        both = zip(find(names, folder.parent), find(unflagged, folder.parent), strict=True)
        for (number, line), (first, second) in zip(lines, both, strict=True):
            if (path := first or second) is None:
                builder.add_issue(f"{file}:{number}", f"no XML file for {line!r}", split=split)
            else:
                members[indices[path]] = None
        builder.splits[split] = list(members)


def _without_extension(name: str) -> str:
    known = has_image_extension(name) or name.lower().endswith(".xml")
    return os.path.splitext(name)[0] if known else name


FORMAT = Format(
    name="voc",
    display_name=_NAME,
    contents=frozenset(["boxes"]),
    looks_for="Pascal VOC (.xml files)",
    matches=lambda tree, content: (
        tree.root.is_dir() and any(map(looks_like_voc, tree.with_extension(".xml")))
    ),
    read=read_boxes,
)

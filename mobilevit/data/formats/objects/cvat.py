"""CVAT's XML "for images 1.1": boxes, polygons, ellipses and masks of all images in one file."""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import FileTree, find_files, find_split
from mobilevit.data.formats.masks.drawn import (
    Outline,
    encode_mask,
    rectangle,
    rotated,
    unit_circle,
)
from mobilevit.data.formats.objects.coco import to_integer
from mobilevit.data.formats.xml import line_of, parse_xml, root_element

_WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid")


def read_images(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read all XML files of a folder whose outermost element is `annotations`.

    Images are searched for by their `name` next to the XML, in its folder `images`, then anywhere.
    Classes are the sorted labels that occur. Splits are the images' `subset`, else folders named
    `train`, `val` and so on.
    """
    builder = DatasetBuilder(tree.root, FORMAT, options.content)
    for file in _find_xmls(tree):
        annotations = Element("annotations")
        with builder.record_errors():
            annotations = parse_xml(file)
        if annotations.find("track") is not None:
            raise DataError(f'{file}: is CVAT\'s format for video; export "CVAT for images 1.1"')
        images = annotations.findall("image")
        names = [image.get("name", "") for image in images]
        bases = [file.parent, file.parent / "images"]
        paths = find_files(names, tree.images, bases, root=tree.root)
        for image, name, path in zip(images, names, paths, strict=True):
            _add_image(builder, file, image, path or str(file.parent / name), path is None)
    builder.split_by_folders()
    return [builder.build()]


def _add_image(
    builder: DatasetBuilder, file: Path, image: Element, path: str, missing: bool
) -> None:
    height, width = (to_integer(image.get(side)) or 0 for side in ("height", "width"))
    split = find_split(image.get("subset", ""))
    index = builder.add_image(path, annotation_file=file, size=(height, width), split=split)
    if missing:
        builder.add_missing(f"{file}:{line_of(image)}", image.get("name", ""), image=index)
    for shape in image:
        where = f"{file}:{line_of(shape)}"
        if shape.tag == "tag":
            continue
        if shape.tag in _WITHOUT_AREA:
            message = f"a {shape.tag} is no box and has no outline; it is left out"
            builder.add_issue(where, message, severity="error")
            continue
        parsed, what = None, f"{shape.tag} cannot be read"
        with builder.record_errors(where, what, also=(KeyError, MemoryError), image=index):
            parsed = shape.attrib["label"], *_outline(shape, (height, width))
        if parsed is not None:
            name, corners, outline = parsed
            label, line = builder.label(name), line_of(shape)
            builder.add_box(index, corners, label, outline=outline, line=line)


def _outline(
    shape: Element, size: tuple[int, int]
) -> tuple[tuple[float, float, float, float] | None, Outline]:
    """Outline of a shape, and its corners if they are not those of the outline."""

    def numbers(*names: str) -> list[float]:
        return [float(shape.attrib[name]) for name in names]

    if shape.tag == "mask":
        left, top, width, height = map(int, numbers("left", "top", "width", "height"))
        runs = [int(run) for run in shape.attrib["rle"].split(",")]  # along rows, outside first
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return encode_mask(inside, left, top, size)
    if shape.tag == "polygon":
        pairs = shape.attrib["points"].split(";")
        points = np.array([[float(side) for side in pair.split(",")] for pair in pairs])
    elif shape.tag == "ellipse":
        x, y, a, b = numbers("cx", "cy", "rx", "ry")
        points = np.array([x, y]) + np.array([a, b]) * unit_circle()
    elif shape.tag == "box":
        points = rectangle(numbers("xtl", "ytl", "xbr", "ybr"))[0].reshape(-1, 2)
    else:
        raise ValueError("unknown shape")
    middle = (points.min(0) + points.max(0)) / 2
    return None, [rotated(points, float(shape.get("rotation", "0")), middle).reshape(-1)]


def _find_xmls(tree: FileTree) -> list[Path]:
    return [file for file in tree.with_extension(".xml") if root_element(file) == "annotations"]


FORMAT = Format(
    name="cvat",
    display_name="CVAT",
    contents=frozenset(["boxes", "masks"]),
    looks_for="CVAT for images 1.1 (an .xml of annotations)",
    matches=lambda tree, content: bool(_find_xmls(tree)),
    read=read_images,
)

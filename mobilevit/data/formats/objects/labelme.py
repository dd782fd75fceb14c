"""LabelMe: a JSON file for each image, with boxes, polygons, circles and masks."""

import base64
import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.data.errors import FileError
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import FileTree, find_images, json_has, read_text
from mobilevit.data.formats.masks.drawn import (
    Outline,
    encode_mask,
    polygon_corners,
    rectangle,
    unit_circle,
)
from mobilevit.data.formats.objects.coco import to_integer
from mobilevit.data.images import pillow

_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def looks_like_labelme(file: Path) -> bool:
    """Whether a file is a JSON object with LabelMe's keys; it is not parsed."""
    return json_has(file, b"{", "shapes", "imagePath")


def read_shapes(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read all JSON files of a folder that look like LabelMe's.

    The image of a JSON file has the same name, and lies next to it or in a folder such as `images`;
    else it is the one that `imagePath` names. Classes are the sorted labels of all shapes, splits
    the folders named `train`, `val` and so on.
    """
    builder = DatasetBuilder(tree.root, "labelme", _NAME, content=options.content)
    files = [str(file) for file in tree.with_extension(".json") if looks_like_labelme(file)]
    contents: list[dict[str, Any]] = []
    for index, file in enumerate(files):
        try:
            content = json.loads(read_text(Path(file)))
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                raise ValueError("no list of shapes")
        except FileError as error:
            builder.add_error(error, image=index)
            content = {}
        except (ValueError, RecursionError) as error:
            builder.add_issue(file, f"not JSON of LabelMe: {error}", image=index)
            content = {}
        contents.append(content)
    names = [str(content.get("imagePath", "")) for content in contents]
    images = find_images(files, names, tree.images)
    for file, content, name, image in zip(files, contents, names, images, strict=True):
        sides = [to_integer(content.get(side)) or 0 for side in ("imageHeight", "imageWidth")]
        size = sides[0], sides[1]
        expected = image or Path(file).with_suffix(".jpg")
        index = builder.add_image(expected, annotation_file=file, size=size)
        if image is None:
            builder.add_missing(file, f"none has its name, or is {name}", image=index)
        for number, shape in enumerate(content.get("shapes", []), start=1):
            _add_shape(builder, f"{file}: shape {number}", index, shape, size)
    builder.split_by_folders()
    return [builder.build()]


def _add_shape(
    builder: DatasetBuilder, where: str, image: int, shape: Any, size: tuple[int, int]
) -> None:
    try:
        label, shape_type = str(shape["label"]).strip(), shape.get("shape_type") or "polygon"
        if shape_type in _WITHOUT_AREA:
            message = f"a {shape_type} has no area; it is left out"
            builder.add_issue(where, message, severity="error")
            return
        corners, outline = _outline(shape, shape_type, size)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        builder.add_issue(where, f"cannot be read: {error!r}", image=image)
        return
    builder.add_box(image, corners, builder.label(label), outline=outline)


def _outline(
    shape: dict[str, Any], shape_type: str, size: tuple[int, int]
) -> tuple[Sequence[float], Outline]:
    """Corners and outline of a shape."""
    points = np.array(shape["points"], np.float64).reshape(-1, 2)
    if shape_type == "mask" and len(points) == 2:  # a PNG for the pixels from one to the other
        (left, top), (right, bottom) = points.astype(int).tolist()
        with pillow("mask"), Image.open(BytesIO(base64.b64decode(shape["mask"]))) as png:
            inside = np.array(png.convert("L")) > 0
        return (left, top, right + 1, bottom + 1), encode_mask(inside, left, top, size)
    if shape_type == "circle" and len(points) == 2:  # the centre, and a point of the circle
        radius = math.dist(*points)
        points = points[0] + radius * unit_circle()
    elif shape_type == "rectangle" and len(points) >= 2:
        points = rectangle(polygon_corners(points))[0].reshape(-1, 2)
    elif shape_type != "polygon" or len(points) < 3:
        raise ValueError(f"{shape_type} of {len(points)} points")
    return polygon_corners(points), [points.reshape(-1)]


_NAME = "LabelMe"
FORMAT = Format(
    name="labelme",
    display_name=_NAME,
    contents=frozenset(["boxes", "masks"]),
    looks_for="LabelMe (a .json with shapes for each image)",
    matches=lambda tree, content: (
        tree.root.is_dir() and any(map(looks_like_labelme, tree.with_extension(".json")))
    ),
    read=read_shapes,
)

"""LabelMe: a JSON file for each image, with boxes, polygons, circles and masks."""

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import MALFORMED, DatasetBuilder
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.masks.drawn import (
    Outline,
    encode_mask,
    polygon_corners,
    rectangle,
    unit_circle,
)
from mobilevit.data.formats.objects.coco import to_integer
from mobilevit.data.formats.text import json_has, read_json
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
    builder = DatasetBuilder(tree.root, FORMAT, options.content)
    files = [str(file) for file in tree.with_extension(".json") if looks_like_labelme(file)]
    contents: list[dict[str, Any]] = []
    for index, file in enumerate(files):
        contents.append({"shapes": []})
        with builder.record_errors(file, image=index):
            content = read_json(Path(file), "LabelMe")
            if not isinstance(content.get("shapes"), list):
                raise ValueError("not JSON of LabelMe: no list of shapes")
            contents[-1] = content
    names = [str(content.get("imagePath", "")) for content in contents]
    sizes = [
        (to_integer(content.get("imageHeight")) or 0, to_integer(content.get("imageWidth")) or 0)
        for content in contents
    ]
    builder.add_annotated(files, names, sizes, tree.images)
    for index, (file, content, size) in enumerate(zip(files, contents, sizes, strict=True)):
        for number, shape in enumerate(content["shapes"], start=1):
            where = f"{file}: shape {number}"
            parsed = None
            with builder.record_errors(where, "cannot be read", also=MALFORMED, image=index):
                parsed = _parse_shape(shape, size)
            if parsed is None:
                continue
            label, corners, outline = parsed
            if outline is None:
                message = f"a {shape['shape_type']} has no area; it is left out"
                builder.add_issue(where, message, severity="error")
            else:
                builder.add_box(index, corners, builder.label(label), outline=outline)
    builder.split_by_folders()
    return [builder.build()]


def _parse_shape(
    shape: dict[str, Any], size: tuple[int, int]
) -> tuple[str, Sequence[float] | None, Outline | None]:
    """Label, corners if they are not those of the outline, and outline; None without an area."""
    label, shape_type = str(shape["label"]).strip(), shape.get("shape_type") or "polygon"
    if shape_type in _WITHOUT_AREA:
        return label, None, None
    points = np.array(shape["points"], np.float64).reshape(-1, 2)
    corners: Sequence[float] | None = None
    outline: Outline = [points.reshape(-1)]
    if shape_type == "mask" and len(points) == 2:  # a PNG for the pixels from one to the other
        left, top = points[0].astype(int).tolist()
        with pillow("mask"), Image.open(BytesIO(base64.b64decode(shape["mask"]))) as png:
            inside = np.array(png.convert("L")) > 0
        corners, outline = encode_mask(inside, left, top, size)
    elif shape_type == "circle" and len(points) == 2:  # the centre, and a point of the circle
        outline = [(points[0] + math.dist(*points) * unit_circle()).reshape(-1)]
    elif shape_type == "rectangle" and len(points) >= 2:
        outline = rectangle(polygon_corners(points))
    elif shape_type != "polygon" or len(points) < 3:
        raise ValueError(f"{shape_type} of {len(points)} points")
    return label, corners, outline


FORMAT = Format(
    name="labelme",
    display_name="LabelMe",
    contents=frozenset(["boxes", "masks"]),
    looks_for="LabelMe (a .json with shapes for each image)",
    matches=lambda tree, content: (
        tree.root.is_dir() and any(map(looks_like_labelme, tree.with_extension(".json")))
    ),
    read=read_shapes,
)

"""Label Studio's JSON export: rectangles, ellipses, polygons, and choices as classes of images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from mobilevit.data.formats.base import Content, Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import MALFORMED, DatasetBuilder
from mobilevit.data.formats.files import FileTree, find_files, find_split_of, has_image_extension
from mobilevit.data.formats.masks.drawn import Outline, polygon_corners, rotated, unit_circle
from mobilevit.data.formats.text import json_has, read_json

_DEPTH = 3
_SHAPES = ("rectanglelabels", "ellipselabels", "polygonlabels")


def looks_like_label_studio(file: Path) -> bool:
    """Whether a file is a JSON list with Label Studio's keys; it is not parsed."""
    return json_has(file, b"[", "annotations", "result", "data")


def read_tasks(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    """Read the JSON files of a folder that look like Label Studio's.

    Images are searched for by the name in the task's data, with and without the eight characters
    that uploading puts before it. A task's annotation is the one marked as ground truth, else the
    last that was not skipped; tasks without one are left out. Classes are the sorted labels that
    occur. Splits are those in the names of the JSON files, else folders named `train` and so on.
    """
    builder = DatasetBuilder(tree.root, FORMAT, options.content, unit="per cent")
    for file in _find_jsons(tree):
        tasks: list[dict[str, Any]] = []
        with builder.record_errors():
            tasks = read_json(file, "Label Studio")
        annotated = [(task, found) for task in tasks if (found := _results(task)) is not None]
        if left := len(tasks) - len(annotated):
            builder.notes.append(f"{left} tasks without annotations are left out")
        names = [_image_name(task) for task, _ in annotated]
        paths = _find_images(names, tree, file)
        for (task, results), name, path in zip(annotated, names, paths, strict=True):
            where = f"{file}: task {task.get('id')}"
            expected = str(file.parent / name) if path is None else path
            split = find_split_of(file, tree.folder)
            if options.content == "labels":
                index = _add_choice(builder, where, expected, results, split)
            else:
                index = builder.add_image(expected, annotation_file=file, split=split)
                for result in results:
                    _add_object(builder, where, index, result)
            if path is None and index is not None:
                builder.add_missing(where, name, image=index)
    builder.split_by_folders()
    return [builder.build()]


def _results(task: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The results of the annotation that counts; None where there is none."""
    finished = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
    finished.sort(key=lambda one: bool(one.get("ground_truth")))
    return finished[-1].get("result", []) if finished else None


def _add_choice(
    builder: DatasetBuilder,
    where: str,
    path: str,
    results: Sequence[dict[str, Any]],
    split: str | None,
) -> int | None:
    choices = [
        choice
        for result in results
        if result.get("type") == "choices"
        for choice in result["value"]["choices"]
    ]
    if len(choices) == 1:
        return builder.add_image(path, split=split, label=str(choices[0]))
    stated = ", ".join(map(str, choices)) or "none"
    message = f"one class for each image is needed; it has {stated}; it is left out"
    builder.add_issue(where, message, severity="error")
    return None


def _add_object(builder: DatasetBuilder, where: str, image: int, result: dict[str, Any]) -> None:
    shape_type = result.get("type", "")
    if shape_type in ("brushlabels", "brush", "magicwand"):
        message = "a brush stroke has no outline; export masks as PNG, or draw polygons"
        builder.add_issue(f"{where}, region {result.get('id')}", message, image=image)
    if shape_type not in _SHAPES:
        return  # choices, relations, the labels' shapes without their names
    parsed, what = None, f"region {result.get('id')} cannot be read"
    with builder.record_errors(where, what, also=MALFORMED, image=image):
        value = result["value"]
        if not (labels := value.get(shape_type)):
            raise ValueError("it has no label")
        size = np.array([result["original_width"], result["original_height"]])
        points = _points(shape_type, value, size / 100)
        parsed = str(labels[0]), points, polygon_corners(points), points / size * 100
    if parsed is not None:
        name, points, corners, percentages = parsed
        builder.measure(percentages.ravel().tolist())
        # A rectangle is no outline: in masks, its object is somewhere in it.
        outline: Outline = () if shape_type == "rectanglelabels" else [points.reshape(-1)]
        builder.add_box(image, corners, builder.label(name), outline=outline)


def _points(shape_type: str, value: dict[str, Any], scale: np.ndarray) -> np.ndarray:
    """The outline of a shape in pixels: float64 [points, 2]; the file has them in per cent."""
    if shape_type == "polygonlabels":
        return np.array(value["points"], np.float64).reshape(-1, 2) * scale
    first = np.array([value["x"], value["y"]], np.float64) * scale  # a corner, or the centre
    if shape_type == "rectanglelabels":
        unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
        sides = np.array([value["width"], value["height"]]) * scale
    else:
        unit = unit_circle()
        sides = np.array([value["radiusX"], value["radiusY"]]) * scale
    return rotated(first + unit * sides, value.get("rotation", 0), first)


def _image_name(task: dict[str, Any]) -> str:
    """The path or name of a task's image, which its data gives under any key."""
    values = [value for value in task.get("data", {}).values() if isinstance(value, str)]
    for value in values:
        url = urlsplit(value)
        name = parse_qs(url.query).get("d", [unquote(url.path)])[0]  # ?d= of local files
        if has_image_extension(name):
            return name.lstrip("/")
    return str(task.get("file_upload") or f"the image of task {task.get('id')}")


def _find_images(names: list[str], tree: FileTree, file: Path) -> list[str | None]:
    bases = [file.parent, file.parent / "images"]
    files = [name.rpartition("/")[2] for name in names]
    uploaded = [re.sub(r"^[0-9a-f]{8}-", "", name) for name in files]
    found = [
        find_files(these, tree.images, bases, root=tree.root) for these in (names, files, uploaded)
    ]
    return [as_is or by_file or by_upload for as_is, by_file, by_upload in zip(*found, strict=True)]


def _find_jsons(tree: FileTree) -> list[Path]:
    return [f for f in tree.with_extension(".json", depth=_DEPTH) if looks_like_label_studio(f)]


def _matches(tree: FileTree, content: Content) -> bool:
    types = ("choices",) if content == "labels" else _SHAPES
    return any(json_has(file, b"[", name) for file in _find_jsons(tree) for name in types)


FORMAT = Format(
    name="label_studio",
    display_name="Label Studio",
    contents=frozenset(["labels", "boxes", "masks"]),
    looks_for="Label Studio (a .json of tasks)",
    matches=_matches,
    read=read_tasks,
)

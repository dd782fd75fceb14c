"""Predictions as a contact sheet: one HTML file, and a folder of thumbnails beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mobilevit.data.decode import open_reduced
from mobilevit.data.images import ImageError
from mobilevit.data.sources import ImageInputs
from mobilevit.tasks.classification.results import Prediction
from mobilevit.tasks.detection.results import DetectionPrediction
from mobilevit.tasks.results import Answers
from mobilevit.tasks.segmentation.dataset import voc_palette
from mobilevit.tasks.segmentation.results import MaskPrediction
from mobilevit.tasks.visualize import colour_of, coloured_mask, draw_boxes
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import replace_folder, write_file
from mobilevit.utils.urls import is_url

AnyPrediction: TypeAlias = Prediction | DetectionPrediction | MaskPrediction

THUMBNAIL = 256
"""Long side in pixels."""
QUALITY = 80
"""Of thumbnails, as JPEG counts it."""
MOST_CLASSES = 5
"""Of a classifier's answer, the likeliest."""
MOST_BOXES = 100
"""Of an image, the likeliest."""
OPACITY = 0.55
"""Of a mask's colours."""


def folder_of(file: Path) -> Path:
    """The folder of a page's thumbnails, beside it."""
    return file.with_name(f"{file.stem}_files")


def check_place(file: Path) -> None:
    """See ahead of all work that a page can be written here, and that nothing would be lost.

    Args:
        file: see `write_gallery`.

    Raises:
        ValueError: it cannot, or other files than thumbnails lie in the folder beside it.
    """
    if file.suffix not in (".html", ".htm"):
        raise ValueError(f"html is the name of a page, such as {file.stem or 'page'}.html: {file}")
    if file.is_dir():
        raise ValueError(f"html is the name of a page, and {file} is a folder")
    folder = folder_of(file)
    if not folder.exists():
        return
    others = [folder]
    if folder.is_dir():
        others = [one for one in folder.iterdir() if not re.fullmatch(r"[0-9]+\.jpg", one.name)]
    if others:
        raise ValueError(
            f"thumbnails of {file.name} would replace {folder}, and {others[0].name} is not one of "
            "them: give html another name"
        )


def write_gallery(
    file: Path, predictions: Answers[Any], images: ImageInputs, *, title: str
) -> None:
    """Write predictions as a page that is filtered by class, probability and file name.

    Thumbnails go into a folder beside it, `NAME_files`, with boxes and masks drawn on them; links
    lead to the images themselves. An old page and its thumbnails are replaced.

    Args:
        file: the page, such as `gallery.html`.
        predictions: what was said of each image.
        images: the same images, in the same order.
        title: what the page is called.

    Raises:
        ValueError: see `check_place`; or there are other images than predictions.
        OSError: it cannot be written.
    """
    check_place(file)
    if len(predictions) != len(images):
        raise ValueError(f"{len(predictions)} predictions of {len(images)} images")
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = folder_of(file)
    items: Sequence[AnyPrediction] = predictions.items
    classes = next((item.classes for item in items if item.classes), ())
    digits = len(str(len(items)))
    names = [f"{number:0{digits}}.jpg" for number in range(1, len(items) + 1)]
    with replace_folder(folder) as fresh:
        fresh.mkdir()
        write = partial(_write_thumbnail, images)
        with ThreadPoolExecutor(available_cores()) as pool:  # decoding lets other threads run
            made = list(pool.map(write, range(len(items)), items, map(fresh.joinpath, names)))
    places = {name: place for place, name in enumerate(classes)}
    rows = [
        _row(item, places, images.sources[index], file.parent)
        | ({"small": f"{urllib.parse.quote(folder.name)}/{names[index]}"} if made[index] else {})
        for index, item in enumerate(items)
    ]
    task = _task(items)
    data = {"task": task, "classes": classes, "colours": _colours(task, len(classes))}
    page = _page({**data, "items": rows}, title)
    write_file(file, page)


def _task(items: Sequence[AnyPrediction]) -> str:
    kinds: dict[type, str] = {DetectionPrediction: "detection", MaskPrediction: "segmentation"}
    return next((kinds[type(item)] for item in items if type(item) in kinds), "classification")


def _colours(task: str, count: int) -> list[str]:
    """The classes' colours on thumbnails, as CSS writes them."""
    if task == "classification":
        return []
    if task == "segmentation":
        colours = voc_palette(max(256, count))[:count]
    else:
        colours = [colour_of(label) for label in range(count)]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours]


def _row(item: AnyPrediction, places: dict[str, int], source: Any, beside: Path) -> dict[str, Any]:
    """What the page knows of one image; `Item` in its script says what is in it."""
    row: dict[str, Any] = {"file": item.source, "said": []}
    if link := _link(source, beside):
        row["link"] = link
    if item.error is not None:
        return {**row, "error": item.error}
    said: list[tuple[str, float]]
    if isinstance(item, Prediction):
        said = [(name, share) for name, share in item.top(MOST_CLASSES)]
    elif isinstance(item, DetectionPrediction):
        said = [(one.name, one.score) for one in item.boxes[:MOST_BOXES]]
    else:
        said = [(name, share) for name, share in item.shares]
    return {**row, "said": [[places[name], round(share, 4)] for name, share in said]}


def _link(source: Any, beside: Path) -> str | None:
    """Where an image itself is, as seen from the page; None where that is nowhere."""
    if not isinstance(source, str | Path):
        return None
    if is_url(source):
        return str(source)
    path = Path(source).absolute()
    if not path.is_file():
        return None
    try:
        return urllib.parse.quote(Path(os.path.relpath(path, beside.absolute())).as_posix())
    except ValueError:  # on another drive
        return path.as_uri()


def _write_thumbnail(images: ImageInputs, index: int, item: AnyPrediction, path: Path) -> bool:
    """Write an image small, with its answer; says whether it could be read."""
    if item.error is not None:
        return False
    try:
        image = _reduced(images, index)
    except ImageError:
        return False  # it was there when it was predicted
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    _with_answer(image, item).save(path, quality=QUALITY)
    return True


def _reduced(images: ImageInputs, index: int) -> Image.Image:
    """An image, not much larger than a thumbnail where that is quicker."""
    source = images.sources[index]
    if isinstance(source, str | Path) and Path(source).is_file():
        return open_reduced(source, THUMBNAIL, THUMBNAIL)[0]
    return images.image(index)


def _with_answer(image: Image.Image, item: AnyPrediction) -> Image.Image:
    """A thumbnail with boxes or a mask on it."""
    if isinstance(item, DetectionPrediction):
        assert item.found is not None
        height, width = item.found.boxes.canvas_size
        across, down = image.width / width, image.height / height
        boxes = []
        for one in item.drawn()[:MOST_BOXES]:
            x1, y1, x2, y2 = one.corners
            corners = (x1 * across, y1 * down, x2 * across, y2 * down)
            boxes.append(one._replace(corners=corners, text=""))
        return draw_boxes(image, boxes, longest=THUMBNAIL)
    if isinstance(item, MaskPrediction):
        mask = item.mask
        assert mask is not None
        small = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        palette = voc_palette(max(256, len(item.classes)))
        coloured = Image.fromarray(coloured_mask(np.asarray(small), palette))
        return Image.blend(image, coloured, OPACITY)
    return image


def _page(data: dict[str, Any], title: str) -> str:
    """The page; its policy lets it run its own script and nothing else."""
    parts = files("mobilevit.commands") / "templates"
    frame, style, script = (
        (parts / f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # No name of a file or a class may end the element that the data is in.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {
        "title": escape(title),
        "script_hash": f"sha256-{digest}",
        "style": style,
        "data": text,
        "script": script,
    }
    # At once, since values may hold such names themselves.
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda found: values[found[1]], frame)

"""Predictions as a contact sheet: one HTML file, and a folder of thumbnails beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mobilevit.checkpoints.files import replacing, replacing_folder
from mobilevit.commands.answers import Answers
from mobilevit.commands.pictures import Pictures
from mobilevit.commands.predict_boxes import DetectionPrediction
from mobilevit.commands.predict_classes import Prediction
from mobilevit.commands.predict_masks import MaskPrediction
from mobilevit.data.cores import cores
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.masks import voc_palette
from mobilevit.tasks.drawing import coloured_mask, draw_boxes

AnyPrediction: TypeAlias = Prediction | DetectionPrediction | MaskPrediction

THUMBNAIL = 256
"""Long side in pixels."""
QUALITY = 80
"""Of thumbnails, as JPEG counts it."""
MOST_CLASSES = 5
"""Of a classifier's answer, the likeliest."""
MOST_BOXES = 100
"""Of a picture, the likeliest."""
OPACITY = 0.55
"""Of a mask's colours."""


def write_gallery(file: Path, predictions: Answers[Any], pictures: Pictures, *, title: str) -> None:
    """Write predictions as a page that is filtered by class, probability and file name.

    Thumbnails go into a folder beside it, `NAME_files`, with boxes and masks drawn on them; links
    lead to the pictures themselves. An old page and folder are replaced.

    Args:
        file: the page, such as `gallery.html`.
        predictions: what was said of each picture.
        pictures: the same pictures, in the same order.
        title: what the page is called.

    Raises:
        ValueError: the name does not end in .html, or there are other pictures than predictions.
        OSError: it can not be written.
    """
    if file.suffix not in (".html", ".htm"):
        raise ValueError(f"a page's name ends in .html, unlike {file.name}")
    if len(predictions) != len(pictures):
        raise ValueError(f"{len(predictions)} predictions of {len(pictures)} pictures")
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = file.with_name(f"{file.stem}_files")
    items: Sequence[AnyPrediction] = predictions.items
    classes = next((item.classes for item in items if item.classes), ())
    with replacing_folder(folder) as fresh:
        fresh.mkdir()
        names = [f"{number:0{len(str(len(items)))}}.jpg" for number in range(1, len(items) + 1)]
        with ThreadPoolExecutor(cores()) as pool:  # decoding lets other threads run
            paths = (fresh / name for name in names)
            made = list(
                pool.map(_write_thumbnail, items, range(len(items)), paths, _same(pictures))
            )
    places = {name: place for place, name in enumerate(classes)}
    rows = [
        _row(item, places, pictures.sources[index], file.parent)
        | ({"small": f"{urllib.parse.quote(folder.name)}/{names[index]}"} if made[index] else {})
        for index, item in enumerate(items)
    ]
    page = _page({"task": _task(items), "classes": classes, "items": rows}, title)
    with replacing(file) as fresh:
        fresh.write_text(page, encoding="utf-8")


def _same(value: Any) -> Any:
    """A value again and again, for `map`."""
    while True:
        yield value


def _task(items: Sequence[AnyPrediction]) -> str:
    kinds: dict[type, str] = {DetectionPrediction: "detection", MaskPrediction: "segmentation"}
    return next((kinds[type(item)] for item in items if type(item) in kinds), "classification")


def _row(item: AnyPrediction, places: dict[str, int], source: Any, beside: Path) -> dict[str, Any]:
    """What the page knows of one picture; `Item` in its script says what is in it."""
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
    """Where a picture itself is, as seen from the page; None where that is nowhere."""
    if not isinstance(source, str | Path):
        return None
    if str(source).startswith(("http://", "https://")):
        return str(source)
    path = Path(source).absolute()
    if not path.is_file():
        return None
    try:
        return urllib.parse.quote(Path(os.path.relpath(path, beside.absolute())).as_posix())
    except ValueError:  # on another drive
        return path.as_uri()


def _write_thumbnail(item: AnyPrediction, index: int, path: Path, pictures: Pictures) -> bool:
    """Write a picture small, with its answer; says whether it could be read."""
    if item.error is not None:
        return False
    try:
        image = _reduced(pictures, index)
    except ImageError:
        return False  # it was there when it was predicted
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    _with_answer(image, item).save(path, quality=QUALITY)
    return True


def _reduced(pictures: Pictures, index: int) -> Image.Image:
    """A picture, not much larger than a thumbnail where that is quicker."""
    source = pictures.sources[index]
    if isinstance(source, str | Path) and Path(source).is_file():
        return open_image(source, shrink_to=(THUMBNAIL, THUMBNAIL))
    return pictures.picture(index)


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
    parts = files("mobilevit.commands") / "gallery_page"
    frame, style, script = (
        (parts / f"gallery.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # No name of a file or a class may end the element that the data is in.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {
        "{title}": escape(title),
        "{script_hash}": f"sha256-{digest}",
        "{style}": style,
        "{data}": text,
        "{script}": script,
    }
    pieces = [frame]
    for name, value in values.items():
        # Values are not searched: they may hold such a name themselves.
        pieces = [
            part
            for piece in pieces
            for part in ([piece] if piece in values.values() else _split(piece, name, value))
        ]
    return "".join(pieces)


def _split(text: str, name: str, value: str) -> list[str]:
    first, *others = text.split(name)
    return [first, *(part for other in others for part in (value, other))]

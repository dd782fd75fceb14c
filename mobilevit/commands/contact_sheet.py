"""Predictions as a contact sheet: one HTML file, and a folder of thumbnails next to it."""

import base64
import hashlib
import json
import os
import re
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from mobilevit.data.decode import open_reduced
from mobilevit.data.images import ImageError
from mobilevit.data.sources import ImageInputs
from mobilevit.tasks import get_task
from mobilevit.tasks.results import Prediction, Predictions
from mobilevit.utils.devices import available_cores
from mobilevit.utils.files import replace_folder, write_file
from mobilevit.utils.urls import is_url

THUMBNAIL = 256
"""Long side in pixels."""
QUALITY = 80
"""JPEG quality of thumbnails."""


def thumbnail_folder(file: Path) -> Path:
    """The folder of a page's thumbnails, next to it."""
    return file.with_name(f"{file.stem}_files")


def check_contact_sheet(file: Path) -> None:
    """Check before all work that a page can be written here, and that nothing would be lost."""
    if file.suffix not in (".html", ".htm"):
        raise ValueError(f"html is the name of a page, such as {file.stem or 'page'}.html: {file}")
    if file.is_dir():
        raise ValueError(f"html is the name of a page, and {file} is a folder")
    folder = thumbnail_folder(file)
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


def write_contact_sheet(
    file: Path, predictions: Predictions[Any], images: ImageInputs, *, title: str
) -> None:
    """Write predictions as a page that is filtered by class, probability and file name.

    Thumbnails go into a folder next to it, `NAME_files`, with boxes and masks drawn on them; links
    lead to the images themselves. An old page and its thumbnails are replaced. `images` are those
    of the predictions, in the same order.
    """
    check_contact_sheet(file)
    if len(predictions) != len(images):
        raise ValueError(f"{len(predictions)} predictions of {len(images)} images")
    file.parent.mkdir(parents=True, exist_ok=True)
    folder, items = thumbnail_folder(file), predictions.items
    digits = len(str(len(items)))
    names = [f"{number:0{digits}}.jpg" for number in range(1, len(items) + 1)]
    with replace_folder(folder) as fresh:
        fresh.mkdir()
        write = partial(_write_thumbnail, images)
        with ThreadPoolExecutor(available_cores()) as pool:  # decoding lets other threads run
            written = list(pool.map(write, range(len(items)), items, map(fresh.joinpath, names)))
    classes = next((item.classes for item in items if item.classes), ())
    index_of = {name: index for index, name in enumerate(classes)}
    rows = [
        _row(item, index_of, images.sources[index], file.parent)
        | ({"small": f"{urllib.parse.quote(folder.name)}/{names[index]}"} if written[index] else {})
        for index, item in enumerate(items)
    ]
    palette = get_task(predictions.task).palette(predictions.classes)
    colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette]
    data = {"task": predictions.task, "classes": classes, "colours": colours, "items": rows}
    write_file(file, _page(data, title))


def _row(item: Prediction, index_of: dict[str, int], source: Any, beside: Path) -> dict[str, Any]:
    """The page's record of one image; `Item` in its script lists the fields."""
    row: dict[str, Any] = {"file": item.source, "scores": []}
    if link := _link(source, beside):
        row["link"] = link
    if item.error is not None:
        return {**row, "error": item.error}
    return {**row, "scores": [[index_of[name], round(value, 4)] for name, value in item.scores()]}


def _link(source: Any, beside: Path) -> str | None:
    """The address of an image, relative to the page; None for images in memory."""
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


def _write_thumbnail(images: ImageInputs, index: int, item: Prediction, path: Path) -> bool:
    """Write an image small, with its prediction; returns whether it could be read."""
    if item.error is not None:
        return False
    try:
        image = _reduced(images, index)
    except ImageError:
        return False  # it was there when it was predicted
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    item.draw_thumbnail(image).save(path, quality=QUALITY)
    return True


def _reduced(images: ImageInputs, index: int) -> Image.Image:
    """An image, not much larger than a thumbnail if that is quicker."""
    source = images.sources[index]
    if isinstance(source, str | Path) and Path(source).is_file():
        return open_reduced(source, THUMBNAIL, THUMBNAIL)[0]
    return images.image(index)


def _page(data: dict[str, Any], title: str) -> str:
    """The page; its policy lets it run its own script and nothing else."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    folder = files("mobilevit.commands") / "templates"
    style, script = (
        (folder / f"contact_sheet.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # No name of a file or a class may end the element that holds the data.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    environment = Environment(
        loader=PackageLoader("mobilevit.commands"), autoescape=True, keep_trailing_newline=True
    )
    return environment.get_template("contact_sheet.html.jinja").render(
        title=title,
        script_hash=f"sha256-{digest}",
        style=Markup(style),
        script=Markup(script),
        data=Markup(text),
    )

"""The rows of bulk prediction: what a Parquet file says of each image."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilevit.data.formats.folders import DataError
from mobilevit.tasks.classification.results import Prediction
from mobilevit.tasks.detection.results import DetectionPrediction
from mobilevit.tasks.segmentation.results import MaskPrediction
from mobilevit.utils.files import replace_file

ABOUT = b"mobilevit"
"""Key of a file's metadata: JSON with `task` and `classes`, names in the order of the outputs."""


def need_ray(package: str) -> Any:
    """A package of the extra `ray`.

    Raises:
        DataError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"the engine ray needs {package}, which is not installed ({error}): "
            "pip install 'mobilevit[ray]'"
        ) from error


def schema(task: str, classes: Sequence[str]) -> Any:
    """The columns of a task's Parquet files, a `pyarrow.Schema`; `docs/bulk.md` lists them."""
    pa = need_ray("pyarrow")
    names, floats = pa.list_(pa.string()), pa.list_(pa.float32())
    size = [("width", pa.int32()), ("height", pa.int32())]
    if task == "detection":
        corners = [(name, pa.float32()) for name in ("x1", "y1", "x2", "y2")]
        one = pa.struct([("class", pa.string()), ("score", pa.float32()), *corners])
        own = [*size, ("boxes", pa.list_(one))]
    elif task == "segmentation":
        own = [*size, ("classes", names), ("shares", floats), ("mask", pa.binary())]
    else:
        own = [
            ("class", pa.string()),
            ("probability", pa.float32()),
            ("classes", names),
            ("probabilities", floats),
        ]
    about = json.dumps({"task": task, "classes": list(classes)})
    columns = [("source", pa.string()), ("error", pa.string()), *own]
    return pa.schema(columns, metadata={ABOUT: about.encode()})


def row(item: Prediction | DetectionPrediction | MaskPrediction, top: int) -> dict[str, Any]:
    """What is said of one image, without its name: columns of `schema`; others are null.

    Args:
        item: the prediction.
        top: classes to name (classification).
    """
    if item.error is not None:
        return {"error": _text(item.error)}
    if isinstance(item, Prediction):
        named = item.top(top)
        return {
            "class": named[0].name,
            "probability": named[0].probability,
            "classes": [one.name for one in named],
            "probabilities": [one.probability for one in named],
        }
    if isinstance(item, DetectionPrediction):
        assert item.found is not None
        height, width = item.found.boxes.canvas_size
        corners = ("x1", "y1", "x2", "y2")
        boxes = [
            {"class": one.name, "score": one.score, **dict(zip(corners, one.corners, strict=True))}
            for one in item.boxes
        ]
        return {"width": width, "height": height, "boxes": boxes}
    image, png = item.index_image(), io.BytesIO()
    image.save(png, "PNG")
    shares = item.shares
    return {
        "width": image.width,
        "height": image.height,
        "classes": [one.name for one in shares],
        "shares": [one.share for one in shares],
        "mask": png.getvalue(),
    }


def write_rows(
    path: Path, sources: Sequence[str], rows: Sequence[dict[str, Any]], form: Any
) -> None:
    """Write one Parquet file, in one step: it is there whole, or not at all.

    Args:
        path: the file.
        sources: what the images are called.
        rows: what is said of each; see `row`.
        form: the `schema`.

    Raises:
        OSError: it cannot be written, such as on a full disk.
    """
    pa, parquet = need_ray("pyarrow"), need_ray("pyarrow.parquet")
    whole = [{"source": _text(name), **one} for name, one in zip(sources, rows, strict=True)]
    table = pa.Table.from_pylist(whole, schema=form)
    with replace_file(path) as fresh:
        parquet.write_table(table, fresh, compression="zstd")


def has_rows(path: Path, count: int) -> bool:
    """Whether a Parquet file is there, can be read, and has so many rows."""
    pa, parquet = need_ray("pyarrow"), need_ray("pyarrow.parquet")
    try:
        return bool(parquet.read_metadata(path).num_rows == count)
    except (FileNotFoundError, pa.ArrowInvalid):  # the latter of a file that is damaged
        return False
    except OSError as error:
        if error.errno is not None:  # the system's own, such as of rights
            raise
        return False  # pyarrow's, of a footer that is damaged


def failures(path: Path) -> list[tuple[str, str]]:
    """The images of a Parquet file that could not be read, and why."""
    parquet = need_ray("pyarrow.parquet")
    found = parquet.read_table(path, columns=["source", "error"], partitioning=None).to_pylist()
    return [(one["source"], one["error"]) for one in found if one["error"] is not None]


def _text(name: str) -> str:
    r"""A text that Parquet takes: bytes of a file's name that are no UTF-8 are written as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

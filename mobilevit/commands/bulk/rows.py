"""The rows of bulk prediction: what a Parquet file says of each image."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilevit.data.errors import DataError
from mobilevit.tasks import get_task
from mobilevit.tasks.results import Prediction
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
    about = json.dumps({"task": task, "classes": list(classes)})
    columns = [("source", pa.string()), ("error", pa.string())]
    columns += get_task(task).parquet_columns(pa)
    return pa.schema(columns, metadata={ABOUT: about.encode()})


def row(item: Prediction) -> dict[str, Any]:
    """The columns of one image, without its name; those that are missing are null."""
    return item.parquet_row() if item.error is None else {"error": _text(item.error)}


def write_rows(
    path: Path, sources: Sequence[str], rows: Sequence[dict[str, Any]], form: Any
) -> None:
    """Write one Parquet file, in one step: it is there whole, or not at all.

    Args:
        path: the file.
        sources: the images' names.
        rows: of each image; see `row`.
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

"""Parts of a bulk prediction: Parquet files, and the actor that predicts and writes them."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mobilevit.data.errors import DataError
from mobilevit.data.sources import ImageInputs, MissingImage
from mobilevit.exports.runtime_model import for_inference
from mobilevit.tasks import get_task
from mobilevit.tasks.base import InferenceOptions
from mobilevit.tasks.predict import predict_batch
from mobilevit.tasks.results import Prediction
from mobilevit.utils.files import replace_file
from mobilevit.utils.urls import is_url

METADATA = b"mobilevit"
"""Key of a file's metadata: JSON with `task` and `classes`, in the order of the outputs."""


class Source(NamedTuple):
    """One image of the list."""

    name: str
    error: str | None
    """Why there is no such image, if that is known beforehand."""


def require_ray(package: str) -> Any:
    """Import a package of the extra `ray`."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"the engine ray needs {package}, which is not installed ({error}): "
            "pip install 'mobilevit[ray]'"
        ) from error


def part_path(folder: Path, number: int) -> Path:
    """The Parquet file of a part; parts count from 0."""
    return folder / f"part-{number:06d}.parquet"


def is_complete(path: Path, rows: int) -> bool:
    """Whether a Parquet file exists, can be read, and has this many rows."""
    pa, parquet = require_ray("pyarrow"), require_ray("pyarrow.parquet")
    try:
        return bool(parquet.read_metadata(path).num_rows == rows)
    except (FileNotFoundError, pa.ArrowInvalid):  # the latter if the file is damaged
        return False
    except OSError as error:
        if error.errno is not None:  # the system's own, such as missing permissions
            raise
        return False  # pyarrow's, if the footer is damaged


def failures(path: Path) -> list[tuple[str, str]]:
    """(source, error) of the images in a Parquet file that could not be read."""
    parquet = require_ray("pyarrow.parquet")
    found = parquet.read_table(path, columns=["source", "error"], partitioning=None).to_pylist()
    return [(one["source"], one["error"]) for one in found if one["error"] is not None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an actor needs besides the network."""

    folder: Path
    base: str
    """The folder that names of images are relative to."""
    task: str
    classes: tuple[str, ...]
    outputs: InferenceOptions
    batch_size: int
    threads: int

    def schema(self) -> Any:
        """The columns of the files, a `pyarrow.Schema`; `docs/bulk.md` lists them."""
        pa = require_ray("pyarrow")
        about = json.dumps({"task": self.task, "classes": list(self.classes)})
        columns = [("source", pa.string()), ("error", pa.string())]
        columns += get_task(self.task).parquet_columns(pa)
        return pa.schema(columns, metadata={METADATA: about.encode()})


class Predictor:
    """An actor: loads the network once, then predicts and writes parts."""

    def __init__(self, job: Job, model: Any) -> None:
        """`model`: Ray's reference to the network, or to the name of an exported file."""
        self.job = job
        self.device = torch.device("cpu")
        torch.set_num_threads(job.threads)
        self.network, _ = for_inference(
            require_ray("ray").get(model),
            classes=None,
            preprocessing=None,
            device=self.device,
            threads=job.threads,
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Write parts, given by `number` and `sources` in JSON; returns the `images` of each."""
        counts = []
        for number, text in zip(batch["number"], batch["sources"], strict=True):
            sources = [Source(*pair) for pair in json.loads(str(text))]
            path = part_path(self.job.folder, int(number))
            # Ray repeats all parts of a batch or an actor that failed.
            if not is_complete(path, len(sources)):
                self._write(path, sources)
            counts.append(len(sources))
        return {"images": counts}

    def _write(self, path: Path, sources: Sequence[Source]) -> None:
        pa, parquet = require_ray("pyarrow"), require_ray("pyarrow.parquet")
        rows = [{"source": _utf8(item.source), **_row(item)} for item in self._predict(sources)]
        table = pa.Table.from_pylist(rows, schema=self.job.schema())
        with replace_file(path) as fresh:
            parquet.write_table(table, fresh, compression="zstd")

    def _predict(self, sources: Sequence[Source]) -> list[Prediction]:
        inputs = [
            MissingImage(name, error)
            if error is not None
            else name
            if is_url(name)
            else Path(self.job.base, name)
            for name, error in sources
        ]
        items: list[Prediction] = []
        with tempfile.TemporaryDirectory() as downloads, torch.inference_mode():
            images = ImageInputs(inputs, self.network.config.preprocessing, Path(downloads))
            for first in range(0, len(images), self.job.batch_size):
                last = min(first + self.job.batch_size, len(images))
                items += predict_batch(
                    self.network,
                    [images[index] for index in range(first, last)],
                    [source.name for source in sources[first:last]],
                    classes=self.job.classes,
                    options=self.job.outputs,
                    device=self.device,
                )
        return items


def _row(item: Prediction) -> dict[str, Any]:
    """The columns of one image without its name; missing ones are null."""
    return item.parquet_row() if item.error is None else {"error": _utf8(item.error)}


def _utf8(name: str) -> str:
    r"""A valid string for Parquet: bytes of a file name that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

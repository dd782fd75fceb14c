"""The index of tar shards: which samples are in which shard, and where.

Shards are tar files in webdataset's layout, `key.jpg` next to `key.cls`. The index, `index.json`
and a table for each split, adds what tars do not state: classes, splits, offsets and digests.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.utils.files import write_file

INDEX = "index.json"
FORMAT = "mobilevit shards 1"
UNFINISHED = "unfinished.json"
"""Lies in a folder of shards until their index is written."""
ROW = np.dtype([("label", "<i4"), ("offset", "<i8"), ("size", "<i4")])
"""One sample: its class, and the offset and size in bytes of its image in the shard."""


def require_scale(*packages: str) -> None:
    """Check that packages of the extra `scale` are installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise DataError(
                f"this needs {package}, which is not installed: pip install 'mobilevit[scale]'"
            ) from error


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    file: str
    """Its name, relative to the index's folder."""
    samples: int
    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True)
class ShardSplit:
    """The shards of one split, and their samples in order."""

    shards: tuple[Shard, ...]
    rows: np.ndarray

    def subset(self, numbers: Sequence[int]) -> ShardSplit:
        rows = np.split(self.rows, np.cumsum([shard.samples for shard in self.shards])[:-1])
        return ShardSplit(
            tuple(self.shards[number] for number in numbers),
            np.concatenate([rows[number] for number in numbers]),
        )


@dataclass(frozen=True)
class ShardIndex:
    """All that is known of a set of shards."""

    classes: tuple[str, ...]
    splits: Mapping[str, ShardSplit]
    """By name: `train`, `val`."""
    note: str
    """Where the samples come from, for messages."""
    identity: str = ""
    """Digest of what was written, and how; empty for shards written by others."""

    def write(self, folder: Path) -> None:
        splits: dict[str, Any] = {}
        for name, split in self.splits.items():
            table = io.BytesIO()
            np.save(table, split.rows, allow_pickle=False)
            write_file(folder / f"{name}.npy", table.getvalue())
            counts = np.bincount(split.rows["label"], minlength=len(self.classes)).tolist()
            splits[name] = {
                "samples": len(split.rows),
                "counts": dict(zip(self.classes, counts, strict=True)),
                "table": f"{name}.npy",
                "table_sha256": hashlib.sha256(table.getvalue()).hexdigest(),
                "shards": [asdict(shard) for shard in split.shards],
            }
        content = {
            "format": FORMAT,
            "note": self.note,
            "identity": self.identity,
            "classes": list(self.classes),
            "splits": splits,
        }
        write_file(folder / INDEX, f"{json.dumps(content, indent=1)}\n")


def is_remote(location: str) -> bool:
    """Whether a location is a URL or a `pipe:` command, and not a local path.

    >>> is_remote("s3://bucket/train-000000.tar"), is_remote("shards/train-000000.tar")
    (True, False)
    """
    return "://" in location or location.startswith("pipe:")


def parent(location: str) -> str:
    """The folder of a local path or URL."""
    return location.rpartition("/")[0] if is_remote(location) else str(Path(location).parent)


def join(folder: str, name: str) -> str:
    """The location of a file in a local folder or in one at a URL."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder) / name)


def tar_names(location: str) -> list[str]:
    """All names ending with .tar in a path, URL or command."""
    return re.findall(r"[^/\s'\"]+\.tar", location)


def open_location(location: str) -> IO[bytes]:
    """Open a local file, a URL that fsspec supports, or the output of a `pipe:` command."""
    if location.startswith("pipe:"):
        require_scale("webdataset")
        from webdataset.gopen import gopen

        stream: IO[bytes] = gopen(location)
        return stream
    if is_remote(location):
        require_scale("fsspec")
        import fsspec

        try:
            # HTTP in one response: not every server supports ranges, and each range is a request.
            options = {"block_size": 0} if re.match(r"https?://", location) else {}
            opened: IO[bytes] = fsspec.open(location, "rb", **options).open()
        except (ImportError, ValueError) as error:
            raise DataError(f"{location}: {error}") from error
        return opened
    return open(location, "rb", buffering=0)


def read_index(location: str) -> ShardIndex:
    """Read the index at a location, the path or URL of `index.json` or of its folder.

    Raises:
        DataError: it is missing, unfinished, damaged or of another format.
    """
    file = location if location.endswith(".json") else join(location, INDEX)
    try:
        with open_location(file) as stream:
            text = stream.read()
    except FileNotFoundError:
        if not is_remote(file) and Path(join(parent(file), UNFINISHED)).is_file():
            raise DataError(
                f"{location}: not all of its shards are written; run the same `mobilevit shard` "
                "again to continue"
            ) from None
        raise DataError(f"{file}: there is no index of shards") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    try:
        content = json.loads(text)
        if content.get("format") != FORMAT:
            raise DataError(f"{file}: not an index of shards: its format is not {FORMAT!r}")
        classes = tuple(map(str, content["classes"]))
        splits = {
            str(name): _read_split(file, split, len(classes))
            for name, split in content["splits"].items()
        }
        return ShardIndex(classes, splits, str(content["note"]), str(content["identity"]))
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: not an index of shards, or damaged: {error!r}") from error


def _read_split(file: str, split: Any, classes: int) -> ShardSplit:
    shards = tuple(Shard(**shard) for shard in split["shards"])
    for shard in shards:
        # Files that an index names are opened, so it may name none outside its folder.
        path = Path(shard.file)
        if is_remote(shard.file) or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file}: names {shard.file!r}, which is not in its folder")
    table = join(parent(file), str(split["table"]))
    try:
        with open_location(table) as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != split["table_sha256"]:
        raise DataError(f"{table}: not the table of {file}; one of the two is of another set")
    rows = np.load(io.BytesIO(content), allow_pickle=False)
    if rows.dtype != ROW or len(rows) != sum(shard.samples for shard in shards) or not len(rows):
        raise DataError(f"{table}: does not match {file}; write the index again")
    if not 0 <= rows["label"].min() <= rows["label"].max() < classes:
        raise DataError(f"{table}: has labels outside the {classes} classes of {file}")
    return ShardSplit(shards, rows)

"""The index of tar shards: which samples lie in which shard, and where.

Shards are tar files as webdataset has them: `key.jpg` and `key.cls` beside each other. The index,
`index.json` and a table for each split, adds what tars do not say: names of classes, splits, how
many samples there are and where each begins, and digests.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mobilevit.data.formats.folders import DataError
from mobilevit.utils.files import write_file

INDEX = "index.json"
FORMAT = "mobilevit shards 1"
UNFINISHED = "unfinished.json"
"""What lies in a folder of shards in place of the index until it is written."""
ROW = np.dtype([("label", "<i4"), ("offset", "<i8"), ("size", "<i4")])
"""One sample: its class; where in its shard the image's bytes begin, and how many they are."""


def need_scale(*packages: str) -> None:
    """See that packages of the extra `scale` are there.

    Raises:
        DataError: they are not; the message says how to install them.
    """
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
    """Its name in the index's folder, or below."""
    samples: int
    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True)
class Part:
    """One split: its shards, and its samples in their order."""

    shards: tuple[Shard, ...]
    rows: np.ndarray
    """A `ROW` for each sample."""

    def some(self, places: list[int]) -> Part:
        """Chosen shards, in this order."""
        ends = np.cumsum([0, *(shard.samples for shard in self.shards)])
        rows = [self.rows[ends[place] : ends[place + 1]] for place in places]
        return Part(
            tuple(self.shards[place] for place in places),
            np.concatenate([np.empty(0, ROW), *rows]),
        )


@dataclass(frozen=True)
class ShardIndex:
    """All that is known of a set of shards."""

    classes: tuple[str, ...]
    parts: Mapping[str, Part]
    """Split -> what is in it; `train`, `val`."""
    note: str
    """Where the samples come from, for people to read."""
    identity: str = ""
    """Digest of what was written, and how; empty where others wrote the shards."""

    def write(self, folder: Path) -> None:
        """Write the tables, and last `index.json`."""
        splits: dict[str, Any] = {}
        for name, part in self.parts.items():
            table = io.BytesIO()
            np.save(table, part.rows, allow_pickle=False)
            write_file(folder / f"{name}.npy", table.getvalue())
            counts = np.bincount(part.rows["label"], minlength=len(self.classes)).tolist()
            splits[name] = {
                "samples": len(part.rows),
                "counts": dict(zip(self.classes, counts, strict=True)),
                "table": f"{name}.npy",
                "table_sha256": hashlib.sha256(table.getvalue()).hexdigest(),
                "shards": [asdict(shard) for shard in part.shards],
            }
        whole = {
            "format": FORMAT,
            "note": self.note,
            "identity": self.identity,
            "classes": list(self.classes),
            "splits": splits,
        }
        write_file(folder / INDEX, f"{json.dumps(whole, indent=1)}\n".encode())


def is_remote(place: str) -> bool:
    """Whether a place is no path of a file here, but a URL or a command."""
    return "://" in place or place.startswith("pipe:")


def beside(place: str, name: str) -> str:
    """The place of another file in the same folder, of files and of URLs."""
    folder = place.rpartition("/")[0] if is_remote(place) else str(Path(place).parent)
    return below(folder, name)


def below(folder: str, name: str) -> str:
    """The place of a file in a folder, of files and of URLs."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else str(Path(folder) / name)


def open_place(place: str) -> IO[bytes]:
    """Open a file, a URL that fsspec knows, or what a `pipe:` command prints.

    Raises:
        DataError: a package is missing, or there is no such kind of URL.
        OSError: it cannot be opened.
    """
    if place.startswith("pipe:"):
        need_scale("webdataset")
        from webdataset.gopen import gopen

        stream: IO[bytes] = gopen(place)
        return stream
    if is_remote(place):
        need_scale("fsspec")
        import fsspec

        try:
            # Over HTTP in one piece: not all servers give parts, and each part is a request.
            options = {"block_size": 0} if re.match(r"https?://", place) else {}
            opened: IO[bytes] = fsspec.open(place, "rb", **options).open()
        except (ImportError, ValueError) as error:  # its package is missing, or there is none
            raise DataError(f"{place}: {error}") from error
        return opened
    return open(place, "rb", buffering=0)


def read_index(place: str) -> ShardIndex:
    """Read an index: `index.json` or the folder that it is in, here or at a URL.

    Raises:
        DataError: there is none, it is not finished, it is damaged, or not one of ours.
    """
    file = place if place.endswith(".json") else below(place, INDEX)
    try:
        with open_place(file) as stream:
            text = stream.read()
    except FileNotFoundError:
        if not is_remote(file) and Path(beside(file, UNFINISHED)).is_file():
            raise DataError(
                f"{place}: its shards are not all written; the same `mobilevit shard` goes on"
            ) from None
        raise DataError(f"{file}: there is no index of shards") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    try:
        whole = json.loads(text)
        if whole.get("format") != FORMAT:
            raise DataError(f"{file}: is no index of shards: its format is not {FORMAT!r}")
        classes = tuple(map(str, whole["classes"]))
        parts = {
            str(name): _read_part(file, split, len(classes))
            for name, split in whole["splits"].items()
        }
        return ShardIndex(classes, parts, str(whole["note"]), str(whole["identity"]))
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: is no index of shards, or damaged: {error!r}") from error


def _read_part(file: str, split: Any, classes: int) -> Part:
    """One split of an index, and its table."""
    shards = tuple(Shard(**shard) for shard in split["shards"])
    for shard in shards:
        # What an index names is read, so it may name nothing but files beside it.
        path = Path(shard.file)
        if is_remote(shard.file) or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file}: names {shard.file!r}, which is not in its folder")
    table = beside(file, str(split["table"]))
    try:
        with open_place(table) as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != split["table_sha256"]:
        raise DataError(f"{table}: is not the table of {file}; one of the two is of another set")
    rows = np.load(io.BytesIO(content), allow_pickle=False)
    if rows.dtype != ROW or len(rows) != sum(shard.samples for shard in shards) or not len(rows):
        raise DataError(f"{table}: does not fit {file}; write the index anew")
    if not 0 <= rows["label"].min() <= rows["label"].max() < classes:
        raise DataError(f"{table}: has labels outside the {classes} classes of {file}")
    return Part(shards, rows)

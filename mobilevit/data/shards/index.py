"""The index of tar shards: which samples are in which shard, and where.

Shards are tar files in webdataset's layout, `key.jpg` next to `key.cls`. The index, `index.json`
and a table for each split, adds what tars do not state: classes, splits, offsets and digests.
"""

import hashlib
import importlib
import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.shards.tar import ROW, TarShard, is_remote, open_location
from mobilevit.utils.files import write_file

INDEX = "index.json"
FORMAT = "mobilevit shards 1"
UNFINISHED = "unfinished.json"
"""Lies in a folder of shards until their index is written."""


def require_scale(package: str) -> None:
    """Check that a package of the extra `scale` is installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"this needs {package}, which is not installed: pip install 'mobilevit[scale]'"
        ) from error


@dataclass(frozen=True)
class ShardIndex:
    """All that is known of a set of shards."""

    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[TarShard]]
    """By name: `train`, `val`."""
    note: str
    """Where the samples come from, for messages."""
    identity: str = ""
    """Digest of what was written, and how; empty for shards written by others."""

    def write(self, folder: Path) -> None:
        splits: dict[str, Any] = {}
        for name, shards in self.splits.items():
            rows = np.concatenate([shard.rows for shard in shards])
            table = io.BytesIO()
            np.save(table, rows, allow_pickle=False)
            write_file(folder / f"{name}.npy", table.getvalue())
            counts = np.bincount(rows["label"], minlength=len(self.classes)).tolist()
            splits[name] = {
                "samples": len(rows),
                "counts": dict(zip(self.classes, counts, strict=True)),
                "table": f"{name}.npy",
                "table_sha256": hashlib.sha256(table.getvalue()).hexdigest(),
                "shards": [
                    {"file": s.file, "samples": len(s.rows), "size": s.size, "sha256": s.sha256}
                    for s in shards
                ],
            }
        content = {
            "format": FORMAT,
            "note": self.note,
            "identity": self.identity,
            "classes": list(self.classes),
            "splits": splits,
        }
        write_file(folder / INDEX, f"{json.dumps(content, indent=1)}\n")


def read_index(location: str) -> ShardIndex:
    """Read the index at a location, the path or URL of `index.json` or of its folder.

    Raises:
        DataError: it is missing, unfinished, damaged or of another format.
    """
    file = location if location.endswith(".json") else posixpath.join(location, INDEX)
    folder = posixpath.dirname(file)
    if not is_remote(file) and Path(folder, UNFINISHED).is_file():
        raise DataError(
            f"{location}: not all of its shards are written; run the same `mobilevit shard` again "
            "to continue"
        )
    try:
        content = json.loads(_read(file))
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


def _read_split(file: str, split: Any, classes: int) -> list[TarShard]:
    folder = posixpath.dirname(file)
    for shard in split["shards"]:
        # Files that an index names are opened, so it may name none outside its folder.
        path = Path(shard["file"])
        if is_remote(shard["file"]) or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file}: names {shard['file']!r}, which is not in its folder")
    table = posixpath.join(folder, str(split["table"]))
    content = _read(table)
    if hashlib.sha256(content).hexdigest() != split["table_sha256"]:
        raise DataError(f"{table}: not the table of {file}; one of the two is of another set")
    rows = np.load(io.BytesIO(content), allow_pickle=False)
    ends = np.cumsum([shard["samples"] for shard in split["shards"]])
    if rows.dtype != ROW or not len(rows) or ends[-1:] != [len(rows)]:
        raise DataError(f"{table}: does not match {file}; write the index again")
    if not 0 <= rows["label"].min() <= rows["label"].max() < classes:
        raise DataError(f"{table}: has labels outside the {classes} classes of {file}")
    return [
        TarShard(posixpath.join(folder, s["file"]), s["file"], s["size"], s["sha256"], own)
        for s, own in zip(split["shards"], np.split(rows, ends[:-1]), strict=True)
    ]


def _read(file: str) -> bytes:
    try:
        with open_location(file) as stream:
            return stream.read()
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file, which is part of an index") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error

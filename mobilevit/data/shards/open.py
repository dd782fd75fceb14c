"""Opening shards and tables to train on and to evaluate on."""

import json
import posixpath
import re
from dataclasses import replace
from pathlib import Path

from mobilevit.data.errors import DataError
from mobilevit.data.shards.index import FORMAT, INDEX, UNFINISHED, read_index, require_scale
from mobilevit.data.shards.samples import ShardSamples
from mobilevit.data.shards.tables import holds_tables, is_hub_name, open_tables
from mobilevit.data.shards.tar import TarShard, is_remote, tar_name


def is_sharded(root: str, index: str | None = None) -> bool:
    """Whether a location holds shards or tables rather than a folder of images."""
    if is_hub_name(root) or _has_index(root, index):
        return True
    return Path(root).is_dir() and holds_tables(root)


def is_pattern(root: str) -> bool:
    """Whether a location names shards themselves rather than their folder.

    >>> is_pattern("shards/train-{000000..000127}.tar"), is_pattern("shards")
    (True, False)
    """
    return root.startswith("pipe:") or re.search(r"\.tar\}?($|\?)", root) is not None


def open_shards(
    root: str, *, index: str | None = None, split: str | None = None
) -> dict[str, ShardSamples]:
    """The splits of a location by name; whether their files exist is not checked.

    Args:
        root: a folder of shards, local or at a URL; a pattern of shards, such as
            `s3://bucket/train-{000000..000127}.tar` or `pipe:cat shards/train-{0..9}.tar`; a folder
            of Parquet or Arrow files; or `hf:` and the name of a data set on the Hub.
        index: path or URL of the shards' index, unless it is next to them.
        split: of tables, the only split to open; see `open_tables`.

    Raises:
        DataError: there is no index, or it is unfinished or does not have the pattern's shards.
    """
    if is_hub_name(root) or not _has_index(root, index):
        return open_tables(root, split=split)
    if is_pattern(root):
        classes, splits = _match_pattern(root, index)
    else:
        found = read_index(index or root)
        classes = found.classes
        splits = {
            name: [replace(shard, location=posixpath.join(root, shard.file)) for shard in shards]
            for name, shards in found.splits.items()
        }
    return {
        name: ShardSamples.from_shards(root, shards, classes) for name, shards in splits.items()
    }


def expand_braces(pattern: str) -> list[str]:
    """Expand the braces of a pattern as shells and webdataset do.

    >>> expand_braces("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    if "{" not in pattern:
        return [pattern]
    require_scale("braceexpand")
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from error


def _has_index(root: str, index: str | None) -> bool:
    """Whether shards are described by an index, finished or not, rather than being tables."""
    if index is not None or is_remote(root) or is_pattern(root):
        return True
    if Path(root, UNFINISHED).is_file():
        return True
    try:
        content = json.loads(Path(root, INDEX).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _match_pattern(
    root: str, index: str | None
) -> tuple[tuple[str, ...], dict[str, list[TarShard]]]:
    """The classes, and split -> shards, for the shards that a pattern names."""
    locations = expand_braces(root)
    advice = "--data.index gives its path, `mobilevit shard PATTERN FOLDER` writes one"
    if index is None and root.startswith("pipe:"):
        raise DataError(f"{root}: the index of these shards is needed; {advice}")
    try:
        found = read_index(index or posixpath.dirname(locations[0]))
    except DataError as error:
        raise DataError(f"{error}; {advice}") from error
    by_name = {
        posixpath.basename(shard.file): (name, shard)
        for name, shards in found.splits.items()
        for shard in shards
    }
    splits: dict[str, list[TarShard]] = {}
    for location in locations:
        name, shard = by_name.get(tar_name(location), (None, None))
        if name is None or shard is None:
            raise DataError(f"{location}: the index has no shard of this name")
        splits.setdefault(name, []).append(replace(shard, location=location))
    return found.classes, splits

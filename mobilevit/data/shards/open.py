"""Opening shards and tables to train on and to evaluate on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.folders import VAL_SPLITS
from mobilevit.data.shards.index import (
    FORMAT,
    INDEX,
    UNFINISHED,
    ShardIndex,
    is_remote,
    join,
    parent,
    read_index,
    require_scale,
    tar_names,
)
from mobilevit.data.shards.samples import ShardSamples
from mobilevit.data.shards.tables import HUB, holds_tables, open_tables
from mobilevit.data.shards.tar import TarShards


@dataclass(frozen=True)
class ShardTrainVal:
    """Samples to train on and to evaluate on, with the same classes."""

    train: ShardSamples
    val: ShardSamples
    note: str
    """How the two were found or made, for messages."""


def is_sharded(root: str, index: str | None = None) -> bool:
    """Whether a location holds shards or tables rather than a folder of images."""
    if index is not None or root.startswith(HUB) or is_remote(root) or is_pattern(root):
        return True
    return _has_index(Path(root)) or (Path(root).is_dir() and holds_tables(root))


def is_pattern(root: str) -> bool:
    """Whether a location names shards themselves rather than their folder.

    >>> is_pattern("shards/train-{000000..000127}.tar"), is_pattern("shards")
    (True, False)
    """
    return root.startswith("pipe:") or re.search(r"\.tar\}?($|\?)", root) is not None


def shard_splits(
    root: str, *, index: str | None = None, val_fraction: float = 0.2, seed: int = 0
) -> ShardTrainVal:
    """Find the samples to train on and those to evaluate on.

    Splits are those of the index or data set: `train`, and the first of `val`, `valid`,
    `validation` and `test`. If there is only one, a share of its shards is held out at random.

    Args:
        root: a folder of shards, local or at a URL; a pattern of shards, such as
            `s3://bucket/train-{000000..000127}.tar` or `pipe:cat shards/train-{0..9}.tar`; a folder
            of Parquet or Arrow files; or `hf:` and the name of a data set on the Hub.
        index: path or URL of the shards' index, unless it is next to them.
        val_fraction: share of the shards to hold out: at least one, and not all.

    Raises:
        DataError: shards are missing or do not match their index, or nothing would be left.
    """
    splits = open_splits(root, index=index)
    val_name = next((name for name in VAL_SPLITS if name in splits), None)
    if "train" in splits and val_name:
        train, val = splits["train"], splits[val_name]
        if train.classes != val.classes:
            val = val.relabel(train.classes)
        note = f"train: {_summary(train)}, {val_name}: {_summary(val)}"
    else:
        name, everything = next(iter(splits.items()))
        shards = len(everything.shards.counts)
        if shards < 2:
            raise DataError(
                f"{root}: has one shard of {name} only, which cannot be divided; give shards to "
                "train on and shards to evaluate on"
            )
        count = min(max(round(shards * val_fraction), 1), shards - 1)
        order = np.random.default_rng((seed, 4)).permutation(shards).tolist()
        val, train = (
            everything.select_shards(sorted(numbers)) for numbers in (order[:count], order[count:])
        )
        note = (
            f"has {name} only: {count} of {shards} shards held out with seed {seed} "
            f"({len(train.labels)} + {len(val.labels)} images)"
        )
    for samples in (train, val):
        samples.shards.check_files()
    return ShardTrainVal(train, val, f"{root}: {note}")


def shard_evaluation(
    root: str, classes: tuple[str, ...], *, index: str | None = None
) -> ShardSamples:
    """Samples to evaluate on, with a model's classes: those of a validation split, else all."""
    splits = open_splits(root, index=index)
    name = next((name for name in VAL_SPLITS if name in splits), next(iter(splits)))
    samples = splits[name].relabel(classes)
    samples.shards.check_files()
    return samples


def open_splits(root: str, *, index: str | None = None) -> dict[str, ShardSamples]:
    """All splits of a location by name, without checking that their files exist."""
    if root.startswith(HUB) or not (
        index is not None or is_remote(root) or is_pattern(root) or _has_index(Path(root))
    ):
        return open_tables(root)
    if is_pattern(root):
        found, locations = _match_pattern(root, index)
    else:
        found = read_index(index or root)
        locations = {
            name: {number: join(root, shard.file) for number, shard in enumerate(split.shards)}
            for name, split in found.splits.items()
        }
    samples = {}
    for name, by_number in locations.items():
        split = found.splits[name].subset(list(by_number))
        shards = TarShards(split, list(by_number.values()))
        samples[name] = ShardSamples(shards, split.rows["label"].copy(), found.classes)
    return samples


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


def _has_index(folder: Path) -> bool:
    """Whether a folder has an index of shards, finished or not."""
    if (folder / UNFINISHED).is_file():
        return True
    try:
        content = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _match_pattern(root: str, index: str | None) -> tuple[ShardIndex, dict[str, dict[int, str]]]:
    """The index, and split -> number of a shard -> location, for those that a pattern names."""
    locations = expand_braces(root)
    if index is None and root.startswith("pipe:"):
        raise DataError(
            f"{root}: --data.index must give the index of these shards; `mobilevit shard PATTERN "
            "FOLDER` writes one"
        )
    try:
        found = read_index(index or join(parent(locations[0]), INDEX))
    except DataError as error:
        raise DataError(
            f"{error}; --data.index gives its path, `mobilevit shard PATTERN FOLDER` writes one"
        ) from error
    by_name: dict[str, list[tuple[str, int, str]]] = {}
    for name, split in found.splits.items():
        for number, shard in enumerate(split.shards):
            by_name.setdefault(Path(shard.file).name, []).append((name, number, shard.file))
    splits: dict[str, dict[int, str]] = {}
    for location in locations:
        name, number = _match_location(location, by_name)
        splits.setdefault(name, {})[number] = location
    return found, splits


def _match_location(
    location: str, by_name: dict[str, list[tuple[str, int, str]]]
) -> tuple[str, int]:
    candidates = [entry for name in tar_names(location)[-1:] for entry in by_name.get(name, [])]
    matches = [
        (name, number)
        for name, number, file in candidates
        if re.search(rf"(^|[/:\s'\"]){re.escape(file)}($|[\s'\"?])", location)
    ]
    if len(matches) != 1:
        raise DataError(
            f"{location}: the index has {'several shards' if matches else 'no shard'} of this name"
        )
    return matches[0]


def _summary(samples: ShardSamples) -> str:
    return f"{len(samples.labels)} images in {len(samples.shards.counts)} shards"

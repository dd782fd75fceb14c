"""Opening shards and tables to train on and to evaluate on."""

import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.files import VAL_SPLITS
from mobilevit.data.shards.index import FORMAT, INDEX, UNFINISHED, read_index, require_scale
from mobilevit.data.shards.samples import Shard, ShardSamples
from mobilevit.data.shards.tables import holds_tables, is_hub_name, open_tables
from mobilevit.data.shards.tar import TarShard, is_remote
from mobilevit.data.splits import Splits, select_evaluation_split


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


def shard_splits(
    root: str, *, index: str | None = None, val_fraction: float = 0.2, seed: int = 0
) -> Splits[ShardSamples]:
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
    splits = open_shards(root, index=index)
    val_name = next((name for name in VAL_SPLITS if name in splits), None)
    if "train" in splits and val_name:
        train, val = splits["train"], splits[val_name].relabel(splits["train"].classes)
        note = ", ".join(
            f"{name}: {len(samples)} images in {len(samples.images.shards)} shards"
            for name, samples in (("train", train), (val_name, val))
        )
    else:
        name, everything = next(iter(splits.items()))
        shards = everything.images.shards
        if len(shards) < 2:
            raise DataError(
                f"{root}: has one shard of {name} only, which cannot be divided; give shards to "
                "train on and shards to evaluate on"
            )
        count = min(max(round(len(shards) * val_fraction), 1), len(shards) - 1)
        order = np.random.default_rng((seed, 4)).permutation(len(shards)).tolist()
        val, train = (
            ShardSamples.from_shards(root, [shards[n] for n in sorted(part)], everything.classes)
            for part in (order[:count], order[count:])
        )
        note = (
            f"has {name} only: {count} of {len(shards)} shards held out with seed {seed} "
            f"({len(train)} + {len(val)} images)"
        )
    for samples in (train, val):
        _check_files(samples.images.shards)
    return Splits(train, val, f"{root}: {note}")


def shard_evaluation(
    root: str, classes: Sequence[str] | None, *, index: str | None = None
) -> ShardSamples:
    """Samples to evaluate on, with a model's classes: those of a validation split, else all."""
    _, samples = select_evaluation_split(open_shards(root, index=index))
    _check_files(samples.images.shards)
    return samples if classes is None else samples.relabel(classes)


def open_shards(root: str, *, index: str | None = None) -> dict[str, ShardSamples]:
    """All splits of a location by name, without checking that their files exist."""
    if is_hub_name(root) or not _has_index(root, index):
        return open_tables(root)
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


def tar_name(location: str) -> str | None:
    """The last name ending with .tar in a path, URL or command."""
    return next(reversed(re.findall(r"[^/\s'\"]+\.tar", location)), None)


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
        name, shard = by_name.get(tar_name(location) or "", (None, None))
        if name is None or shard is None:
            raise DataError(f"{location}: the index has no shard of this name")
        splits.setdefault(name, []).append(replace(shard, location=location))
    return found.classes, splits


def _check_files(shards: Sequence[Shard]) -> None:
    wrong = [str(issue) for shard in shards if (issue := shard.problem(quick=True))]
    if wrong:
        listed = "\n  ".join([*wrong[:20], "..."] if len(wrong) > 20 else wrong)
        message = f"{len(wrong)} of {len(shards)} shards do not match the index"
        raise DataError(f"{message}:\n  {listed}")

"""Recognise shards, and rows of tables; what to train on and what to evaluate by."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilevit.data.formats.folders import VAL_FOLDERS, DataError
from mobilevit.data.shards.index import (
    FORMAT,
    INDEX,
    UNFINISHED,
    Part,
    ShardIndex,
    below,
    beside,
    is_remote,
    need_scale,
    read_index,
)
from mobilevit.data.shards.read import TarShards
from mobilevit.data.shards.remote import HUB, holds_tables, row_splits
from mobilevit.data.shards.samples import ShardSamples


@dataclass(frozen=True)
class ShardTrainVal:
    """What to train on and what to evaluate by, with the same classes."""

    train: ShardSamples
    val: ShardSamples
    note: str
    """How the two came about, for people to read."""


def is_sharded(root: str, index: str | None = None) -> bool:
    """Whether a place is one of shards or of tables, and not a folder of images."""
    if index is not None or root.startswith(HUB) or is_remote(root) or is_pattern(root):
        return True
    folder = Path(root)
    if (folder / UNFINISHED).is_file() or _is_index(folder / INDEX):
        return True
    return folder.is_dir() and holds_tables(root)


def is_pattern(root: str) -> bool:
    """Whether a place is one of shards themselves, and not the folder that they are in."""
    return root.startswith("pipe:") or re.search(r"\.tar\}?($|\?)", root) is not None


def shard_splits(
    root: str, *, index: str | None = None, val_fraction: float = 0.2, seed: int = 0
) -> ShardTrainVal:
    """Find the samples to train on and those to evaluate by.

    Splits are those of the index, or of the data set: `train`, and the first of `val`, `valid`,
    `validation`, `test`. Where an index has only one, `val_fraction` of its shards is held out:
    rounded, at least one and not all, drawn with `seed`.

    Args:
        root: a folder of shards, here or at a URL; a pattern of shards, such as
            `s3://bucket/train-{000000..000127}.tar` or `pipe:cat shards/train-{0..9}.tar`; a folder
            of Parquet or Arrow files; or `hf:` and a name on the Hub.
        index: where the shards' index is, if not beside them.
        val_fraction: share of the shards to hold out.
        seed: of the choice.

    Raises:
        DataError: shards are missing or do not fit their index, or nothing would be left.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
    parts = shard_parts(root, index=index)
    held = [name for name in VAL_FOLDERS if name in parts]
    if "train" in parts and held:
        train, val = parts["train"], parts[held[0]]
        if train.classes != val.classes:
            val = val.relabelled(train.classes)
        note = f"train: {_counted(train)}, {held[0]}: {_counted(val)}"
    else:
        name, whole = next(iter(parts.items()))
        shards = len(whole.shards.counts)
        if shards < 2:
            raise DataError(
                f"{root}: has one shard of {name} only, which cannot be divided; give shards to "
                "train on and shards to evaluate by"
            )
        count = min(max(round(shards * val_fraction), 1), shards - 1)
        order = np.random.default_rng((seed, 4)).permutation(shards).tolist()
        val, train = (whole.some(sorted(some)) for some in (order[:count], order[count:]))
        note = (
            f"has {name} only: {count} of {shards} shards held out with seed {seed} "
            f"({len(train.labels)} + {len(val.labels)} images)"
        )
    for part in (train, val):
        part.shards.look()
    return ShardTrainVal(train, val, f"{root}: {note}")


def shard_evaluation(
    root: str, classes: tuple[str, ...], *, index: str | None = None
) -> ShardSamples:
    """Find the samples to evaluate on: those held out beside `train`, else all.

    Args:
        root: as for `shard_splits`, and so is `index`.
        classes: those of a model; labels count them.
        index: where the shards' index is, if not beside them.

    Raises:
        DataError: as in `shard_splits`; or a class is not among `classes`.
    """
    parts = shard_parts(root, index=index)
    name = next((name for name in VAL_FOLDERS if name in parts), next(iter(parts)))
    samples = parts[name].relabelled(classes)
    samples.shards.look()
    return samples


def shard_parts(root: str, *, index: str | None = None) -> dict[str, ShardSamples]:
    """Find all splits; that their files are there is not looked at.

    Args:
        root: as for `shard_splits`.
        index: where the shards' index is, if not beside them.

    Raises:
        DataError: there is no index, or it does not know the shards.
    """
    if _is_rows(root, index):
        return row_splits(root)
    found, chosen = _chosen(root, index)
    return {
        name: ShardSamples(TarShards(part, places), part.rows["label"].copy(), found.classes)
        for name, (part, places) in chosen.items()
    }


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as shells and webdataset have it.

    Raises:
        DataError: the package that does it is missing, or the pattern is none.
    """
    if "{" not in pattern:
        return [pattern]
    need_scale("braceexpand")
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from error


def _is_rows(root: str, index: str | None) -> bool:
    if index is not None or is_remote(root) or is_pattern(root):
        return False
    return root.startswith(HUB) or not (
        (Path(root) / INDEX).is_file() or (Path(root) / UNFINISHED).is_file()
    )


def _is_index(file: Path) -> bool:
    """Whether a file, which could be anyone's, is an index of ours."""
    try:
        whole = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(whole, dict) and whole.get("format") == FORMAT


def _chosen(root: str, index: str | None) -> tuple[ShardIndex, dict[str, tuple[Part, list[str]]]]:
    """The index, and of each split the part that `root` means, with the places of its shards."""
    if not is_pattern(root):
        found = read_index(index or root)
        return found, {
            name: (part, [below(root, shard.file) for shard in part.shards])
            for name, part in found.parts.items()
        }
    places = expanded(root)
    if index is None and root.startswith("pipe:"):
        raise DataError(
            f"{root}: --data.index must say where the index of these shards is; `mobilevit shard "
            "PATTERN FOLDER` writes one"
        )
    try:
        found = read_index(index or beside(places[0], INDEX))
    except DataError as error:
        raise DataError(
            f"{error}; --data.index says where it is, `mobilevit shard PATTERN FOLDER` writes one"
        ) from error
    known = [
        (name, number, shard.file)
        for name, part in found.parts.items()
        for number, shard in enumerate(part.shards)
    ]
    by_name: dict[str, list[tuple[str, int, str]]] = {}
    for entry in known:
        by_name.setdefault(Path(entry[2]).name, []).append(entry)
    taken: dict[str, tuple[list[int], list[str]]] = {}
    for place in places:
        name, number = _which(place, by_name)
        numbers, where = taken.setdefault(name, ([], []))
        numbers.append(number)
        where.append(place)
    return found, {
        name: (found.parts[name].some(numbers), where) for name, (numbers, where) in taken.items()
    }


def _which(place: str, by_name: dict[str, list[tuple[str, int, str]]]) -> tuple[str, int]:
    """Split and number of the shard that a place is of."""
    names = re.findall(r"[^/\s'\"]+\.tar", place)
    entries = by_name.get(names[-1], []) if names else []
    fitting = [
        (name, number)
        for name, number, file in entries
        if re.search(rf"(^|[/:\s'\"]){re.escape(file)}($|[\s'\"?])", place)
    ]
    if len(fitting) != 1:
        raise DataError(
            f"{place}: the index has {'several shards' if fitting else 'no shard'} of this name"
        )
    return fitting[0]


def _counted(samples: ShardSamples) -> str:
    return f"{len(samples.labels)} images in {len(samples.shards.counts)} shards"

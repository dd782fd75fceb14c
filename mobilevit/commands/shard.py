"""`mobilevit shard`: a folder of images as tar files, for data larger than a disk."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mobilevit.data.class_names import class_names
from mobilevit.data.errors import DataError
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.shards.index import ShardIndex
from mobilevit.data.shards.open import expand_braces, is_pattern
from mobilevit.data.shards.write import index_shards, write_shards
from mobilevit.data.splits import LabelSamples
from mobilevit.utils.devices import available_cores
from mobilevit.utils.options import Count, Interval, Options, Positive
from mobilevit.utils.tables import render, table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Options):
    """Options of `shard`."""

    size: Positive = 256.0
    """Approximate size of a shard in megabytes."""
    shards: Count | None = None
    """Number of shards of train, instead of the size."""
    on_bad: Literal["error", "skip"] = "error"
    """What to do about files that cannot be read: stop and name them, or leave them out."""
    val_fraction: Annotated[float, Interval(0, 1, "()")] = 0.2
    """Share of each class that is held out if the folder has no val/."""
    val: str | None = None
    """Pattern of the shards to evaluate on, if the source is a pattern."""
    classes: str | None = None
    """If the source is a pattern: names of the classes that its shards number, separated by commas
    or in a file, one per line."""
    workers: Count | None = None
    """Shards that are written at the same time; by default the number of cores."""
    seed: int = 0
    """Of the order of images, and of what is held out."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The shards or the index that were written."""

    folder: Path
    index: ShardIndex
    seconds: float
    usage: str
    """How to train on them."""

    def __str__(self) -> str:
        rows = table("split", "shards", "images", "MB")
        for name, shards in self.index.splits.items():
            images = sum(len(shard.rows) for shard in shards)
            size = sum(shard.size for shard in shards) / 1e6
            rows.add_row(name, str(len(shards)), str(images), f"{size:.1f}")
        return f"{render(rows)}\n{self.folder}, in {self.seconds:.1f} s; {self.usage}"


def shard(source: str, out: str, options: ShardOptions | None = None, **fields: Any) -> ShardResult:
    """Write a folder of images as tar shards with an index, or index existing shards.

    Args:
        source: a folder with train/ and val/, or with one folder per class; or a pattern of
            existing shards, such as train-{000..127}.tar, a URL or a pipe: command, of which only
            an index is written.
        out: folder to write to; if a call was interrupted, the same call continues.
        options: all options; or in Python
        fields: of `ShardOptions`, such as `shards`, that are set or differ.

    Raises:
        DataError: the images cannot be used, or `out` holds something else.
        OSError: it cannot be written.
        ValueError: an option out of its range.
    """
    options = ShardOptions(**fields) if options is None else replace(options, **fields)
    start = time.perf_counter()
    if is_pattern(source):
        index = _index_pattern(source, Path(out), options)
        usage = f"--data.root PATTERN --data.index {out} trains on them"
    else:
        index = _write_folder(source, Path(out), options)
        usage = f"--data.root {out} trains on it"
    seconds = time.perf_counter() - start
    return ShardResult(folder=Path(out), index=index, seconds=seconds, usage=usage)


def _index_pattern(source: str, out: Path, options: ShardOptions) -> ShardIndex:
    default = ShardOptions()
    if any(
        getattr(options, name) != getattr(default, name)
        for name in ("size", "shards", "on_bad", "val_fraction")
    ):
        raise ValueError(
            "size, shards, on_bad and val_fraction are for a folder of images: existing shards are "
            "indexed unchanged"
        )
    locations = {"train": expand_braces(source)}
    if options.val is not None:
        locations["val"] = expand_braces(options.val)
    return index_shards(
        locations,
        out,
        classes=class_names(options.classes),
        workers=options.workers or available_cores(),
    )


def _write_folder(source: str, out: Path, options: ShardOptions) -> ShardIndex:
    if (options.val, options.classes) != (None, None):
        raise ValueError("val and classes are for existing shards, not for a folder")
    data = DataOptions(root=source, val_fraction=options.val_fraction, on_bad=options.on_bad)
    splits = open_splits(LabelSamples, data, seed=options.seed)
    log.info("%s", splits.note)
    if out.resolve().is_relative_to(Path(source).resolve()):
        raise DataError(f"{out}: is inside {source}, whose images are to be written to it")
    return write_shards(
        splits,
        out,
        size=options.size * 1e6,
        shards=options.shards,
        seed=options.seed,
        workers=options.workers or available_cores(),
    )

"""`mobilevit shard`: a folder of images as tar files, for data larger than a disk."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilevit.data.class_names import class_names
from mobilevit.data.errors import DataError
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.shards.index import ShardIndex
from mobilevit.data.shards.open import expand_braces, is_pattern
from mobilevit.data.shards.write import index_shards, write_shards
from mobilevit.data.splits import LabelSamples
from mobilevit.utils.devices import available_cores
from mobilevit.utils.tables import render, table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """The shards or the index that were written."""

    folder: Path
    index: ShardIndex
    seconds: float
    usage: str
    """How to train on them."""

    def __str__(self) -> str:
        """A table of the splits, and how to train on them."""
        rows = table("split", "shards", "images", "MB")
        for name, split in self.index.splits.items():
            size = sum(shard.size for shard in split.shards) / 1e6
            rows.add_row(name, str(len(split.shards)), str(len(split.rows)), f"{size:.1f}")
        return f"{render(rows)}\n{self.folder}, in {self.seconds:.1f} s; {self.usage}"


def shard(
    source: str,
    out: str,
    *,
    size: float = 256.0,
    shards: int | None = None,
    on_bad: Literal["error", "skip"] = "error",
    val_fraction: float = 0.2,
    val: str | None = None,
    classes: str | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> ShardResult:
    """Write a folder of images as tar shards with an index, or index existing shards.

    Args:
        source: a folder with train/ and val/, or with one folder per class; or a pattern of
            existing shards, such as train-{000..127}.tar, a URL or a pipe: command, of which only
            an index is written.
        out: folder to write to; if a call was interrupted, the same call continues.
        size: approximate size of a shard in megabytes.
        shards: number of shards of train, instead of the size.
        on_bad: what to do about files that cannot be read: stop and name them, or leave them out.
        val_fraction: share of each class that is held out if the folder has no val/.
        val: pattern of the shards to evaluate on, if the source is a pattern.
        classes: if the source is a pattern: names of the classes that its shards number, separated
            by commas or in a file, one per line.
        workers: shards that are written at the same time; by default the number of cores.
        seed: of the order of images, and of what is held out.

    Raises:
        DataError: the images cannot be used, or `out` holds something else.
        OSError: it cannot be written.
        ValueError: an option out of its range.
    """
    workers = available_cores() if workers is None else workers
    for name, count in (("workers", workers), ("shards", shards)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    if not size > 0:
        raise ValueError(f"size must be above 0 MB, not {size}")
    start = time.perf_counter()
    folder = Path(out)
    if is_pattern(source):
        if (size, shards, on_bad, val_fraction) != (256.0, None, "error", 0.2):
            raise ValueError(
                "size, shards, on_bad and val_fraction are for a folder of images: existing shards "
                "are indexed unchanged"
            )
        locations = {"train": expand_braces(source)}
        if val is not None:
            locations["val"] = expand_braces(val)
        index = index_shards(locations, folder, classes=class_names(classes), workers=workers)
        usage = f"--data.root PATTERN --data.index {folder} trains on them"
    else:
        if (val, classes) != (None, None):
            raise ValueError("val and classes are for existing shards, not for a folder")
        data = DataOptions(root=source, val_fraction=val_fraction, on_bad=on_bad)
        found = open_splits(LabelSamples, data, seed=seed)
        log.info("%s", found.note)
        if folder.resolve().is_relative_to(Path(source).resolve()):
            raise DataError(f"{folder}: is inside {source}, whose images are to be written to it")
        index = write_shards(
            found,
            folder,
            size=size * 1e6,
            shards=shards,
            seed=seed,
            workers=workers,
        )
        usage = f"--data.root {folder} trains on it"
    return ShardResult(folder=folder, index=index, seconds=time.perf_counter() - start, usage=usage)

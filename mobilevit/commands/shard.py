"""`mobilevit shard`: a folder of images as tar files, for data larger than a disk."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilevit.data.class_names import class_names
from mobilevit.data.formats.folders import DataError, TrainVal, splits
from mobilevit.data.shards.index import ShardIndex
from mobilevit.data.shards.open import expanded, is_pattern
from mobilevit.data.shards.write import index_shards, write_shards
from mobilevit.data.validate import readable
from mobilevit.utils.devices import available_cores
from mobilevit.utils.tables import render, table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """What was written."""

    folder: Path
    index: ShardIndex
    seconds: float
    use: str
    """How to train on it."""

    def __str__(self) -> str:
        """A table of the splits, and how to use them."""
        rows = table("split", "shards", "images", "MB")
        for name, part in self.index.parts.items():
            size = sum(shard.size for shard in part.shards) / 1e6
            rows.add_row(name, str(len(part.shards)), str(len(part.rows)), f"{size:.1f}")
        return f"{render(rows)}\n{self.folder}, in {self.seconds:.1f} s; {self.use}"


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
) -> Sharded:
    """Write a folder of images as tar shards with an index, or index shards that are there.

    Args:
        source: a folder with train/ and val/, or with one folder per class; or a pattern of shards
            that others wrote, such as train-{000..127}.tar, a URL or a pipe: command: then only an
            index is written.
        out: folder to write to; where a call was interrupted, the same call goes on.
        size: megabytes of a shard, about.
        shards: instead of the size: how many shards of train.
        on_bad: what to do about files that cannot be read: stop and name them, or leave them out.
        val_fraction: share of each class that is held out, where the folder has no val/.
        val: pattern of the shards to evaluate by, where the source is a pattern.
        classes: where the source is a pattern: names of the classes that its shards number, with
            commas between or in a file, one a line.
        workers: shards that are written at the same time; by default as many as there are cores.
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
    begun = time.perf_counter()
    folder = Path(out)
    if is_pattern(source):
        if (size, shards, on_bad, val_fraction) != (256.0, None, "error", 0.2):
            raise ValueError(
                "size, shards, on_bad and val_fraction are for a folder of images: shards that "
                "are there are indexed as they are"
            )
        places = {"train": expanded(source), **({} if val is None else {"val": expanded(val)})}
        index = index_shards(places, folder, classes=class_names(classes), workers=workers)
        use = f"--data.root PATTERN --data.index {folder} trains on them"
    else:
        if (val, classes) != (None, None):
            raise ValueError("val and classes are for shards that are there, not for a folder")
        found = splits(source, val_fraction=val_fraction, seed=seed)
        log.info("%s", found.note)
        train, held = readable(found.train, found.val, on_bad=on_bad, workers=workers)
        if folder.resolve().is_relative_to(Path(source).resolve()):
            raise DataError(f"{folder}: lies in {source}, whose images it is to hold")
        index = write_shards(
            TrainVal(train, held, found.note),
            folder,
            size=size * 1e6,
            shards=shards,
            seed=seed,
            workers=workers,
        )
        use = f"--data.root {folder} trains on it"
    return Sharded(folder=folder, index=index, seconds=time.perf_counter() - begun, use=use)

"""Look at shards before training on them: whether they are whole, and their images readable."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from mobilevit.data.formats.folders import DataError
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.shards.open import open_splits
from mobilevit.data.shards.samples import Shards
from mobilevit.data.shards.tar import TarShards, index_tar
from mobilevit.utils.devices import available_cores


@dataclass(frozen=True)
class ShardReport:
    """What a check of shards found."""

    root: str
    quick: bool
    """Whether images were not decoded."""
    counts: dict[str, dict[str, int]]
    """Split -> class -> samples."""
    bad: tuple[str, ...]
    """What cannot be read, and why."""

    @property
    def exit_code(self) -> int:
        """0 where training can run over all of it, else 1."""
        return 1 if self.bad else 0

    def __str__(self) -> str:
        """Give the report as text for a person, each fault on a line of its own."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        how = "shards read" if self.quick else "every image decoded"
        total = sum(sum(part.values()) for part in self.counts.values())
        yield f"{self.root}: {total} images, {how}"
        names = list(next(iter(self.counts.values())))
        width = max(map(len, ("class", *names)))
        yield f"  {'class':<{width}}" + "".join(f"  {split:>10}" for split in self.counts)
        for name in names:
            row = "".join(f"  {part[name]:>10}" for part in self.counts.values())
            yield f"  {name:<{width}}{row}"
        yield from (f"error: {fault}" for fault in self.bad)
        yield f"{len(self.bad)} faults" if self.bad else "everything can be read"


def check_shards(root: str, *, workers: int | None = None, quick: bool = False) -> ShardReport:
    """Read all shards; compare tars with the digests of their index, and decode the images.

    Args:
        root: as for `shard_splits`.
        workers: threads that read; by default as many as there are cores.
        quick: do not decode.

    Raises:
        DataError: there is no index, or it does not know the shards.
        ValueError: `workers` is less than 1.
    """
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    counts: dict[str, dict[str, int]] = {}
    bad: list[str] = []
    with ThreadPoolExecutor(workers) as executor:
        for split, samples in open_splits(root).items():
            found = np.bincount(samples.labels, minlength=len(samples.classes)).tolist()
            counts[split] = dict(zip(samples.classes, found, strict=True))
            faults = partial(_faults, samples.shards, quick=quick)
            for some in executor.map(faults, range(len(samples.shards.counts))):
                bad += some
    return ShardReport(root, quick, counts, tuple(bad))


def _faults(shards: Shards, number: int, *, quick: bool) -> list[str]:
    """What is wrong with one shard."""
    faults = []
    try:
        if isinstance(shards, TarShards):
            known = shards.split.shards[number]
            place = shards.locations[number]
            if index_tar(place, known.file).shard != known:
                return [f"{place}: is not the shard of its index, or was changed"]
        if not quick:
            for position, data in enumerate(shards.read(number, 0)):
                try:
                    open_image(data)
                except ImageError as error:
                    faults.append(f"{shards.name(number, position)}: {error.reason}")
    except DataError as error:
        faults.append(str(error))
    return faults

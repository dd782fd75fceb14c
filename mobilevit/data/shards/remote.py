"""Images that Hugging Face `datasets` streams: sets of the Hub, Parquet and Arrow files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.data.formats.folders import VAL_FOLDERS, DataError
from mobilevit.data.shards.index import need_scale
from mobilevit.data.shards.samples import ShardSamples

log = logging.getLogger(__name__)

HUB = "hf:"
"""What stands before a data set's name on the Hub, or a folder of one."""
_TABLES = ("*.parquet", "*.arrow", "*/*.parquet", "*/*.arrow")
_SAVED_SHARDS = 64
"""Into how many shards a data set that was saved whole is cut, at most."""


def holds_tables(root: str) -> bool:
    """Whether a folder holds Parquet or Arrow files."""
    return any(next(Path(root).glob(pattern), None) is not None for pattern in _TABLES)


def row_splits(root: str) -> dict[str, ShardSamples]:
    """The splits of a data set: `train` and the first of those to evaluate by, or the only one.

    Args:
        root: a folder of Parquet or Arrow files, or `hf:` and a name on the Hub or a folder.

    Raises:
        DataError: it cannot be opened, or has not one column of images and one of classes.
    """
    need_scale("datasets")
    place = root.removeprefix(HUB)
    opened = _open(place)
    wanted = [name for name in ("train", *VAL_FOLDERS) if name in opened]
    if "train" in wanted:
        wanted = wanted[:2]
    elif not wanted:
        wanted = list(opened)[:1]
    return {name: _samples(place, name, opened[name]) for name in wanted}


def _open(place: str, **options: Any) -> Any:
    """Split -> `IterableDataset`."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(place)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(place)
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            return {
                name: part.to_iterable_dataset(num_shards=min(_SAVED_SHARDS, len(part)))
                for name, part in splits.items()
            }
        return datasets.load_dataset(place, streaming=True, **options)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        raise DataError(f"{place}: cannot be opened as a data set: {error}") from error


def _samples(place: str, split: str, dataset: Any) -> ShardSamples:
    """One split."""
    import datasets

    features = dataset.features or {}
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1 or len(classes) != 1:
        there = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        raise DataError(
            f"{place}: one column of images (Image) and one of classes (ClassLabel) are needed; "
            f"{split} has {there or 'no columns that are known'}"
        )
    image, label = images[0], classes[0]
    names = tuple(features[label].names)
    columns = dataset.select_columns([label])
    if getattr(dataset, "builder_name", None) == "parquet":  # then only that column is read
        columns = _open(place, columns=[label])[split]
    elif not Path(place).exists():
        log.warning(
            "%s: is no set of Parquet files: all of it is read once, to count its samples", place
        )
    counts, labels = [], []
    for shard in range(columns.num_shards):
        rows = columns.shard(num_shards=columns.num_shards, index=shard)
        found = [-1 if row[label] is None else row[label] for row in rows]
        counts.append(len(found))
        labels += found
    everything = np.array(labels, np.int32)
    if not len(everything):
        raise DataError(f"{place}: has no samples in {split}")
    if not 0 <= everything.min() <= everything.max() < len(names):
        raise DataError(
            f"{place}: {(everything < 0).sum()} samples of {split} have no class; a split without "
            "classes cannot be trained on or evaluated by"
        )
    undecoded = dataset.cast_column(image, datasets.Image(decode=False))
    return ShardSamples(RowShards(f"{place}/{split}", undecoded, image, counts), everything, names)


class RowShards:
    """The shards of an `IterableDataset`."""

    in_a_row = True

    def __init__(
        self,
        name: str,
        dataset: Any,
        column: str,
        counts: Sequence[int],
        *,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """`column` holds images, not decoded; `numbers` are the shards, all unless given."""
        self._name, self._dataset, self._column, self.counts = name, dataset, column, counts
        self._numbers = list(range(len(counts)) if numbers is None else numbers)

    def some(self, numbers: Sequence[int]) -> RowShards:
        """Chosen shards, in this order."""
        return RowShards(
            self._name,
            self._dataset,
            self._column,
            [self.counts[number] for number in numbers],
            numbers=[self._numbers[number] for number in numbers],
        )

    def look(self) -> None:
        """All was there when rows were counted."""

    def read(self, shard: int, start: int) -> Iterator[bytes]:
        """The files of a shard's images, from its `start`-th sample on.

        Raises:
            DataError: an image is neither in its row nor a file.
        """
        rows = self._dataset.shard(num_shards=self._dataset.num_shards, index=self._numbers[shard])
        for position, row in enumerate(rows.skip(start), start):
            image = row[self._column]
            if image is not None and image["bytes"] is not None:
                yield image["bytes"]
            elif image is not None and image["path"] and Path(image["path"]).is_file():
                yield Path(image["path"]).read_bytes()
            else:
                raise DataError(f"{self.name(shard, position)}: has no image")

    def name(self, shard: int, position: int) -> str:
        """The split, the shard's number in it, and the place in that."""
        return f"{self._name}, shard {self._numbers[shard]}, row {position}"

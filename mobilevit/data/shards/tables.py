"""Images in tables that Hugging Face `datasets` streams: from the Hub, Parquet or Arrow."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import EVERYTHING
from mobilevit.data.formats.files import VAL_SPLITS, file_size
from mobilevit.data.shards.index import require_scale
from mobilevit.data.shards.samples import Shard, ShardSamples
from mobilevit.data.splits import find_named_split
from mobilevit.utils.urls import network_errors

log = logging.getLogger(__name__)

HUB = "hf:"
"""Prefix of a data set's name on the Hub, or of a folder with one."""
_TABLES = ("*.parquet", "*.arrow", "*/*.parquet", "*/*.arrow")
_SAVED_SHARDS = 64
"""A data set written by `save_to_disk` is divided into at most this many shards."""


@dataclass(frozen=True, eq=False)
class TableShard(Shard):
    """A shard of an `IterableDataset`."""

    split: str
    """Location and split, for messages."""
    dataset: Any
    column: str
    """The column of images, which are not decoded."""
    number: int
    labels: np.ndarray
    size: int

    @property
    def identity(self) -> str:
        return f"shard {self.number}"

    def read(self, start: int = 0) -> Iterator[bytes]:
        rows = self.dataset.shard(self.dataset.num_shards, self.number)
        for position, row in enumerate(_streamed(self.split, rows.skip(start)), start):
            image = row[self.column]
            if image is not None and image["bytes"] is not None:
                yield image["bytes"]
            elif image is not None and image["path"] and Path(image["path"]).is_file():
                yield Path(image["path"]).read_bytes()
            else:
                raise DataError(f"{self.name(position)}: has no image")

    def name(self, position: int) -> str:
        return f"{self.split}, shard {self.number}, row {position}"


def is_hub_name(root: str) -> bool:
    """Whether this is `hf:` and a name; `hf://` begins the URL of a file.

    >>> is_hub_name("hf:owner/name"), is_hub_name("hf://datasets/owner/name/train-0.tar")
    (True, False)
    """
    return root.startswith(HUB) and not root.startswith(f"{HUB}//")


def holds_tables(root: str) -> bool:
    """Whether a folder holds Parquet or Arrow files."""
    return any(next(Path(root).glob(pattern), None) is not None for pattern in _TABLES)


def open_tables(root: str, *, split: str | None = None) -> dict[str, ShardSamples]:
    """Open the splits of a data set: `train` and the first one to evaluate on, or what there is.

    Args:
        root: a folder of Parquet or Arrow files, or `hf:` and a name on the Hub or a folder.
        split: open this one instead: the labels of each split that is opened are read.

    Raises:
        DataError: it cannot be opened, has no such split, or has no single column of images or of
            classes.
    """
    require_scale("datasets")
    splits = _load(root.removeprefix(HUB))
    if split is not None:
        name = find_named_split(splits, split, root)
        return {name: _samples(root, name, splits[name])}
    known = [name for name in ("train", *VAL_SPLITS) if name in splits]
    if not known:
        name = next(iter(splits))
        return {EVERYTHING: _samples(root, name, splits[name])}
    names = known[:2] if "train" in known else known[:1]
    return {name: _samples(root, name, splits[name]) for name in names}


def _load(location: str, **options: Any) -> Any:
    """The `IterableDataset` of each split."""
    import datasets

    folder = Path(location)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(location)
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            return {
                name: split.to_iterable_dataset(num_shards=min(_SAVED_SHARDS, len(split)))
                for name, split in splits.items()
            }
        with network_errors():
            return datasets.load_dataset(location, streaming=True, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{location}: cannot be opened as a data set: {error}") from error


def _streamed(name: str, rows: Any) -> Iterator[Any]:
    """The rows; what the Hub's client or a reader of tables raises is a `DataError`."""
    try:
        with network_errors():
            yield from rows
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read: {error}") from error


def _samples(root: str, split: str, dataset: Any) -> ShardSamples:
    import datasets

    location = root.removeprefix(HUB)
    features = dataset.features or {}
    images = [name for name, type_ in features.items() if isinstance(type_, datasets.Image)]
    classes = [name for name, type_ in features.items() if isinstance(type_, datasets.ClassLabel)]
    if len(images) != 1 or len(classes) != 1:
        columns = ", ".join(f"{name} ({type(type_).__name__})" for name, type_ in features.items())
        raise DataError(
            f"{location}: one column of images (Image) and one of classes (ClassLabel) are needed; "
            f"{split} has {columns or 'no known columns'}"
        )
    tables = (file for pattern in _TABLES for file in Path(location).glob(pattern))
    size = sum(map(file_size, tables))
    undecoded = dataset.cast_column(images[0], datasets.Image(decode=False))
    shards = [
        TableShard(f"{location}/{split}", undecoded, images[0], number, labels, size)
        for number, labels in enumerate(_read_labels(location, split, dataset, classes[0]))
    ]
    if not sum(len(shard.labels) for shard in shards):
        raise DataError(f"{location}: has no samples in {split}")
    if missing := sum(int((shard.labels < 0).sum()) for shard in shards):
        raise DataError(
            f"{location}: {missing} samples of {split} have no class; a split without classes "
            "cannot be trained or evaluated on"
        )
    return ShardSamples.from_shards(root, shards, features[classes[0]].names)


def _read_labels(location: str, split: str, dataset: Any, label: str) -> Iterator[np.ndarray]:
    """The labels of each shard's samples; -1 where there is none."""
    column = dataset.select_columns([label])
    if getattr(dataset, "builder_name", None) == "parquet":  # where one column can be read alone
        column = _load(location, columns=[label])[split]
    elif not Path(location).exists():
        log.warning("%s: not Parquet, so all of it is read once to count its samples", location)
    for number in range(column.num_shards):
        rows = _streamed(f"{location}/{split}", column.shard(column.num_shards, number))
        values = (row[label] for row in rows)
        yield np.array([-1 if value is None else value for value in values], np.int32)

"""Tables of images, as `datasets` streams them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from mobilevit.data.errors import DataError
from mobilevit.data.loader import EpochLoader
from mobilevit.data.open import open_evaluation
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.data.shards.open import is_sharded
from mobilevit.data.shards.samples import ShardSamples
from mobilevit.data.splits import LabelSamples
from mobilevit.models.config import Preprocessing
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import ClassificationSet
from tests.data.factories import image_bytes, shard_evaluation, shard_splits

NAMES = ("red", "blue")
COUNTS = {"train": (6, 7, 5), "validation": (4, 3)}


def rows(first: int, count: int, **more: Any) -> datasets.Dataset:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    numbers = range(first, first + count)
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": image_bytes(number), "path": None} for number in numbers],
            "label": [number % 2 for number in numbers],
            **{name: [values] * count for name, values in more.items()},
        },
        features=datasets.Features(
            {**features, **{name: datasets.Value("string") for name in more}}
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files, as on the Hub."""
    root = tmp_path_factory.mktemp("tables")
    for split, counts in COUNTS.items():
        for number, count in enumerate(counts):
            first = 100 * number + (1000 if split == "validation" else 0)
            name = f"{split}-{number:05d}-of-{len(counts):05d}.parquet"
            rows(first, count, note="x").to_parquet(str(root / name))
    return root


def numbers(split: str) -> list[int]:
    base = 1000 if split == "validation" else 0
    return [
        base + 100 * number + place
        for number, count in enumerate(COUNTS[split])
        for place in range(count)
    ]


def loader(samples: ShardSamples, workers: int) -> EpochLoader:
    count = len(samples.labels)
    schedule = MultiScaleSchedule(samples=count, sizes=(16, 32), base_size=16, base_batch=3)
    preprocessing = Preprocessing(crop=16, resize=16)
    dataset = ClassificationSet(samples, preprocessing, ClassificationOptions(), seed=0)
    order = samples.order(seed=0, pool=6)
    return EpochLoader(dataset, MultiScaleBatchSampler(order, schedule), workers=workers)


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_parquet_is_read_row_by_row(tables: Path, prefix: str) -> None:
    root = f"{prefix}{tables}"
    assert is_sharded(root)
    found = shard_splits(root)
    assert found.train.classes == NAMES
    assert found.train.location == found.val.location == root
    assert found.train.images.counts == list(COUNTS["train"])
    assert "train: train (18 images), val: validation (7 images)" in found.note
    for split, samples in (("train", found.train), ("validation", found.val)):
        known = numbers(split)
        assert samples.labels.tolist() == [number % 2 for number in known]
        for index in (0, 1, 3, 6, 5, len(known) - 1):  # forward, and back
            assert samples.source(index) == image_bytes(known[index])
    assert found.train.name(8) == f"{tables}/train, shard 1, row 2"
    turned = shard_evaluation(root, ("blue", "red", "grey"))
    assert turned.labels.tolist() == [1 - number % 2 for number in numbers("validation")]


@pytest.mark.parametrize(("workers", "taken"), [(0, 3), (1, 5)])
def test_resuming_gives_the_remaining_batches(tables: Path, workers: int, taken: int) -> None:
    expected = list(loader(shard_splits(tables).train, 0))
    assert sum(len(labels) for _, labels in expected) == 18
    batches = loader(shard_splits(tables).train, workers)
    batches.load_state_dict({**batches.state_dict(), "epoch": 0, "taken": taken})
    for ours, theirs in zip(batches, expected[taken:], strict=True):
        assert all(map(torch.equal, ours, theirs))
    batches.close()
    with pytest.raises(RuntimeError, match="has been closed"):
        next(iter(batches))


def test_other_images_of_the_same_classes_are_other_contents(tables: Path, tmp_path: Path) -> None:
    """A run on the first is not resumed on the second, but on a copy it is."""
    copy = shutil.copytree(tables, tmp_path / "copy")

    def contents() -> list[dict[str, str]]:
        splits = [shard_splits(str(root)) for root in (tables, copy)]
        return [dict(found.train.contents()) for found in splits]

    ours, theirs = contents()
    assert ours == theirs
    rows(0, COUNTS["train"][0], note="longer").to_parquet(str(next(copy.glob("train-00000*"))))
    ours, theirs = contents()
    assert ours.keys() == theirs.keys() and ours != theirs


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    saved = datasets.DatasetDict({"train": rows(0, 9), "test": rows(50, 4)})
    saved.save_to_disk(tmp_path)
    found = shard_splits(str(tmp_path))
    assert [found.train.source(index) for index in range(9)] == [image_bytes(n) for n in range(9)]
    assert found.val.source(3) == image_bytes(53)


def test_any_split_can_be_evaluated(tmp_path: Path) -> None:
    """Others are not read: here train has no classes."""
    hidden = rows(0, 3).map(lambda row: {"label": -1}, remove_columns=["label"])
    splits = {"train": hidden.cast(rows(0, 1).features), "validation": rows(10, 3)}
    datasets.DatasetDict({**splits, "test": rows(20, 4), "Odd": rows(30, 5)}).save_to_disk(tmp_path)

    def count(split: str) -> int:
        return len(open_evaluation(LabelSamples, DataOptions(root=str(tmp_path), split=split)))

    assert [count(split) for split in ("validation", "test", "odd")] == [3, 4, 5]
    with pytest.raises(DataError, match="no split 'nope', only train, validation, test, Odd"):
        count("nope")


def test_data_sets_that_are_not_labelled_images_are_refused(tables: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened as a data set"):
        shard_splits(f"hf:{tmp_path}/none")
    rows(0, 3).remove_columns("label").to_parquet(str(tmp_path / "a" / "train.parquet"))
    with pytest.raises(
        DataError, match=r"one of classes \(ClassLabel\).*train has image \(Image\)"
    ):
        shard_splits(str(tmp_path / "a"))
    rows(0, 3).to_parquet(str(tmp_path / "b" / "train.parquet"))
    with pytest.raises(DataError, match="one shard cannot be divided"):
        shard_splits(str(tmp_path / "b"))
    hidden = rows(0, 3).map(lambda row: {"label": -1}, remove_columns=["label"])
    hidden.cast(rows(0, 1).features).to_parquet(str(tmp_path / "b" / "test.parquet"))
    with pytest.raises(DataError, match="3 samples of test have no class"):
        shard_splits(str(tmp_path / "b"))
